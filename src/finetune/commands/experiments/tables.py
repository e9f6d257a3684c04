"""The tables and sentences of `finetune compare`, for a terminal or as Markdown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.commands.experiments.comparison import Compared, Comparison, cost_of, describe, differing
from finetune.commands.experiments.differences import Difference
from finetune.console import markdown_table, say, table
from finetune.records.examples import ALL

RIGHT_COLUMNS = ["group", "metric", "n", "A", "B", "B - A", "interval", "both", "only A", "only B", "neither", "p"]
OTHER_COLUMNS = ["group", "metric", "n", "A", "B", "B - A", "interval", "method"]


def print_comparison(comparison: Comparison, *, as_markdown: bool) -> None:
    """Print the comparison."""
    draw = print_markdown if as_markdown else table
    a, b, measured = comparison.a, comparison.b, comparison.measured
    sides = [(letter, *map(_text, describe(side).values())) for letter, side in (("A", a), ("B", b))]
    draw("compare", ["", "run", "adapter", "verdict"], [[*side[:2], side[2][:12], side[3]] for side in sides])
    for warning in comparison.warnings:
        say(f"warning: {warning}")
    sure = f"{100 * comparison.confidence:.4g}%, two-sided"
    right = [right_row(*row) for row in measured if row[1].crossed]
    other = [other_row(*row) for row in measured if not row[1].crossed]
    if right:
        draw(f"correct answers, B - A ({sure}; p: exact McNemar)", RIGHT_COLUMNS, right)
    if other:
        draw(f"means and whole-set metrics, B - A ({sure})", OTHER_COLUMNS, other)
    for line in [*sentences(measured, comparison.confidence), *not_compared(comparison.found)]:
        say(line)
    if cost := [[title, _text(old), _text(new)] for title, old, new in cost_of(a, b)]:
        draw("cost", ["", "A", "B"], cost)
    say("latencies of separate sessions are not paired: a different load on the machine shifts a whole session")
    changed = [[key, _text(old), _text(new)] for key, old, new in differing(a.params, b.params)]
    if changed:
        draw("params that differ", ["key", "A", "B"], changed)
    else:
        say("the params are identical")
    say(look_sentence(comparison.looks))


def not_compared(found: Iterable[Compared]) -> list[str]:
    """List what could not be compared, and why."""
    return [f"{_subject(item)}: not compared: {item.why_not}" for item in found if not item.difference]


def right_row(item: Compared, difference: Difference) -> list[str]:
    """Build a row of RIGHT_COLUMNS."""
    pairs = difference.crossed
    assert pairs is not None
    counts = map(str, (pairs.both, pairs.only_first, pairs.only_second, pairs.neither))
    return [*_figures(item, difference), *counts, "" if pairs.p is None else f"{pairs.p:.2g}"]


def other_row(item: Compared, difference: Difference) -> list[str]:
    """Build a row of OTHER_COLUMNS."""
    clustered = f", {difference.clusters} clusters" if difference.clusters < difference.examples else ""
    return [*_figures(item, difference), f"{difference.interval.refusal or difference.interval.method}{clustered}"]


def _figures(item: Compared, difference: Difference) -> list[str]:
    found = difference.interval
    name = item.metric.name if item.metric.higher_is_better else f"{item.metric.name} (lower is better)"
    bounds = "none" if found.refused else f"{found.lower:+.4f} … {found.upper:+.4f}"
    numbers = [f"{difference.first:.4f}", f"{difference.second:.4f}", f"{found.estimate:+.4f}", bounds]
    return [item.group, name, str(difference.examples), *numbers]


def sentences(measured: Sequence[tuple[Compared, Difference]], confidence: float) -> list[str]:
    """Interpret the intervals in words, including the limits of making many comparisons."""
    lines = []
    for letter, side in (("A", "first"), ("B", "second")):
        better = [_subject(item) for item, difference in measured if difference.better == side]
        if better:
            lines.append(f"{letter} is better (the interval excludes 0): {', '.join(better)}")
    if not lines:
        lines.append("no difference is established: every interval contains 0 or could not be computed")
    clustered = [difference for _, difference in measured if difference.clusters < difference.examples]
    if clustered:
        lines.append(
            "examples of one cluster are not independent: whole clusters were resampled, and McNemar's test was skipped"
        )
    if len(measured) > 1:
        chance = len(measured) * (1 - confidence)
        lines.append(
            f"intervals are not corrected for multiple comparisons: without any difference, {chance:.2g} of "
            f"{len(measured)} would "
            "exclude 0 by chance"
        )
    return lines


def look_sentence(looks: Mapping[str, Any]) -> str:
    """Describe the looks in words."""
    declared = "" if looks["declared"] is None else f" of {looks['declared']} declared (decide.looks)"
    which = ", ".join(f"{letter} was look {looks[key]}" for letter, key in (("A", "a"), ("B", "b")) if looks[key])
    choice = "; choosing the better of two runs on a test set makes that run look better than it is"
    return f"looks at this test set: {looks['taken']}{declared}{f'; {which}' if which else ''}{choice}"


def _subject(item: Compared) -> str:
    return item.metric.name if item.group == ALL else f"{item.metric.name} of {item.group}"


def _text(value: Any) -> str:
    """Format a value of a report or of params.yaml; `none` if there is none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10**6 else str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def print_markdown(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as Markdown, for an issue or a pull request."""
    say("\n".join(["", f"### {title}", "", *markdown_table(columns, rows), ""]))
