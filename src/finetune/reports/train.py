"""`reports/train.json`, equal for every repetition, and `reports/train_cost.json`, which is measured."""

from finetune.reports.base import MachineReport, Report
from finetune.reports.validation import ParameterCounts


class StartReport(Report):
    """The adapter that a training continued from, and what that one started from."""

    sha256: str
    source: str
    start: "StartReport | None" = None


class TrainReport(Report):
    """The results of the training."""

    adapter_sha256: str
    fingerprint: str
    tier: str
    attention: str
    start: StartReport | None = None
    micro_batch: int
    accumulation: int
    steps: int
    planned_steps: int
    kept_step: int
    first_validation_loss: float | None
    validation_loss: float
    last_validation_loss: float
    train_loss: float | None
    parameters: ParameterCounts
    warnings: list[str]


class TrainCostReport(Report):
    """The cost of the training."""

    wall_seconds: float
    steps_per_second: float
    peak_memory_bytes: int | None
    resumed_from_step: int
    machine: MachineReport
