"""Check the composition of the splits: agents, labels, and answers that a model could give without reading."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from finetune.config.types import SPLITS, Split
from finetune.config.validate import ValidateParams
from finetune.console import short
from finetune.records.examples import Example
from finetune.records.near_duplicates import words_of
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

# Not a share: each of fifty equally frequent agents has 2%, which is perfectly balanced. Beyond 20:1, the rare one
# occurs in less than one of the other's batches of 16, and its gradients are outweighed by the other's.
MOST_TIMES = 20
CONSTANT = 0.8  # the share of an agent's answers from which on a single one is nearly constant
FEW_ROWS = 20  # with fewer rows, all may have one answer by chance
LONG_ANSWER = 8  # words; shorter ones are often names and labels, which naturally repeat
REPEATED = 0.05
NAMED = 5  # labels listed by name; the others are counted

Splits = Mapping[Split, Sequence[Example]]

CODES |= {
    "agents-imbalanced": Code("warning", "quality", "One agent has over twenty times the rows of another."),
    "agent-missing": Code("error", "quality", "An agent in test has no training rows.", in_params=False),
    "labels-imbalanced": Code("warning", "quality", "One label has over twenty times the rows of another."),
    "label-missing-in-train": Code("error", "quality", "A label in test has no training rows.", in_params=False),
    "label-missing-in-test": Code("warning", "verdict", "A label in train has no test examples."),
    "answers-constant": Code("warning", "verdict", "One answer is correct for more than four in five rows."),
    "answers-repeated": Code("note", "quality", "Identical long answers in many rows."),
    "system-prompt-unused": Code("warning", "quality", "A system prompt for an agent that has no rows."),
}


def check_balance(params: ValidateParams, splits: Splits) -> list[Finding]:
    """Return all findings about the frequency of agents, labels and answers in the splits."""
    constant = constant_answers(splits["train"])
    return [
        *_missing_agents(splits),
        *_imbalanced_agents(params, splits),
        *_labels(splits),
        *_constant(constant, splits["test"]),
        *_repeated(splits["train"], {answer for _, answer in constant}),
        *_unused_prompts(params, splits),
    ]


def _missing_agents(splits: Splits) -> Iterator[Finding]:
    if not splits["train"]:
        return  # reported already
    trained = {example.agent for example in splits["train"]}
    for agent, count in _sorted(Counter(example.agent for example in splits["test"])):
        if agent not in trained:
            what = f"{agent!r} has {count:,} test examples but none in train"
            near = get_close_matches(agent, trained, n=1)
            fix = f"rename it to {near[0]!r} (agent of its source), or add rows" if near else "add rows of it to train"
            yield Finding("agent-missing", "data/prepared/train.jsonl", what, fix)


def _imbalanced_agents(params: ValidateParams, splits: Splits) -> Iterator[Finding]:
    counts = _sorted(Counter(example.agent for example in splits["train"]))
    if len(counts) < 2 or counts[0][1] <= MOST_TIMES * counts[-1][1]:
        return
    (most, large), (least, small) = counts[0], counts[-1]
    what = (
        f"{most!r} has {large:,} of the {len(splits['train']):,} train examples and {least!r} has {small:,}, "
        f"{large / small:.0f} times fewer"
    )
    sources = {agent: Counter(e.source for e in splits["train"] if e.agent == agent) for agent in (most, least)}
    names = [source.name for source in params.data.sources]
    largest = min(sources[most], key=lambda name: (-sources[most][name], name))
    fix = f"add rows of {least!r}"
    if largest in names and largest not in sources[least]:  # otherwise a cap would remove rows of both
        rows = sum(example.agent == least for name in SPLITS for example in splits[name])
        fix += f", or set data.sources.{names.index(largest)}.cap: {MOST_TIMES * rows}"
    yield Finding("agents-imbalanced", "data/prepared/train.jsonl", what, fix)


def _labels(splits: Splits) -> Iterator[Finding]:
    """Compare the labels of train and test by agent; rows without a label are ignored."""
    train, test = (_labels_by_agent(splits[name]) for name in ("train", "test"))
    for agent in sorted(train.keys() & test.keys()):
        new = {label: count for label, count in test[agent].items() if label not in train[agent]}
        if new:
            what = f"{_labels_named(new)} of {agent!r} in test, with {sum(new.values()):,} examples, but not in train"
            fix = "add rows of them to train, or set data.split.stratify_by: label"
            yield Finding("label-missing-in-train", "data/prepared/train.jsonl", what, fix)
        untested = {label: count for label, count in train[agent].items() if label not in test[agent]}
        if untested:
            total = sum(untested.values())
            what = f"{_labels_named(untested)} of {agent!r} in train, with {total:,} examples, but not in test"
            fix = "add test rows of them, or set data.split.stratify_by: label"
            yield Finding("label-missing-in-test", "data/prepared/test.jsonl", what, fix)
    for agent in sorted(train):
        counts = _sorted(train[agent])
        (most, large), rarest = counts[0], counts[-1][1]
        rare = {label: count for label, count in counts if large > MOST_TIMES * count}
        if rare:
            what = (
                f"label {short(most)!r} of {agent!r} has {large:,} train examples, up to {large / rarest:.0f} "
                f"times as many as {_labels_named(rare)} ({rarest:,} for the rarest)"
            )
            fix = "add rows of the rare labels, or judge this agent by macro_f1 of a classification scorer"
            yield Finding("labels-imbalanced", "data/prepared/train.jsonl", what, fix)


def _labels_by_agent(examples: Sequence[Example]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for example in examples:
        if example.label is not None:
            found.setdefault(example.agent, Counter())[example.label] += 1
    return found


def _labels_named(labels: Mapping[str, int]) -> str:
    names = sorted(labels)
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    plural = "label" if len(names) == 1 else "labels"
    return f"{len(names):,} {plural} ({', '.join(short(name) for name in names[:NAMED])}{more})"


def constant_answers(train: Sequence[Example]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return for each agent with a nearly constant answer how often it occurs, and in how many rows."""
    answers: dict[str, Counter[str]] = {}
    for example in train:
        answers.setdefault(example.agent, Counter())[example.completion.strip()] += 1
    found = {}
    for agent in sorted(answers):
        answer, count = _sorted(answers[agent])[0]
        rows = answers[agent].total()
        if rows >= FEW_ROWS and count > CONSTANT * rows:
            found[agent, answer] = (count, rows)
    return found


