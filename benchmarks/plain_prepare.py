"""The peer of prepare: the same work in a plain script on `datasets` and `datasketch`, as written in an hour.

    python benchmarks/plain_prepare.py rows.jsonl out/ --processes 2

Read chat rows, drop those that do not end with the assistant, drop exact and near copies (MinHash of word shingles; the
same number of permutations, bands and rows per band as ours, so the same recall), split 80/10/10, write JSON lines.
Near copies are those that the index proposes: the texts are not compared, and no ledger is written.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasketch import MinHash, MinHashLSH

SCHEME = "affine32"  # datasketch's default for new sketches
PERMUTATIONS, BANDS, ROWS, WORDS = 60, 12, 5, 3


def prepare_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's exact key and its MinHash values."""
    text = "\n".join(message["content"] for message in row["messages"] if message["role"] != "system")
    words = text.lower().split()
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
    sketch.update_batch([" ".join(words[at : at + WORDS]).encode() for at in range(max(len(words) - WORDS + 1, 1))])
    return {"key": hashlib.md5(" ".join(text.split()).encode()).hexdigest(), "sketch": sketch.hashvalues}  # noqa: S324


def main() -> None:
    """Read, deduplicate, split, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows = load_dataset("json", data_files=options.file, split="train", cache_dir=str(options.out / "cache"))
    rows = rows.filter(lambda row: row["messages"][-1]["role"] == "assistant", num_proc=options.processes)
    rows = rows.map(prepare_row, num_proc=options.processes)
    seen: set[str] = set()
    index = MinHashLSH(params=(BANDS, ROWS), num_perm=PERMUTATIONS)
    kept = []
    for at, row in enumerate(rows.select_columns(["key", "sketch"])):
        if row["key"] in seen:
            continue
        seen.add(row["key"])
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashvalues=row["sketch"], scheme=SCHEME)
        if not index.query(sketch):
            index.insert(at, sketch)
            kept.append(at)
    rows = rows.select(kept).remove_columns(["key", "sketch"])
    first = rows.train_test_split(test_size=0.2, seed=42)
    rest = first["test"].train_test_split(test_size=0.5, seed=42)
    for name, split in {"train": first["train"], "validation": rest["train"], "test": rest["test"]}.items():
        split.to_json(options.out / f"{name}.jsonl", num_proc=options.processes)


if __name__ == "__main__":
    main()
