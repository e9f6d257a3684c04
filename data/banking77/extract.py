"""Extract the subset: the rows of ten intents of banking77, in their original order, with the column `label`.

Reads PolyAI's `train.csv` and `test.csv` from a folder, and writes `train.csv` and `test.csv` next to this script:

    text,label
    I was charged a fee when I paid with my card.,card_payment_fee_charged

The intents are those with the most training rows, so that no one chose them for their difficulty.
"""

import argparse
import csv
import hashlib
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
INTENTS = 10
ORIGINALS = {  # SHA-256 of the files in PolyAI's repository: folder banking_data of PolyAI-LDN/task-specific-datasets
    "train.csv": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test.csv": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}

Row = tuple[str, str]  # text and intent


def read_rows(path: Path) -> list[Row]:
    """Read an original file. Raise ValueError if it is not the expected version."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != ORIGINALS[path.name]:
        raise ValueError(f"{path}: not the expected version of this file (its SHA-256 differs)")
    rows = csv.DictReader(content.decode("utf-8").splitlines(keepends=True))
    return [(row["text"], row["category"]) for row in rows]


def choose_intents(rows: list[Row]) -> set[str]:
    """Return the most frequent intents; of equally frequent ones, the first in the alphabet."""
    counts = Counter(intent for _, intent in rows)
    return set(sorted(counts, key=lambda intent: (-counts[intent], intent))[:INTENTS])


def write_rows(rows: list[Row], path: Path) -> None:
    """Write rows as CSV, with the same bytes on every platform."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def main() -> None:
    """Write both files and print their sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("originals", type=Path, help="folder with PolyAI's train.csv and test.csv")
    options = parser.parse_args()
    files = {name: read_rows(options.originals / name) for name in ORIGINALS}
    intents = choose_intents(files["train.csv"])
    for name, rows in files.items():
        kept = [row for row in rows if row[1] in intents]
        write_rows(kept, HERE / name)
        print(f"{name}: {len(kept)} of {len(rows)} rows")


if __name__ == "__main__":
    main()
