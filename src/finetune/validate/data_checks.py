"""Checks of the splits against each other and against what the gate asks of the test set."""

from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.config import AtLeast, Config, QualityCriterion
from finetune.config_types import ALL, Split
from finetune.records import Example, leaked, text_key
from finetune.stats import examples_needed
from finetune.validate.findings import Finding, Severity


def check_overlap(splits: Mapping[Split, list[Example]]) -> list[Finding]:
    """A prompt in train and in a held-out split makes every score a memory test."""
    findings = []
    held_out: tuple[Split, ...] = ("validation", "test")
    for name in held_out:
        found = leaked(splits["train"], splits[name])
        if found:
            what = f"{len(found)} of {len(splits[name])} prompts stand in train too (ids {', '.join(found[:3])}…)"
            where = f"data/prepared/{name}.jsonl"
            findings.append(Finding("split-overlap", "error", where, what, "run prepare again; it keeps prompts apart"))
    return findings


def check_repeated_prompts(test: Sequence[Example]) -> list[Finding]:
    """Copies of one prompt are not new evidence: the intervals of the gate take each example for an independent one."""
    repeated = len(test) - len({text_key(example.prompt) for example in test})
    if not repeated:
        return []
    what = f"{repeated} of {len(test)} test examples repeat a prompt; intervals take them for independent ones"
    severity: Severity = "error" if repeated > len(test) / 20 else "warning"
    fix = "set data.deduplicate: exact, or collect other test examples"
    return [Finding("test-prompts-repeated", severity, "data/prepared/test.jsonl", what, fix)]


def check_test_size(config: Config, test: Sequence[Example]) -> list[Finding]:
    """A test set on which even a perfect score could not pass: the verdict would be known before the run."""
    findings = []
    sizes = Counter(example.agent for example in test) | Counter({ALL: len(test)})
    confidence = config.decide.confidence_of_a_look
    for at, criterion in enumerate(config.decide.criteria):
        where = f"params.yaml: decide.criteria.{at}"
        if not isinstance(criterion, QualityCriterion):
            continue
        if criterion.group not in sizes:
            findings.append(_unknown_group(where, criterion, sorted(sizes)))
        elif isinstance(criterion, AtLeast) and criterion.metric == "exact_match":
            needed, have = examples_needed(criterion.threshold, 0, confidence), sizes[criterion.group]
            if have < needed and config.decide.policy == "interval":
                what = (
                    f"{have} test examples of {criterion.group!r} can't prove {criterion.describe()} even with no "
                    f"failure: {needed} are needed at {confidence:.1%} confidence"
                )
                findings.append(Finding("test-set-too-small", "warning", where, what, "add test examples or lower it"))
    return findings


def _unknown_group(where: str, criterion: QualityCriterion, known: list[str]) -> Finding:
    what = f"group {criterion.group!r} has no example in the test split"
    return Finding("group-unknown", "error", f"{where}.group", what, f"use one of {', '.join(known)}")


def check_data(config: Config, splits: Mapping[Split, list[Example]]) -> list[Finding]:
    """All findings about the splits."""
    return check_overlap(splits) + check_repeated_prompts(splits["test"]) + check_test_size(config, splits["test"])
