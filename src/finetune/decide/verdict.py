"""From the outcomes to the verdict: deploy, iterate or abort, with reasons and with what to do next.

`deploy` needs every criterion to pass: an intersection-union test, whose error probability is no more than one
criterion's, so the confidence is not split among them (Berger, Technometrics 24 (1982), 295-300).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.config import AtLeast, DecideConfig
from finetune.decide.criteria import Evidence, Gate, Outcome, discordant
from finetune.stats import clopper_pearson, examples_needed, mcnemar_exact, relative_improvement

VerdictName = Literal["deploy", "deploy-unproven", "iterate", "abort"]
LARGEST_SEARCH = 100_000  # test examples beyond which "more test examples" is no advice


@dataclass(frozen=True)
class Suggestion:
    """One thing to do next, with a code for machines and a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The end of the pipeline."""

    name: VerdictName
    sentence: str
    reasons: tuple[str, ...]
    suggestions: tuple[Suggestion, ...]


def reach_verdict(
    config: DecideConfig,
    outcomes: Sequence[Outcome],
    evidence: Evidence,
    gate: Gate,
    look: int,
    trained: dict[str, Any],
) -> Verdict:
    """The verdict over all outcomes; past the declared looks nothing can be proven on this test set any more."""
    reasons = tuple(f"{item.status}: {item.criterion} ({item.reason})" for item in outcomes if item.status != "pass")
    spent = look > config.looks
    if spent:
        reasons += (f"look {look} at this test set, {config.looks} were declared: a fresh test set is due",)
    harm = found_harm(evidence, gate)
    if harm:
        sentence = "The candidate does harm: do not go on with this one."
        return Verdict("abort", sentence, (harm, *reasons), ())
    if not reasons:
        if config.policy == "point":
            return Verdict("deploy-unproven", "Every estimate meets its target, but nothing is proven.", (), ())
        return Verdict("deploy", f"All {len(outcomes)} criteria pass: deploy this adapter.", (), ())
    out_of_reach = [item for item in outcomes if item.status == "fail"]
    if out_of_reach and config.policy == "interval" and not improved(evidence, gate):
        sentence = "No improvement on quality or cost, and targets are out of reach: stop here."
        return Verdict("abort", sentence, reasons, ())
    suggestions = tuple(suggest(config, outcomes, evidence, gate, trained, spent))
    missing = sum(item.status != "pass" for item in outcomes)
    sentence = f"{missing} of {len(outcomes)} criteria do not pass yet."
    return Verdict("iterate", sentence if missing else "The looks at this test set are spent.", reasons, suggestions)


def found_harm(evidence: Evidence, gate: Gate) -> str | None:
    """Why the candidate is significantly worse than the baseline, or None."""
    gained, lost = discordant(evidence.predictions)
    p = mcnemar_exact(gained, lost, "less")
    if p < 1 - gate.confidence:
        return f"worse than the baseline: {lost} answers lost, {gained} gained (exact McNemar p = {p:.2g})"
    return None


def improved(evidence: Evidence, gate: Gate) -> bool:
    """Whether quality or latency is shown to be better than the baseline's."""
    if mcnemar_exact(*discordant(evidence.predictions), "greater") < 1 - gate.confidence:
        return True
    candidate, baseline = evidence.seconds()
    if len(baseline) < 2 or min(candidate + baseline) <= 0:
        return False
    return relative_improvement(candidate, baseline, gate.confidence, "lower", gate.seed).lower > 0


def suggest(
    config: DecideConfig,
    outcomes: Sequence[Outcome],
    evidence: Evidence,
    gate: Gate,
    trained: dict[str, Any],
    spent: bool,
) -> list[Suggestion]:
    """What to do next, the most telling first."""
    found = []
    if spent:
        found.append(Suggestion("fresh-test-set", "collect a fresh test set: this one has been looked at too often"))
    found += [item for criterion in config.criteria if (item := more_examples(criterion, evidence, gate))]
    best, last, steps = trained["validation_loss"], trained["last_validation_loss"], trained["steps"]
    if trained["kept_step"] == steps:
        found.append(
            Suggestion("more-epochs", "the validation loss was still falling at the end: train for more epochs")
        )
    elif last > 1.02 * best:
        kept = trained["kept_step"]
        text = f"the validation loss rose from {best:.3f} (step {kept}) to {last:.3f}: lower the learning rate"
        found.append(Suggestion("lower-learning-rate", text))
    if any(item.status in ("fail", "inconclusive") and item.about == "quality" for item in outcomes):
        worst = worst_group(evidence)
        found.append(Suggestion("more-data", f"add training examples of {worst}, the group that fails most"))
    if any(item.status == "fail" and item.about == "latency" for item in outcomes):
        found.append(
            Suggestion("shorter-answers", "train on shorter answers or choose a smaller base: LoRA adds no speed")
        )
    return found


def more_examples(criterion: Any, evidence: Evidence, gate: Gate) -> Suggestion | None:
    """How many test examples would decide an exact-match threshold, were the share of failures to stay as it is."""
    if not isinstance(criterion, AtLeast) or criterion.metric != "exact_match":
        return None
    predictions = evidence.of(criterion.group)
    n, right = len(predictions), sum(item.candidate.exact_match for item in predictions)
    if not n or right / n <= criterion.threshold:
        return None
    if clopper_pearson(right, n, gate.confidence, "lower").lower >= criterion.threshold:
        return None
    needed = n
    while needed < LARGEST_SEARCH:
        failures = round(needed * (n - right) / n)
        wanted = examples_needed(criterion.threshold, failures, gate.confidence)
        if wanted <= needed:
            text = (
                f"{criterion.describe()}: {right} of {n} is too little evidence; at this rate {needed} test examples "
                f"with at most {failures} failures would show it"
            )
            return Suggestion("more-test-examples", text)
        needed = max(wanted, math.ceil(1.01 * needed))  # found to a hundredth
    return None


def worst_group(evidence: Evidence) -> str:
    """The agent whose answers are right least often."""
    agents = sorted({item.agent for item in evidence.predictions})

    def share(agent: str) -> float:
        members = evidence.of(agent)
        return sum(item.candidate.exact_match for item in members) / len(members)

    return min(agents, key=share)
