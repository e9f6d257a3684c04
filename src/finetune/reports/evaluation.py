"""`reports/evaluation.json`: the two sides, and the quality of their answers."""

from typing import Any, Literal

from pydantic import Field

from finetune.reports.base import BaseIdentity, Report

Role = Literal["baseline", "candidate"]
Figures = dict[str, float | None]  # metrics and properties of the answers, by name; None: unmeasured


class SideReport(Report):
    """One side of the evaluation."""

    form: str
    name: str
    url: str | None = None  # of a server
    recorded: bool = False
    sha256: str | None = None
    adapter_sha256: str | None = None
    quantization: str | None = None
    base: BaseIdentity | None = None


class GroupReport(Report):
    """The results of a group: all test examples, an agent's or a source's."""

    examples: int
    clusters: int  # groups of examples that are not independent
    majority_share: float
    baseline: Figures
    candidate: Figures

    def figures(self, role: Role) -> Figures:
        """Return the results of one side."""
        return self.baseline if role == "baseline" else self.candidate


class ClassFigures(Report):
    """One class of a classification."""

    precision: float
    recall: float
    f1: float
    examples: int


class ConfusionReport(Report):
    """One side's classes; rows of `confusion` are references' classes, the last column is answers in no class."""

    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]


class ClassesReport(Report):
    """Both sides of a classification scorer."""

    labels: list[str]
    baseline: ConfusionReport
    candidate: ConfusionReport

    def side(self, role: Role) -> ConfusionReport:
        """Return one of them."""
        return self.baseline if role == "baseline" else self.candidate


class UnscoredReport(Report):
    """Answers of one side that a scorer could not score: their number, and the reason of the first."""

    scorer: str
    side: Role
    count: int
    example: str
    reason: str


class TaskReport(Report):
    """A task of the lm-evaluation-harness: both means, and the interval of their difference."""

    examples: int
    metric: str
    baseline: float
    candidate: float
    lower: float | None
    upper: float | None


class ForgettingReport(Report):
    """What the adapter has forgotten."""

    tasks: dict[str, TaskReport]


class EvaluationReport(Report):
    """All results of evaluate, equal for every repetition."""

    adapter_sha256: str
    test_sha256: str
    base: BaseIdentity
    baseline: SideReport
    candidate: SideReport
    look_key: str
    generation: dict[str, Any] = Field(default_factory=dict)
    baseline_generation: dict[str, Any] | None  # None: unknown
    predictions_sha256: str
    scorers: dict[str, dict[str, Any]]  # as in params.yaml
    groups: dict[str, GroupReport]
    classes: dict[str, ClassesReport]
    problems: list[UnscoredReport]
    judges: dict[str, dict[str, Any]]
    forgetting: ForgettingReport | None

    def side(self, role: Role) -> SideReport:
        """Return the side in a role."""
        return self.baseline if role == "baseline" else self.candidate
