"""Check the test set against the gate: find criteria that could not pass even if every answer were right."""

from collections.abc import Iterator, Sequence

from finetune.config.criteria import LatencyAtMost, LatencyQuantileAtMost, QualityCriterion
from finetune.config.validate import ValidateParams
from finetune.records.examples import ALL, Example
from finetune.statistics.bootstrap import MINIMUM_UNITS
from finetune.statistics.proportions import examples_needed_quantile
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CODES |= {
    "test-set-too-small": Code("warning", "verdict", "Too few test examples for a criterion, even if all are correct."),
    "test-set-tiny": Code(
        "warning", "verdict", "A criterion on fewer than 20 examples: each one moves the score noticeably."
    ),
    "group-unknown": Code("error", "verdict", "A criterion on a group that has no test examples."),
    "group-ambiguous": Code(
        "error", "verdict", "An agent and a source share a name but not the same examples.", binding=True
    ),
}


def check_test_size(params: ValidateParams, test: Sequence[Example]) -> list[Finding]:
    """Find criteria on groups that do not exist, or that have fewer examples than any proof needs.

    The policy `point` proves nothing, so it needs no minimum of examples.
    """
    if not test:
        return []
    findings: list[Finding] = []
    reported = set()  # groups already reported as too small
    for at, criterion in enumerate(params.decide.criteria):
        if isinstance(criterion, LatencyQuantileAtMost) and params.decide.policy == "interval":
            findings += _few_for_quantile(params, at, criterion)
        if not isinstance(criterion, QualityCriterion):
            continue
        have = _examples_of(params, test, criterion)
        if not have:
            findings.append(_unknown_group(at, criterion, test))
        elif params.decide.policy == "interval":
            problems = _too_small(params, at, criterion, have)
            reported |= {criterion.group for _ in problems}
            findings += problems
    findings += [*_unknown_scored(params, test), *_ambiguous(params, test)]
    if params.decide.policy == "interval":
        findings += [*_tiny_groups(params, test, reported), *_few_latencies(params, len(test))]
    return findings


def _examples_of(params: ValidateParams, test: Sequence[Example], criterion: QualityCriterion) -> int:
    """Count the test examples of a criterion: those of its group that its scorer applies to."""
    of_metric = {
        metric.name: scorer.of for name, scorer in params.evaluate.scorers.items() for metric in scorer.metrics(name)
    }
    of = of_metric.get(criterion.metric)
    members = [example for example in test if criterion.group in (ALL, example.agent, example.source)]
    return sum(of is None or example.agent in of or example.source in of for example in members)


def _unknown_scored(params: ValidateParams, test: Sequence[Example]) -> Iterator[Finding]:
    """Find scorers of agents or sources without test examples."""
    known = {name for example in test for name in (example.agent, example.source)}
    for name, scorer in params.evaluate.scorers.items():
        unknown = sorted(set(scorer.of or ()) - known)
        if unknown:
            what = f"{', '.join(unknown)} has no examples in the test split"
            where = f"params.yaml: evaluate.scorers.{name}.of"
            yield Finding("group-unknown", where, what, f"use some of {', '.join(sorted(known))}, or null for all")


def _ambiguous(params: ValidateParams, test: Sequence[Example]) -> Iterator[Finding]:
    """Find group names in criteria or scorers that match both an agent and another source."""
    asked = {item.group for item in params.decide.criteria if isinstance(item, QualityCriterion)}
    asked |= {name for scorer in params.evaluate.scorers.values() for name in scorer.of or ()}
    for name in sorted(asked):
        by_agent, by_source = ({item.id for item in test if getattr(item, key) == name} for key in ("agent", "source"))
        if by_agent and by_source and by_agent != by_source:
            what = f"{name!r} names both an agent ({len(by_agent):,} test examples) and a source ({len(by_source):,})"
            yield Finding("group-ambiguous", "params.yaml: data.sources", what, "rename the source")