def _constant(found: Mapping[tuple[str, str], tuple[int, int]], test: Sequence[Example]) -> Iterator[Finding]:
    for (agent, answer), (count, rows) in found.items():
        tested = [example.completion.strip() == answer for example in test if example.agent == agent]
        scored = f"; a majority-class baseline would score {sum(tested) / len(tested):.3f} on test" if tested else ""
        share = f"{count:,} of {rows:,} train answers of {agent!r} ({100 * count / rows:.3g}%)"
        worth = max([count / rows, *([sum(tested) / len(tested)] if tested else [])])
        more = math.ceil(worth * 100) / 100
        fix = f"judge {agent!r} by macro_f1 of a classification scorer, or require more than {more:g}"
        yield Finding("answers-constant", "data/prepared/train.jsonl", f"{share} are {short(answer)!r}{scored}", fix)


def _repeated(train: Sequence[Example], constant: set[str]) -> Iterator[Finding]:
    """Find long answers that occur in many rows, except those already reported as constant."""
    counts = Counter(example.completion.strip() for example in train)
    limit = max(REPEATED * len(train), REPEATED * FEW_ROWS)
    often = [(answer, count) for answer, count in _sorted(counts) if count > limit and answer not in constant]
    often = [(answer, count) for answer, count in often if len(words_of(answer)) > LONG_ANSWER]
    if often:
        answer, count = often[0]
        more = f", and {len(often) - 1} other long answers are as frequent" if len(often) > 1 else ""
        share = f"{count:,} of {len(train):,} train answers ({100 * count / len(train):.3g}%)"
        fix = "keep them if this answer is intended; otherwise drop them with data.filters.drop_matching"
        yield Finding("answers-repeated", "data/prepared/train.jsonl", f"{share} are {short(answer)!r}{more}", fix)


def _unused_prompts(params: ValidateParams, splits: Splits) -> Iterator[Finding]:
    agents = {example.agent for name in SPLITS for example in splits[name]}
    for agent in params.data.system_prompts:
        if agents and agent not in agents:
            near = get_close_matches(agent, agents, n=1)
            known = ", ".join(sorted(agents)[:NAMED])
            advice = f"did you mean {near[0]!r}?" if near else f"remove it, or name one of the agents: {known}"
            what = f"none of the {sum(len(splits[name]) for name in SPLITS):,} rows belongs to agent {agent!r}"
            yield Finding("system-prompt-unused", f"params.yaml: data.system_prompts.{agent}", what, advice)


def _sorted(counts: Counter[str]) -> list[tuple[str, int]]:
    """Sort by frequency, then by name, regardless of the order of the rows."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
