"""The reports of one finished run, which the gate judges and the report, the summary and the card are filled with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from finetune.config.decide import DecideConfig
from finetune.records.examples import Timing
from finetune.reports.base import read_report
from finetune.reports.cost import CostReport
from finetune.reports.evaluation import EvaluationReport
from finetune.reports.prepare import PrepareReport
from finetune.reports.train import TrainCostReport, TrainReport
from finetune.reports.validation import ValidationReport


@dataclass(frozen=True)
class RunReports:
    """What the stages before decide wrote."""

    prepare: PrepareReport
    validation: ValidationReport
    train: TrainReport
    train_cost: TrainCostReport
    evaluation: EvaluationReport
    cost: CostReport

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The reports in a folder; DataError where one is missing, broken or of another version."""
        return cls(
            read_report(folder / "prepare.json", PrepareReport),
            read_report(folder / "validation.json", ValidationReport),
            read_report(folder / "train.json", TrainReport),
            read_report(folder / "train_cost.json", TrainCostReport),
            read_report(folder / "evaluation.json", EvaluationReport),
            read_report(folder / "cost.json", CostReport),
        )


@dataclass(frozen=True)
class Decided:
    """A run with what decide adds: the gate, the use of the test set, and what would change the verdict."""

    reports: RunReports
    decide: DecideConfig
    recipe: str
    seed: int
    look: int
    confidence: float  # of each bound
    changes: Sequence[str] = ()
    seeds: Mapping[str, Mapping[str, Any]] | None = None  # outcomes by seed, as data/seeds.json holds them
    timings: Sequence[Timing] = ()

    @property
    def prepare(self) -> PrepareReport:
        """The ledger of rows."""
        return self.reports.prepare

    @property
    def validation(self) -> ValidationReport:
        """Findings, plan and the account of tokens."""
        return self.reports.validation

    @property
    def train(self) -> TrainReport:
        """What came out of the training."""
        return self.reports.train

    @property
    def train_cost(self) -> TrainCostReport:
        """What the training took."""
        return self.reports.train_cost

    @property
    def evaluation(self) -> EvaluationReport:
        """How right the answers are."""
        return self.reports.evaluation

    @property
    def cost(self) -> CostReport:
        """What an answer costs."""
        return self.reports.cost
