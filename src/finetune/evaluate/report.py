"""The reports of evaluate: the sides, their quality and their cost, as JSON and as a summary on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finetune.config.evaluate import EvaluateParams
from finetune.config.scorers import Classification
from finetune.console import say, table
from finetune.evaluate.groups import describe_classes, describe_group, groups_of
from finetune.files.hashing import sha256_json
from finetune.hardware.devices import describe_machine
from finetune.hardware.versions import versions
from finetune.records.examples import Prediction
from finetune.reports.cost import CostReport, LatencyReport, MemoryReport
from finetune.reports.evaluation import EvaluationReport
from finetune.score.metrics import SIDES
from finetune.score.scoring import Scored

if TYPE_CHECKING:
    from finetune.evaluate.cost import LatencyPass
    from finetune.evaluate.sides import Sides

REPORTED = {"latency", "memory", "batch_size", "max_new_tokens"}  # reported settings: no address, no path


def describe_sides(sides: "Sides", adapter_sha256: str) -> dict[str, Any]:
    """Return the sides, their settings (None: unknown), and the hash by which looks at the test set are counted.

    That is the adapter's hash if it decodes greedily on its base model. For anything that could be tried many times
    with one adapter (a merged form, other sampling, a server), it is the hash of everything that identifies it.
    """
    candidate = sides.candidate
    plain = candidate.described["form"] == "adapter" and not candidate.settings["do_sample"]
    other = [adapter_sha256, candidate.described, candidate.origin, candidate.settings]
    return {
        **{name: getattr(sides, name).described for name in SIDES},
        "look_key": adapter_sha256 if plain else sha256_json(other),
        "generation": candidate.settings,
        "baseline_generation": getattr(sides.baseline, "settings", None),
    }


def describe_answers(predictions: Sequence[Prediction], scored: Scored, params: EvaluateParams) -> dict[str, Any]:
    """Return the metrics of every group, the classes of every classification, and what could not be scored."""
    metrics, scorers = params.evaluate.metrics, params.evaluate.scorers
    named = [name for name, scorer in scorers.items() if isinstance(scorer, Classification)]
    return {
        "scorers": {name: scorer.model_dump(mode="json") for name, scorer in scorers.items()},
        "groups": {name: describe_group(members, metrics) for name, members in groups_of(predictions).items()},
        "classes": {name: describe_classes(predictions, name) for name in named},
        "problems": [asdict(problem) for problem in scored.problems],
        "judges": scored.judges,
    }


def describe_cost(
    latency: "LatencyPass",
    memory: list[int],
    predictions: Sequence[Prediction],
    params: EvaluateParams,
    evidence: Mapping[str, Any],
    latency_sha256: str,
) -> CostReport:
    """Return the cost measurements, with the setup and the adapter that they belong to."""
    from finetune.evaluate.cost import summarize_latency

    batched = {item.id: item.candidate.text for item in predictions}
    same = [batched[name] == text for name, text in latency.answers.items()]
    unanswered = {name: latency.unanswered[name] for name in SIDES}
    return CostReport(
        latency=LatencyReport(
            **summarize_latency(latency.timings),
            unanswered=unanswered,
            left_out=latency.left_out,
            identical_answers=sum(same) / len(same) if same else None,
        ),
        memory=MemoryReport(processes=len(memory), largest_bytes=max(memory, default=None), bytes=memory),
        settings=params.evaluate.model_dump(mode="json", include=REPORTED),
        adapter_sha256=evidence["adapter_sha256"],
        latency_sha256=latency_sha256,
        machine=describe_machine(params.environment),
        versions=versions(),
    )


def show(evaluation: EvaluationReport, cost: CostReport, look: int) -> None:
    """Print a short summary."""
    rows = []
    for name, group in evaluation.groups.items():
        known = [metric for metric in group.candidate if group.candidate[metric] is not None]
        for metric in known:
            figures = [group.figures(side)[metric] for side in SIDES]
            shown = ["n/a" if value is None else f"{value:.4g}" for value in figures]
            first = metric == known[0]
            rows.append([name if first else "", str(group.examples) if first else "", metric, *shown])
    names = [evaluation.side(side).name for side in SIDES]
    table("evaluate: test split", ["group", "examples", "metric", *names], rows)
    for problem in evaluation.problems:
        what = f"{problem.count} answers of the {problem.side} could not be scored"
        say(f"{problem.scorer}: {what}; first case: {problem.example}: {problem.reason}")
    show_cost(cost)
    say(f"look {look} at this test set; answers in out/predictions.jsonl, results in reports/evaluation.json")


def show_cost(cost: CostReport) -> None:
    """Print latency and memory in one line each, if measured."""
    latency, memory = cost.latency, cost.memory
    if latency.candidate:
        candidate = latency.candidate.mean_seconds
        base = latency.baseline.mean_seconds if latency.baseline else float("nan")
        say(f"latency {candidate:.3f} s/answer (baseline {base:.3f} s/answer), {latency.prompts} prompts one at a time")
    if latency.left_out:
        missing = ", ".join(f"{count} of the {name}" for name, count in latency.unanswered.items() if count)
        say(f"warning: latency prompts without an answer: {missing}")
    if latency.identical_answers is not None:
        say(f"answers identical in batches and one at a time: {latency.identical_answers:.1%}")
    if memory.largest_bytes:
        say(f"peak memory {memory.largest_bytes / 1e9:.2f} GB (largest of {memory.processes} processes)")
