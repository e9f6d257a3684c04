"""`reports/evaluation.json`: who answered, and how right the answers are."""

from typing import Any, Literal

from pydantic import Field

from finetune.reports.base import BaseIdentity, Report

Role = Literal["baseline", "candidate"]
Figures = dict[str, float | None]  # metrics by name, and facts about the answers; None: unmeasured


class SideReport(Report):
    """Who answered."""

    form: str
    name: str
    url: str | None = None  # of a server
    recorded: bool = False
    sha256: str | None = None
    adapter_sha256: str | None = None
    quantization: str | None = None
    base: BaseIdentity | None = None


class GroupReport(Report):
    """The figures of a group: all test examples, an agent's or a source's."""

    examples: int
    clusters: int  # pieces of evidence
    majority_share: float
    baseline: Figures
    candidate: Figures

    def figures(self, role: Role) -> Figures:
        """Those of one side."""
        return self.baseline if role == "baseline" else self.candidate


class ClassFigures(Report):
    """One class of a classification."""

    precision: float
    recall: float
    f1: float
    examples: int


class ConfusionReport(Report):
    """One side's classes; a row of `confusion` is a reference's class, the last column is answers of no class."""

    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]


class ClassesReport(Report):
    """Both sides of a classification scorer."""

    labels: list[str]
    baseline: ConfusionReport
    candidate: ConfusionReport

    def side(self, role: Role) -> ConfusionReport:
        """One of them."""
        return self.baseline if role == "baseline" else self.candidate


class UnscoredReport(Report):
    """Answers of one side that a scorer could not score: how many, and why the first one."""

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
    """What the adapter has unlearnt."""

    tasks: dict[str, TaskReport]


class EvaluationReport(Report):
    """All that evaluate found, the same for every repetition."""

    adapter_sha256: str
    test_sha256: str
    base: BaseIdentity
    baseline: SideReport
    candidate: SideReport
    look_key: str
    generation: dict[str, Any] = Field(default_factory=dict)
    baseline_generation: dict[str, Any] | None  # None: not known
    predictions_sha256: str
    scorers: dict[str, dict[str, Any]]  # as params.yaml names them
    groups: dict[str, GroupReport]
    classes: dict[str, ClassesReport]
    problems: list[UnscoredReport]
    judges: dict[str, dict[str, Any]]
    forgetting: ForgettingReport | None

    def side(self, role: Role) -> SideReport:
        """Who answered in a role."""
        return self.baseline if role == "baseline" else self.candidate
