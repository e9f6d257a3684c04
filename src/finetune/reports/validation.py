"""`reports/validation.json`: every finding, the plan, and the counts of all tokens."""

from typing import Self

from finetune.reports.base import BaseIdentity, Report


class FindingReport(Report):
    """One finding; `accepted` is the reason, if params.yaml accepts it."""

    code: str
    severity: str
    cost: str
    place: str
    message: str
    remedy: str
    accepted: str | None


class Schedule(Report):
    """The schedule of a run, in optimizer steps."""

    examples: int
    effective_batch_size: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    evaluations: int
    saves: int
    logs: int


class ParameterCounts(Report):
    """The numbers of trained and of all parameters."""

    trainable: int | None
    total: int


class PlanReport(Report):
    """The predicted needs of the run; None if the architecture is unknown."""

    machine: str
    parameters: ParameterCounts | None
    memory_bytes: dict[str, int] | None  # by part, and the peak
    peak_bytes_by_ranks: dict[str, int]
    flops: float | None
    evaluation_flops: float | None
    workload_counted: bool


class TokenCounts(Report, frozen=False):
    """The token counts of one split; tokens that are not `lost` are in the validated data."""

    examples: int
    rows: int  # as many as examples, or fewer if packed
    tokens: int
    supervised_tokens: int
    positions: int  # tokens and padding of the first epoch's micro-batches
    longest: int
    truncated_examples: int
    lost_tokens: int
    lost_supervised_tokens: int
    lost_end_tokens: int
    unsupervised_examples: int  # without supervised tokens; left out
    largest_batch: int  # positions of the largest micro-batch
    longest_row: int  # after truncation and packing
    most_supervised: int  # maximum number of supervised tokens in a micro-batch

    @classmethod
    def of(cls, **counts: int) -> Self:
        """Build counts with these values, and 0 for all others."""
        return cls(**dict.fromkeys(cls.model_fields, 0) | counts)

    @property
    def all_examples(self) -> int:
        """The examples in training and those left out."""
        return self.examples + self.unsupervised_examples

    @property
    def padding(self) -> float:
        """The share of the computed positions that are padding."""
        return 1 - self.tokens / self.positions if self.positions else 0.0

    def shares(self, max_length: int) -> dict[str, str]:
        """Return padding, and how full the rows are, for the report."""
        full = self.tokens / (self.rows * max_length) if self.rows else 0.0
        return {"padding": f"{self.padding:.1%}", "rows_filled": f"{full:.1%}"}


class ValidationReport(Report):
    """The findings, counts and predictions of validate."""

    base: BaseIdentity | None
    max_length: int
    prepared_sha256: dict[str, str]
    schedule: Schedule
    plan: PlanReport
    tokens: dict[str, TokenCounts]
    test_examples: int
    findings: list[FindingReport]
    errors: int
