"""The sections of `reports/report.html` as plain data: the measurements, as text and drawings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.config.scorers import Metric
from finetune.decide.report.formatting import (
    MINUS,
    Kind,
    amount,
    duration,
    figure,
    format_count,
    format_short,
    format_value,
    name,
    percent,
    spaced,
)
from finetune.decide.report.readings import ANSWER_FACTS, ICONS, Reading, examples_counted, known_metrics
from finetune.decide.report.svg import Scale, draw_criterion, draw_dots, draw_lines, draw_pair
from finetune.decide.run_reports import Curves, Decided
from finetune.records.examples import ALL, Prediction, Timing
from finetune.reports.cost import LatencyReport
from finetune.reports.evaluation import EvaluationReport, GroupReport
from finetune.score.metrics import SIDES
from finetune.score.metrics import counted as counted_by
from finetune.statistics.proportions import wilson

MOST_DOTS = 400
CLUSTERED = "no interval here: examples come in clusters, which the intervals of the criteria take into account"
PANELS = (
    (("loss", "validation_loss"), "Loss (nats/token)"),
    (("learning_rate",), "Learning rate"),
    (("gradient_norm",), "Gradient norm"),
    (("tokens_per_second",), "Tokens/s"),
    (("memory_gigabytes",), "Memory (GB)"),
)


def show_criteria(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Return each criterion with its values as text and its drawing."""
    return [
        {
            "status": item.outcome.status,
            "icon": ICONS[item.outcome.status],
            "text": name(item.outcome.criterion, 160),
            "estimate": item.estimate,
            "bounds": item.bounds,
            "asked": item.asked,
            "reason": name(item.outcome.reason, 400),
            "method": name(item.outcome.method),
            "drawing": draw_criterion(item),
        }
        for item in readings
    ]


def show_key_figures(readings: Sequence[Reading], leading: Reading | None, run: Decided) -> list[dict[str, str]]:
    """Return at most four key figures: the leading metric, the evidence, and the time and memory of an answer."""
    latency, memory = run.reports.cost.latency, run.reports.cost.memory
    found = []
    if leading is not None and leading.outcome.metric is not None and leading.candidate is not None:
        kind: Kind = "share" if leading.kind in ("share", "points") else "number"
        of = "" if leading.outcome.group in (None, "all") else f", {name(leading.outcome.group, 40)}"
        value = leading.outcome.estimate if leading.kind == kind else leading.candidate
        metric = name(spaced(leading.outcome.metric), 40)
        base = "" if leading.base is None else f"baseline {format_value(leading.base, kind)}"
        found.append(
            {"label": f"{metric[:1].upper()}{metric[1:]}{of}", "value": format_value(value, kind), "than": base}
        )
    examples = run.reports.evaluation.groups[ALL].examples
    found.append({"label": "Test examples", "value": f"{examples:,}", "than": "not used in training"})
    mean, old = (times.mean_seconds if times else None for times in (latency.candidate, latency.baseline))
    base = amount(old, "s")
    found.append({"label": "Mean answer time", "value": amount(mean, "s"), "than": f"baseline {base}"})
    limit = next((f"limit {format_short(r.outcome.target, 'bytes')}" for r in readings if r.kind == "bytes"), "")
    found.append({"label": "Peak memory", "value": amount(memory.largest_bytes, "bytes"), "than": limit})
    return found


