"""The reports of one finished run: the input of the gate, the report, the summary and the model card."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from finetune.config.decide import DecideConfig
from finetune.errors import DataError
from finetune.records.examples import Timing
from finetune.reports.base import read_report
from finetune.reports.cost import CostReport
from finetune.reports.evaluation import EvaluationReport
from finetune.reports.prepare import PrepareReport
from finetune.reports.train import TrainCostReport, TrainReport
from finetune.reports.validation import ValidationReport

Curves = dict[str, list[tuple[float, float]]]  # (step, value) pairs by column
AGAIN = "run train again (dvc repro -f -s train)"


@dataclass(frozen=True)
class RunReports:
    """The reports of the stages before decide."""

    prepare: PrepareReport
    validation: ValidationReport
    train: TrainReport
    train_cost: TrainCostReport
    evaluation: EvaluationReport
    cost: CostReport

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the reports in a folder. Raise DataError if one is missing, malformed or of another version."""
        kinds = get_type_hints(cls)
        return cls(**{name: read_report(folder / f"{name}.json", kind) for name, kind in kinds.items()})


@dataclass(frozen=True)
class Decided:
    """A run with the results of decide: the gate, the use of the test set, and what would change the verdict."""

    reports: RunReports
    decide: DecideConfig
    recipe: str
    seed: int
    look: int
    confidence: float  # of each bound
    changes: Sequence[str] = ()
    seeds: Mapping[str, Mapping[str, Any]] | None = None  # outcomes by seed, as in data/seeds.json
    timings: Sequence[Timing] = ()


def read_curves(reports: Path) -> Curves:
    """Read the curves of train as (step, value) pairs by column. Raise DataError if they cannot be read."""
    return {**_read_table(reports / "curves.tsv"), **_read_table(reports / "validation_curve.tsv")}


def _read_table(path: Path) -> Curves:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        names = [name for name in (rows[0] if rows else {}) if name != "step"]
        return {name: [(float(row["step"]), float(row[name])) for row in rows] for name in names}
    except FileNotFoundError:
        raise DataError(path, "no such file", AGAIN) from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(path, f"is not a table of curves ({error})", AGAIN) from None
