"""`reports/decision.json`: the verdict for programs."""

from typing import Literal

from finetune.reports.base import Report

VerdictName = Literal["deploy", "deploy-unproven", "iterate", "abort"]


class CriterionReport(Report):
    """One row of the gate; a bound that is not finite is None."""

    criterion: str
    rule: str
    about: str
    status: str
    target: float | None
    estimate: float | None
    lower: float | None
    upper: float | None
    unit: str
    method: str
    reason: str
    group: str | None
    metric: str | None
    higher_is_better: bool


class SuggestionReport(Report):
    """One next step."""

    code: str
    text: str


class DecisionReport(Report):
    """The verdict, its reasons, and its basis."""

    verdict: VerdictName
    sentence: str
    passed: int
    criteria: list[CriterionReport]
    reasons: list[str]
    suggestions: list[SuggestionReport]
    changes: list[str]
    gate_sha256: str
    policy: str
    confidence: float
    look: int
    baseline: str
    candidate: str
    adapter_sha256: str
    test_sha256: str