def show_groups(evaluation: EvaluationReport, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return each metric with one row per group: both sides, with two-sided 95% Wilson intervals for proportions.

    Wilson's interval assumes independent examples. It is too narrow for clustered ones, so they have none.
    """
    metrics, groups = known_metrics(evaluation.scorers), evaluation.groups
    names = list(dict.fromkeys(key for group in groups.values() for key in group.candidate if key not in ANSWER_FACTS))
    found = []
    for key in names:
        metric = metrics.get(key, Metric(key, "mean"))
        rows = [
            _group_row(metric, group, _examples_of(metric, group, evaluation, predictions), measured)
            for group, measured in groups.items()
            if any(measured.figures(side).get(key) is not None for side in SIDES)
            and not (group == ALL and is_of_one_group(key, evaluation))
        ]
        if rows:
            better, drawn = "higher" if metric.higher_is_better else "lower", any(row["drawing"] for row in rows)
            found.append({"metric": name(key), "note": f"{better} is better", "drawn": drawn, "rows": rows})
    return found


def is_of_one_group(metric: str, evaluation: EvaluationReport) -> bool:
    """Return whether the metric's scorer applies to a single group, which then equals the group of all examples."""
    scorers = evaluation.scorers
    of = (scorers.get(metric) or scorers.get(metric.rsplit(".", 1)[0]) or {}).get("of")
    return of is not None and len(of) == 1 and of[0] in evaluation.groups


def _examples_of(
    metric: Metric, group: str, evaluation: EvaluationReport, predictions: Sequence[Prediction]
) -> int | None:
    """Return the number of examples of a metric, from the predictions if available, else from the scorer's settings."""
    if count := len(counted_by(metric, predictions, group)):
        return count
    return examples_counted(metric.name, group, evaluation)


def _group_row(metric: Metric, group: str, examples: int | None, measured: GroupReport) -> dict[str, Any]:
    share = metric.kind == "binary"
    values = {side: measured.figures(side).get(metric.name) for side in SIDES}
    row: dict[str, Any] = {"group": name(group), "whole": group == ALL, "examples": examples, "drawing": None}
    row["clustered"] = share and measured.clusters < measured.examples
    drawn = []
    for side, value in values.items():
        bounds = share_interval(value, examples) if share and not row["clustered"] else None
        row[side] = format_value(value, "share" if share else "number")
        row[f"{side}_bounds"] = f"{percent(bounds[0])} to {percent(bounds[1])}" if bounds else None
        if value is not None:
            drawn.append((value, *(bounds or (value, value))))
    if math.isfinite(metric.lowest) and math.isfinite(metric.highest) and len(drawn) == len(SIDES):
        about = f"baseline {row['baseline']}, candidate {row['candidate']}"
        row["drawing"] = draw_pair(drawn[0], drawn[1], Scale(metric.lowest, metric.highest), about)
    return row


def clustered_note(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Explain why a proportion has no interval; None if all have one."""
    return CLUSTERED if any(row["clustered"] for metric in groups for row in metric["rows"]) else None


def share_interval(share: float | None, examples: int | None) -> tuple[float, float] | None:
    """Return the two-sided 95% Wilson interval of a proportion of `examples` examples."""
    if share is None or not examples:
        return None
    found = wilson(min(round(share * examples), examples), examples, 0.95, "two-sided")
    return found.lower, found.upper


def show_answers(groups: Mapping[str, GroupReport]) -> list[dict[str, Any]]:
    """Describe the answers of each group on both sides."""
    return [
        {
            "group": name(group),
            "examples": measured.examples,
            "clusters": measured.clusters,
            "majority": percent(measured.majority_share),
            **{
                side: {
                    "tokens": format_count(measured.figures(side).get("mean_tokens")),
                    "cut": percent(measured.figures(side).get("cut_off")),
                    "failed": f"{int(measured.figures(side).get('failed') or 0):,}",
                }
                for side in SIDES
            },
        }
        for group, measured in groups.items()
    ]


def show_curves(curves: Curves) -> list[dict[str, Any]]:
    """Return one panel per measure, with a drawing if it was logged."""
    found = []
    for names, title in PANELS:
        series = [(spaced(key), curves.get(key, [])) for key in names]
        ends = [f"{key} from {figure(points[0][1])} to {figure(points[-1][1])}" for key, points in series if points]
        drawing = draw_lines(series, f"{title} over the steps: {', '.join(ends)}", tick)
        if drawing is not None:
            legend = [key for key, points in series if points]
            found.append({"title": title, "legend": legend if len(names) > 1 else [], "drawing": drawing})
    return found


def tick(value: float) -> str:
    """Format a tick label of a chart: `1,500`, `0.002`, `2e-5`."""
    return f"{value:,.4g}" if not value or abs(value) >= 1e-4 else f"{value:.3g}".replace("e-0", "e-")


def show_latency(latency: LatencyReport, timings: Sequence[Timing]) -> dict[str, Any]:
    """Return the times of both sides as text, with a drawing of every measured time if available."""
    rows = [
        {
            "side": side,
            **{key: amount(getattr(measured, f"{key}_seconds"), "s") for key in ("mean", "p50", "p95", "mean_first")},
            "tokens": format_count(measured.mean_tokens),
            "speed": format_count(measured.tokens_per_second),
        }
        for side in SIDES
        if (measured := latency.side(side))
    ]
    drawing = None
    if timings:
        step = math.ceil(len(timings) / MOST_DOTS)
        kept = sorted(timings, key=lambda row: row.candidate_seconds)[::step]
        known = [row.baseline_seconds for row in kept if row.baseline_seconds is not None]
        both = [("baseline", known)] if known else []
        both.append(("candidate", [row.candidate_seconds for row in kept]))
        means = ", ".join(f"{row['side']} {row['mean']} on average" for row in rows)
        drawing = draw_dots(both, f"Seconds per answer, {len(kept)} answers per side: {means}")
    return {"rows": rows, "drawing": drawing, "prompts": latency.prompts, "kept": len(timings) and len(kept)}


def show_plan(run: Decided) -> list[dict[str, str]]:
    """Return the plan beside the measurements."""
    plan, cost = run.reports.validation.plan, run.reports.train_cost
    planned, peak = (plan.memory_bytes or {}).get("peak"), cost.peak_memory_bytes
    wall, flops = cost.wall_seconds, (plan.flops or 0) + (plan.evaluation_flops or 0)
    rate = f"{flops / wall / 1e12:.3g} TFLOP/s reached" if flops and wall else ""
    apart = f"{100 * (peak / planned - 1):+.1f}%".replace("-", MINUS) if planned and peak else ""
    steps = {"planned": f"{run.reports.validation.schedule.steps:,}", "measured": f"{run.reports.train.steps:,}"}
    memory = {"planned": amount(planned, "bytes"), "measured": amount(peak, "bytes")}
    time = {"planned": f"{flops / 1e12:,.3g} TFLOP", "measured": duration(wall)}
    rows = (("Steps", steps, ""), ("Training, peak memory", memory, apart), ("Training, time", time, rate))
    return [{"what": what, **figures, "apart": told} for what, figures, told in rows]


def show_seeds(seeds: Mapping[str, Mapping[str, Any]] | None, readings: Sequence[Reading]) -> dict[str, Any] | None:
    """Return one column per seed and one row per criterion, with minimum and maximum; None if only one seed ran."""
    if not seeds:
        return None
    kinds = {item.outcome.criterion: item.kind for item in readings}
    estimates = [{key: found["estimate"] for key, found in run["criteria"].items()} for run in seeds.values()]
    rows = []
    for criterion in dict.fromkeys(key for run in estimates for key in run):
        values = [run.get(criterion) for run in estimates]
        known = [value for value in values if value is not None]
        kind: Kind = kinds.get(criterion, "number")
        spread = f"{format_value(min(known), kind)} to {format_value(max(known), kind)}" if known else "n/a"
        shown = [format_value(value, kind) for value in values]
        rows.append({"criterion": name(criterion, 160), "values": shown, "spread": spread})
    return {"runs": [{"seed": seed, **run} for seed, run in seeds.items()], "rows": rows}
