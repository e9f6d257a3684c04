"""Compare prepare with the same work in a plain script: time, memory, and quality of near-duplicate detection.

    make setup-dev && pip install --require-hashes -r requirements/bench.lock
    python benchmarks/bench_prepare.py --rows 10000 100000 1000000 --plain-up-to 1000000

Both sides run one after the other on the same generated rows (benchmarks/chat_rows.py). At the smallest size, the
near-duplicates of each are compared with brute force: the Jaccard similarity of all pairs, by a matrix product.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from chat_rows import SEED, write_rows
from measure import results_file, run_measured, what_ran
from scipy.sparse import csr_array

from finetune.config.loading import read_yaml
from finetune.files.atomic import write_json
from finetune.records.near_duplicates import shingles

ROOT = Path(__file__).parents[1]
THRESHOLD, WORDS = 0.8, 3
SPLIT = {"method": "exact", "train": 0.8, "validation": 0.1, "test": 0.1, "stratify_by": None}


def main() -> None:
    """Measure every size and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--plain-up-to", type=int, default=1_000_000)
    parser.add_argument("--brute-force", type=int, default=20_000, help="number of rows to compare pairwise")
    parser.add_argument("--out", type=Path, default=results_file("prepare"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = [measure_size(Path(folder), count, plain=count <= options.plain_up_to) for count in options.rows]
        quality = measure_quality(Path(folder), options.brute_force)
    write_json(options.out, {"seed": SEED, "sizes": sizes, "near_duplicates": quality, **what_ran()})
    print(json.dumps({"sizes": sizes, "near_duplicates": quality}, indent=1))


def measure_size(folder: Path, count: int, *, plain: bool) -> dict[str, Any]:
    """Return time and memory of both sides on `count` rows."""
    rows = folder / "rows.jsonl"
    write_rows(rows, count)
    found: dict[str, Any] = {"rows": count, "bytes": rows.stat().st_size, "ours": asdict(run_ours(folder, rows))}
    if plain:
        found["plain"] = asdict(run_plain(folder, rows))
        found["times_faster"] = found["plain"]["wall_seconds"] / found["ours"]["wall_seconds"]
    print(json.dumps(found), file=sys.stderr)
    return found


def run_ours(folder: Path, rows: Path) -> Any:
    """Run the prepare stage as a user does, with the repository's params and this source."""
    work = folder / "ours"
    (work / "data/raw").mkdir(parents=True, exist_ok=True)
    (work / "data/raw/rows.jsonl").unlink(missing_ok=True)
    os.link(rows, work / "data/raw/rows.jsonl")
    params = read_yaml(ROOT / "params.yaml")
    params["data"] |= {"sources": [{"name": "chat", "path": "rows.jsonl"}], "system_prompts": {}, "split": SPLIT}
    params["data"]["duplicates"] |= {"threshold": THRESHOLD, "shingle_words": WORDS}
    (work / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    command = [sys.executable, "-m", "finetune", "prepare"]
    return run_measured(command, work, {**os.environ, "PYTHONPATH": str(ROOT / "src")})


def run_plain(folder: Path, rows: Path) -> Any:
    """Run the plain script with as many processes as there are cores."""
    work = folder / "plain"
    work.mkdir(exist_ok=True)
    cores = str(os.cpu_count())
    command = [sys.executable, str(ROOT / "benchmarks/plain_prepare.py"), str(rows), str(work), "--processes", cores]
    cache = {"HF_DATASETS_CACHE": str(folder / f"cache-{rows.stat().st_size}"), "HF_HUB_OFFLINE": "1"}
    return run_measured(command, work, {**os.environ, **cache})


def measure_quality(folder: Path, count: int) -> dict[str, Any]:
    """Return recall and precision of both sides' near-duplicates compared with all pairs."""
    rows = folder / "rows.jsonl"
    write_rows(rows, count)
    run_ours(folder, rows), run_plain(folder, rows)
    texts = [spoken(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    unique = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    pairs = similar_pairs(unique)
    found: dict[str, Any] = {"rows": count, "after_exact": len(unique), "pairs_at_threshold": len(pairs)}
    for side in ("ours", "plain"):
        place = folder / side / "data/prepared" if side == "ours" else folder / side
        files = [place / f"{name}.jsonl" for name in ("train", "validation", "test")]
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        kept = {" ".join(spoken(line).split()) for line in lines}
        found[side] = score({at for at, text in enumerate(unique) if text in kept}, len(unique), pairs)
    return found


def spoken(line: str) -> str:
    """Return the text of a row without the system message."""
    return "\n".join(turn["content"] for turn in json.loads(line)["messages"] if turn["role"] != "system")


def similar_pairs(texts: list[str]) -> np.ndarray:
    """Return all pairs whose shingles have a Jaccard similarity of at least the threshold, (pairs, 2)."""
    sets = [set(shingles(text, WORDS)) for text in texts]
    numbers: dict[str, int] = {}
    columns = [numbers.setdefault(shingle, len(numbers)) for found in sets for shingle in found]
    sizes = np.array([len(found) for found in sets])
    matrix = csr_array(
        (np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(sizes)])),
        shape=(len(texts), len(numbers)),
    )
    common = (matrix @ matrix.T).tocoo()
    union = sizes[common.row] + sizes[common.col] - common.data
    near = (common.row < common.col) & (common.data >= THRESHOLD * union)
    return np.stack([common.row[near], common.col[near]], axis=1)


def score(kept: set[int], count: int, pairs: np.ndarray) -> dict[str, Any]:
    """Return recall (pairs of which one was dropped) and precision (dropped rows that are similar to a kept one)."""
    partners: dict[int, set[int]] = {}
    for one, other in pairs.tolist():
        partners.setdefault(one, set()).add(other)
        partners.setdefault(other, set()).add(one)
    resolved = sum(not (one in kept and other in kept) for one, other in pairs.tolist())
    dropped = set(range(count)) - kept
    right = sum(bool(partners.get(row, set()) & kept) for row in dropped)
    return {
        "near_duplicates_dropped": len(dropped),
        "recall": resolved / len(pairs) if len(pairs) else None,
        "precision": right / len(dropped) if dropped else None,
    }


if __name__ == "__main__":
    main()
