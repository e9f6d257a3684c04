"""Reach the verdict from the outcomes: deploy, iterate or abort, with reasons.

`deploy` requires every criterion to pass: an intersection-union test, whose error probability is at most that of one
criterion, so the confidence is not split among them (Berger, Technometrics 24 (1982), 295-300).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.config.criteria import QualityCriterion
from finetune.config.decide import DecideConfig
from finetune.config.scorers import Metric
from finetune.decide.criteria import Evidence, find_latency_problem
from finetune.decide.outcomes import Outcome
from finetune.decide.quality import is_significant
from finetune.records.examples import ALL
from finetune.reports.decision import VerdictName
from finetune.score.metrics import counted
from finetune.statistics.decision import Gate
from finetune.statistics.skewed_means import relative_improvement


@dataclass(frozen=True)
class Suggestion:
    """One next step, with a code for programs and a sentence for readers."""

    code: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The result of the pipeline."""

    name: VerdictName
    sentence: str
    reasons: tuple[str, ...]
    suggestions: tuple[Suggestion, ...] = ()
    harm: str | None = None  # in what the candidate is worse than the baseline, and by how much


def reach_verdict(
    config: DecideConfig, outcomes: Sequence[Outcome], evidence: Evidence, gate: Gate, look: int
) -> Verdict:
    """Reach the verdict over all outcomes. Beyond the declared looks, nothing more can be proven on this test set."""
    reasons = tuple(f"{item.status}: {item.criterion} ({item.reason})" for item in outcomes if item.status != "pass")
    if look > config.looks:
        reasons += (f"look {look} at this test set, but {config.looks} were declared: a fresh test set is required",)
    harm = found_harm(config, evidence, gate)
    if harm:
        return Verdict(
            "abort", "The candidate is worse than the baseline: do not continue with it.", (harm, *reasons), harm=harm
        )
    if not reasons:
        if config.policy == "point":
            return Verdict("deploy-unproven", "Every estimate meets its target, but none is proven.", ())
        return Verdict("deploy", f"All {len(outcomes)} criteria pass: deploy this adapter.", ())
    out_of_reach = [item for item in outcomes if item.status == "fail"]
    if out_of_reach and config.policy == "interval" and not improved(config, evidence, gate):
        sentence = "Neither quality nor cost improved, and targets are out of reach: stop."
        return Verdict("abort", sentence, reasons)
    missing = sum(item.status != "pass" for item in outcomes)
    sentence = f"{missing} of {len(outcomes)} criteria do not pass yet."
    return Verdict("iterate", sentence if missing else "All declared looks at this test set are used.", reasons)


def compared(config: DecideConfig, evidence: Evidence) -> list[tuple[Metric, str]]:
    """Return the metrics and groups to test for harm and improvement: those of the criteria, else the first."""
    quality = [item for item in config.criteria if isinstance(item, QualityCriterion)]
    return list(dict.fromkeys((evidence.metrics[item.metric], item.group) for item in quality)) or [
        (next(iter(evidence.metrics.values())), ALL)
    ]


def found_harm(config: DecideConfig, evidence: Evidence, gate: Gate) -> str | None:
    """Return why the candidate is significantly worse than the baseline, or None.

    Each comparison gets its share of the error probability, so that many comparisons do not raise more false alarms
    than one (Bonferroni).
    """
    places = compared(config, evidence)
    strict = replace(gate, confidence=1 - (1 - gate.confidence) / len(places))
    for metric, group in places:
        seen = is_significant(metric, counted(metric, evidence.predictions, group), strict, "worse")
        if seen:
            subject = metric.name if group == ALL else f"{metric.name} of {group}"
            return f"worse than the baseline in {subject}: {seen}"
    return None


def improved(config: DecideConfig, evidence: Evidence, gate: Gate) -> bool:
    """Return whether quality or latency is shown to be better than the baseline's.

    The comparisons do not share the error probability here: a false positive costs another iteration, not a deployment.
    """
    for metric, group in compared(config, evidence):
        if is_significant(metric, counted(metric, evidence.predictions, group), gate, "better"):
            return True
    if find_latency_problem(evidence):
        return False
    candidate, baseline = evidence.seconds(), evidence.baseline_seconds()
    if baseline is None:
        return False
    return relative_improvement(candidate, baseline, gate.confidence, "lower", gate.seed).lower > 0