def _few_for_quantile(params: ValidateParams, at: int, criterion: LatencyQuantileAtMost) -> list[Finding]:
    """Find quantiles without an upper bound: too few prompts are timed for one of them to exceed the quantile."""
    needed = examples_needed_quantile(criterion.quantile, params.decide.confidence_of_a_look)
    asked = params.evaluate.latency.prompts
    if asked >= needed:
        return []
    what = f"{asked:,} timed prompts can't prove {criterion.describe()}: {needed:,} are required"
    fix = f"set evaluate.latency.prompts: {needed}"
    return [Finding("test-set-too-small", f"params.yaml: decide.criteria.{at}", what, fix)]


def _unknown_group(at: int, criterion: QualityCriterion, test: Sequence[Example]) -> Finding:
    known = sorted({ALL, *(name for example in test for name in (example.agent, example.source))})
    what = f"group {criterion.group!r} has no examples in the test split"
    if criterion.group in known:
        what = f"{criterion.metric} has no scores for test examples of {criterion.group!r}"
    return Finding("group-unknown", f"params.yaml: decide.criteria.{at}.group", what, f"use one of {', '.join(known)}")


def _too_small(params: ValidateParams, at: int, criterion: QualityCriterion, have: int) -> list[Finding]:
    """Return at most one finding: the minimum that this criterion needs, beside the actual number."""
    confidence = params.decide.confidence_of_a_look
    needed, condition, way_out = MINIMUM_UNITS, "whatever the answers are: a bootstrap", ""
    if params.evaluate.metrics[criterion.metric].kind == "binary":
        needed, condition = criterion.least_examples(confidence) or (needed, condition)
        reachable = criterion.reachable(have, confidence)
        way_out = f", or set decide.criteria.{at}.{reachable}" if reachable else ""
    if have >= needed:
        return []
    what = (
        f"{_examples(have, criterion.group)} can't prove {criterion.describe()} {condition}: "
        f"{needed:,} are required at {confidence:.1%} confidence"
    )
    fix = f"add {_examples(needed - have, criterion.group)}{way_out}"
    return [Finding("test-set-too-small", f"params.yaml: decide.criteria.{at}", what, fix)]


def _examples(count: int, group: str) -> str:
    of_group = "" if group == ALL else f" of {group!r}"
    return f"{count:,} test example{'' if count == 1 else 's'}{of_group}"


def _tiny_groups(params: ValidateParams, test: Sequence[Example], reported: set[str]) -> Iterator[Finding]:
    """Find groups that may pass, but are so small that each example changes the score by over 5 points."""
    asked = [(at, item) for at, item in enumerate(params.decide.criteria) if isinstance(item, QualityCriterion)]
    for group in dict.fromkeys(item.group for _, item in asked):
        first, criterion = next((at, item) for at, item in asked if item.group == group)
        have = _examples_of(params, test, criterion)
        if 0 < have < MINIMUM_UNITS and group not in reported:
            what = f"{_examples(have, group)}: one answer moves the score by {1 / have:.1%}"
            fix = f"add {_examples(MINIMUM_UNITS - have, group)}"
            yield Finding("test-set-tiny", f"params.yaml: decide.criteria.{first}", what, fix)


def _few_latencies(params: ValidateParams, have: int) -> list[Finding]:
    """Compare latency criteria with the test set: each prompt is timed once, so latencies are limited by it."""
    asked = params.evaluate.latency.prompts
    if asked <= have or not any(
        isinstance(item, LatencyAtMost | LatencyQuantileAtMost) for item in params.decide.criteria
    ):
        return []
    what = f"{asked:,} prompts are to be timed, but the test split has {have:,}"
    fix = f"set evaluate.latency.prompts: {have}" if have >= MINIMUM_UNITS else f"add {_examples(asked - have, ALL)}"
    return [Finding("test-set-too-small", "params.yaml: evaluate.latency.prompts", what, fix)]
