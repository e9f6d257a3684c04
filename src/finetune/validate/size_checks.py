"""Checks of the test set against the gate: what could not pass if every answer were right is known before the run."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from finetune.config import (
    AtLeast,
    BetterThanBaseline,
    Config,
    LatencyAtMost,
    NotWorseThanBaseline,
    QualityCriterion,
)
from finetune.config_types import ALL
from finetune.records import Example
from finetune.stats import (
    MINIMUM_UNITS,
    clopper_pearson,
    examples_needed,
    examples_needed_not_worse,
    mcnemar_exact,
    tango,
)
from finetune.validate.findings import Finding


def check_test_size(config: Config, test: Sequence[Example]) -> list[Finding]:
    """Criteria on groups that are not there, or that have fewer examples than any proof needs.

    The policy `point` proves nothing, so it needs no number of examples.
    """
    if not test:
        return []
    sizes = {**Counter(example.agent for example in test), ALL: len(test)}
    findings: list[Finding] = []
    told = set()  # groups of which a criterion has said that they are too small
    for at, criterion in enumerate(config.decide.criteria):
        where = f"params.yaml: decide.criteria.{at}"
        if isinstance(criterion, QualityCriterion) and criterion.group not in sizes:
            findings.append(_unknown_group(where, criterion, sorted(sizes)))
        elif isinstance(criterion, QualityCriterion) and config.decide.policy == "interval":
            found = _too_small(config, at, criterion, sizes[criterion.group])
            told |= {criterion.group for _ in found}
            findings += found
    if config.decide.policy == "interval":
        findings += [*_tiny_groups(config, sizes, told), *_few_latencies(config, len(test))]
    return findings


def _unknown_group(where: str, criterion: QualityCriterion, known: list[str]) -> Finding:
    what = f"group {criterion.group!r} has no example in the test split"
    return Finding("group-unknown", f"{where}.group", what, f"use one of {', '.join(known)}")


def _too_small(config: Config, at: int, criterion: QualityCriterion, have: int) -> list[Finding]:
    """At most one finding: what this criterion needs at the least, beside what there is."""
    confidence = config.decide.confidence_of_a_look
    needed, condition, way_out = MINIMUM_UNITS, "whatever is answered: a bootstrap", ""
    if criterion.metric == "exact_match" and isinstance(criterion, AtLeast):
        needed, one, two = (examples_needed(criterion.threshold, failures, confidence) for failures in range(3))
        condition = f"even with no failure ({one:,} with one failure, {two:,} with two)"
        reachable = math.floor(clopper_pearson(have, have, confidence, "lower").lower * 100) / 100
        way_out = f", or set decide.criteria.{at}.threshold: {reachable:g}" if reachable > 0 else ""
    elif criterion.metric == "exact_match" and isinstance(criterion, NotWorseThanBaseline):
        needed = examples_needed_not_worse(criterion.margin, confidence)
        condition = "even if both models are right on the same ones"
        reachable = _margin_of(have, confidence)
        way_out = f", or set decide.criteria.{at}.margin: {reachable:g}" if reachable < 1 else ""
    elif criterion.metric == "exact_match" and isinstance(criterion, BetterThanBaseline):
        needed = discordant_needed(confidence)
        condition = "even if the candidate is right and the baseline wrong on each of them"
    if have >= needed:
        return []
    what = (
        f"{_examples(have, criterion.group)} can't prove {criterion.describe()} {condition}: "
        f"{needed:,} are needed at {confidence:.1%} confidence"
    )
    fix = f"add {_examples(needed - have, criterion.group)}{way_out}"
    return [Finding("test-set-too-small", f"params.yaml: decide.criteria.{at}", what, fix)]


def _examples(count: int, group: str) -> str:
    of_group = "" if group == ALL else f" of {group!r}"
    return f"{count:,} test example{'' if count == 1 else 's'}{of_group}"


def _margin_of(have: int, confidence: float) -> float:
    """The smallest margin in hundredths that so many examples can show; 1 where there is none below."""
    for hundredths in range(1, 100):
        if tango(0, 0, have, confidence, "lower").lower > -hundredths / 100:
            return hundredths / 100
    return 1.0


def discordant_needed(confidence: float) -> int:
    """The least number of examples, all right by the candidate alone, at which McNemar's exact test is convinced."""
    pairs = 1
    while mcnemar_exact(pairs, 0, "greater") >= 1 - confidence:
        pairs += 1
    return pairs


def _tiny_groups(config: Config, sizes: dict[str, int], told: set[str]) -> Iterator[Finding]:
    """Groups of criteria that may pass, but on so few examples that each of them moves the score by over 5 points."""
    asked = [(at, item.group) for at, item in enumerate(config.decide.criteria) if isinstance(item, QualityCriterion)]
    for group in dict.fromkeys(group for _, group in asked):
        have = sizes.get(group, MINIMUM_UNITS)
        if have < MINIMUM_UNITS and group not in told:
            first = next(at for at, other in asked if other == group)
            what = f"{_examples(have, group)}: one answer moves the score by {1 / have:.1%}"
            fix = f"add {_examples(MINIMUM_UNITS - have, group)}"
            yield Finding("test-set-tiny", f"params.yaml: decide.criteria.{first}", what, fix)


def _few_latencies(config: Config, have: int) -> list[Finding]:
    """Each prompt is timed once, so there are no more latencies than test examples."""
    asked = config.evaluate.latency.prompts
    if asked <= have or not any(isinstance(item, LatencyAtMost) for item in config.decide.criteria):
        return []
    what = f"{asked:,} prompts are to be timed, and the test split has {have:,}"
    fix = f"set evaluate.latency.prompts: {have}" if have >= MINIMUM_UNITS else f"add {_examples(asked - have, ALL)}"
    return [Finding("test-set-too-small", "params.yaml: evaluate.latency.prompts", what, fix)]
