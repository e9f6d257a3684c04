"""Compare engines for reading rows (datasets, polars, duckdb, a loop over lines): time, memory, bad rows.

    python benchmarks/engines_prepare.py --rows 200000

The task is what all four support: read chat rows as JSON lines, drop those whose text occurs earlier in the file up to
white space, write the rest. Then each reads a file of five rows, of which the second is truncated, the third contains
NaN and the fourth is not UTF-8: it should report the number of the bad line, or at least a correct count.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import results_file, run_measured, what_ran

from finetune.files.atomic import write_json

GOOD = b'{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}\n'
BAD_FILE = GOOD % 1 + b'{"messages": [{"ro\n' + b'{"messages": NaN}\n' + b'{"messages": "\xff"}\n' + GOOD % 5


def with_datasets(source: str, target: str) -> None:
    """Use `datasets`: Arrow tables on disk, Python functions over rows."""
    from datasets import load_dataset

    seen: set[str] = set()

    def is_new(row: dict[str, Any]) -> bool:
        key = " ".join("\n".join(turn["content"] for turn in row["messages"]).split())
        return key not in seen and not seen.add(key)  # type: ignore[func-returns-value]

    rows = load_dataset("json", data_files=source, split="train", cache_dir=f"{target}.cache")
    rows.filter(is_new).to_json(target)


def with_polars(source: str, target: str) -> None:
    """Use polars: a lazy, streaming query."""
    import polars

    text = polars.col("messages").list.eval(polars.element().struct.field("content")).list.join("\n")
    key = text.str.replace_all(r"\s+", " ").str.strip_chars()
    rows = polars.scan_ndjson(source).with_columns(key.alias("key"))
    rows.unique("key", keep="first", maintain_order=True).drop("key").sink_ndjson(target)


def with_duckdb(source: str, target: str) -> None:
    """Use duckdb: a query that may spill to disk."""
    import duckdb

    duckdb.sql(
        f"""COPY (
            SELECT messages FROM (
                SELECT messages, row_number() OVER () AS line,
                       trim(regexp_replace(list_aggregate([turn.content FOR turn IN messages], 'string_agg', chr(10)),
                                           '\\s+', ' ', 'g')) AS key
                FROM read_json('{source}', format = 'newline_delimited'))
            QUALIFY row_number() OVER (PARTITION BY key ORDER BY line) = 1 ORDER BY line
        ) TO '{target}' (FORMAT json)"""  # noqa: S608
    )


def with_lines(source: str, target: str) -> None:
    """Use this project's readers: lines cut by one process, parsed strictly, errors with their line."""
    import orjson

    from finetune.prepare.readers.batches import BadRow
    from finetune.prepare.readers.detect import detect_container, read_batches

    seen: set[str] = set()
    with Path(target).open("wb") as out:
        for batch in read_batches(Path(source), detect_container(Path(source)), 10**7):
            for row in batch.rows():
                if isinstance(row, BadRow):
                    print(f"line {row.line}: {row.why}")
                    continue
                key = " ".join("\n".join(turn["content"] for turn in row.fields["messages"]).split())
                if key not in seen:
                    seen.add(key)
                    out.write(orjson.dumps(row.fields, option=orjson.OPT_APPEND_NEWLINE))


ENGINES = {"datasets": with_datasets, "polars": with_polars, "duckdb": with_duckdb, "lines": with_lines}


def main() -> None:
    """Measure every engine in a separate process, in turn."""
    parser = argparse.ArgumentParser(description="Which engine should read the rows")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results_file("prepare-engines"))
    parser.add_argument("--run", nargs=3, metavar=("ENGINE", "SOURCE", "TARGET"), help="run one engine (internal)")
    options = parser.parse_args()
    if options.run:
        ENGINES[options.run[0]](*options.run[1:])
        return
    from chat_rows import write_rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", options.rows)
        (folder / "bad.jsonl").write_bytes(BAD_FILE)
        runs = {engine: [measure(engine, folder) for _ in range(options.repeat)] for engine in ENGINES}
        bad = {engine: meet_bad_rows(engine, folder) for engine in ENGINES}
    write_json(options.out, {"rows": options.rows, "runs": runs, "bad_rows": bad, **what_ran()})
    print(json.dumps({"runs": runs, "bad_rows": bad}, indent=1))


def command(engine: str, source: Path, target: Path) -> list[str]:
    """Return the command of one process."""
    return [sys.executable, __file__, "--run", engine, str(source), str(target)]


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Return time and memory of one engine on the good rows, and the number of rows kept."""
    target = folder / f"{engine}.jsonl"
    cost = run_measured(command(engine, folder / "rows.jsonl", target), folder, environment(folder))
    with target.open("rb") as lines:
        return {**asdict(cost), "kept": sum(1 for _ in lines)}


def meet_bad_rows(engine: str, folder: Path) -> dict[str, Any]:
    """Return the result of one engine for three bad rows of five."""
    import subprocess

    target = folder / f"{engine}-bad.jsonl"
    done = subprocess.run(
        command(engine, folder / "bad.jsonl", target), env=environment(folder), capture_output=True, text=True
    )
    kept = len(target.read_bytes().splitlines()) if target.exists() else 0
    output = (done.stdout or done.stderr.strip().rpartition("\n")[2]).strip().replace(str(folder), "")
    return {"exit_code": done.returncode, "rows_kept": kept, "said": output[-400:]}


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without network and without the cache of an earlier run."""
    cache = str(folder / f"cache-{os.urandom(4).hex()}")
    source = str(Path(__file__).parents[1] / "src")
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **quiet, "HF_DATASETS_CACHE": cache, "PYTHONPATH": source}


if __name__ == "__main__":
    main()
