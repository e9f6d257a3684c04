"""The training curves that train wrote, as (step, value) pairs by column."""

import csv
from pathlib import Path

from finetune.errors import DataError

Curves = dict[str, list[tuple[float, float]]]


def read_curves(reports: Path) -> Curves:
    """The curves that train wrote, as (step, value) pairs by column; DataError where they can't be read."""
    return {**_read_table(reports / "curves.tsv"), **_read_table(reports / "validation_curve.tsv")}


def _read_table(path: Path) -> Curves:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        names = [name for name in (rows[0] if rows else {}) if name != "step"]
        return {name: [(float(row["step"]), float(row[name])) for row in rows] for name in names}
    except FileNotFoundError:
        raise DataError(path, "no such file", "run train again (dvc repro -f -s train)") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}", f"is no table of curves ({error})", "run train again (dvc repro -f -s train)"
        ) from None
