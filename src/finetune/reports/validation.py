"""`reports/validation.json`: every finding, the plan, and the account of every token."""

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


class ScheduleReport(Report):
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


class TokenReport(Report):
    """The account of a split's tokens: what is trained on, and what was cut or left out."""

    examples: int
    rows: int
    tokens: int
    supervised_tokens: int
    positions: int
    longest: int
    truncated_examples: int
    lost_tokens: int
    lost_supervised_tokens: int
    lost_end_tokens: int
    unsupervised_examples: int
    largest_batch: int
    longest_row: int
    most_supervised: int


class ValidationReport(Report):
    """What validate found, counted and predicted."""

    base: BaseIdentity | None
    max_length: int
    prepared_sha256: dict[str, str]
    schedule: ScheduleReport
    plan: PlanReport
    tokens: dict[str, TokenReport]
    test_examples: int
    findings: list[FindingReport]
    errors: int
