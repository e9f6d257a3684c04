"""`reports/cost.json`: the measured cost of an answer."""

from typing import Any

from finetune.reports.base import MachineReport, Report
from finetune.reports.evaluation import Role


class TimesReport(Report):
    """One side's times, in seconds and tokens per second; None if a recorded side has none."""

    mean_seconds: float
    p50_seconds: float
    p95_seconds: float
    mean_first_seconds: float | None
    mean_tokens: float | None
    tokens_per_second: float | None


class SameLengthReport(Report):
    """Both sides' mean seconds if all answers had the same length."""

    tokens: float
    baseline_seconds: float
    candidate_seconds: float


class LatencyReport(Report):
    """The latency pass."""

    prompts: int
    baseline: TimesReport | None
    candidate: TimesReport | None
    same_length: SameLengthReport | None
    unanswered: dict[str, int]
    left_out: int
    identical_answers: float | None

    def side(self, role: Role) -> TimesReport | None:
        """Return one side's times."""
        return self.baseline if role == "baseline" else self.candidate


class MemoryReport(Report):
    """Peak bytes of fresh processes."""

    processes: int
    largest_bytes: int | None
    bytes: list[int]


class CostReport(Report):
    """Latency and memory, with their setup and adapter."""

    latency: LatencyReport
    memory: MemoryReport
    settings: dict[str, Any]
    adapter_sha256: str
    latency_sha256: str
    machine: MachineReport
    versions: dict[str, str]
