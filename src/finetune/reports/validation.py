"""`reports/validation.json`: every finding, the plan, and the account of every token."""

from typing import Self

from finetune.reports.base import BaseIdentity, Report


class FindingReport(Report):
    """One finding; `accepted` is the reason, where params.yaml accepts it."""

    code: str
    severity: str
    cost: str
    place: str
    message: str
    remedy: str
    accepted: str | None


class Schedule(Report):
    """The run's arithmetic, in optimizer steps."""

    examples: int
    effective_batch_size: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    evaluations: int
    saves: int
    logs: int


class ParameterCounts(Report):
    """Parameters that are trained, and all."""

    trainable: int | None
    total: int


class PlanReport(Report):
    """What the run was predicted to need; None where the architecture is not known."""

    machine: str
    parameters: ParameterCounts | None
    memory_bytes: dict[str, int] | None  # by part, and the peak
    peak_bytes_by_ranks: dict[str, int]
    flops: float | None
    evaluation_flops: float | None
    workload_counted: bool


class TokenCounts(Report, frozen=False):
    """The token account of one split; what is not `lost` is in the validated data."""

    examples: int
    rows: int  # as many, or fewer where examples are packed
    tokens: int
    supervised_tokens: int
    positions: int  # tokens and padding of the first epoch's micro-batches
    longest: int
    truncated_examples: int
    lost_tokens: int
    lost_supervised_tokens: int
    lost_end_tokens: int
    unsupervised_examples: int  # no token of theirs is trained on; left out
    largest_batch: int  # positions of the largest micro-batch
    longest_row: int  # after cutting and packing
    most_supervised: int  # supervised tokens of the micro-batch that has most

    @classmethod
    def of(cls, **counts: int) -> Self:
        """These counts, and 0 for all others."""
        return cls(**dict.fromkeys(cls.model_fields, 0) | counts)

    @property
    def all_examples(self) -> int:
        """Those trained on, and those left out."""
        return self.examples + self.unsupervised_examples

    @property
    def padding(self) -> float:
        """The share of the computed positions that hold no token."""
        return 1 - self.tokens / self.positions if self.positions else 0.0

    def shares(self, max_length: int) -> dict[str, str]:
        """Padding, and how full the rows are of what they may hold, for the report."""
        full = self.tokens / (self.rows * max_length) if self.rows else 0.0
        return {"padding": f"{self.padding:.1%}", "rows_filled": f"{full:.1%}"}


class ValidationReport(Report):
    """What validate found, counted and predicted."""

    base: BaseIdentity | None
    max_length: int
    prepared_sha256: dict[str, str]
    schedule: Schedule
    plan: PlanReport
    tokens: dict[str, TokenCounts]
    test_examples: int
    findings: list[FindingReport]
    errors: int
