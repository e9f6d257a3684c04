"""Measure forgetting: both sides run tasks of the lm-evaluation-harness, paired by document.

Off by default (`evaluate.forgetting: null`); the harness is a separate extra (requirements/forgetting.lock).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.evaluate import EvaluateParams, ForgettingConfig
from finetune.errors import ConfigError
from finetune.evaluate.local import LocalSide
from finetune.evaluate.sides import Sides
from finetune.statistics.bootstrap import paired_mean_difference

CONFIDENCE = 0.95  # of the intervals shown, two-sided; no criterion uses them
INSTALL = "pip install --require-hashes -r requirements/forgetting.lock"
Scores = dict[str, dict[str, dict[int, float]]]  # task, metric, document: score


def measure_forgetting(params: EvaluateParams, sides: Sides, root: Path) -> dict[str, Any] | None:
    """Return both sides' metrics of each task with the interval of the paired difference; None if not configured.

    Raises ConfigError if the harness is missing, a side is not a model in this process, or a task is unknown.
    """
    asked = params.evaluate.forgetting
    if asked is None:
        return None
    if not isinstance(sides.baseline, LocalSide) or not isinstance(sides.candidate, LocalSide):
        raise ConfigError(
            "params.yaml: evaluate.forgetting",
            "needs likelihoods of texts from both sides, which servers and recorded answers do not provide",
            "set it to null, or compare with the base",
        )
    found = [ask_tasks(side, asked, params, root) for side in (sides.baseline, sides.candidate)]
    tasks: dict[str, Any] = {}
    for task, metrics in found[0].items():
        for metric, baseline in metrics.items():
            candidate = found[1][task][metric]
            both = sorted(baseline.keys() & candidate.keys())
            tasks[f"{task}: {metric}"] = pair(
                metric, [baseline[at] for at in both], [candidate[at] for at in both], params
            )
    return {"tasks": tasks}


def pair(metric: str, baseline: Sequence[float], candidate: Sequence[float], params: EvaluateParams) -> dict[str, Any]:
    """Return both means and the two-sided interval of their difference, paired by document."""
    found = paired_mean_difference(candidate, baseline, CONFIDENCE, "two-sided", params.seed, bounds=(-1.0, 1.0))
    return {
        "examples": len(baseline),
        "metric": metric,
        "baseline": sum(baseline) / len(baseline),
        "candidate": sum(candidate) / len(candidate),
        **{name: found.as_record()[name] for name in ("lower", "upper")},
    }


def ask_tasks(side: LocalSide, asked: ForgettingConfig, params: EvaluateParams, root: Path) -> Scores:
    """Return one side's scores between 0 and 1 of each document, by task and metric."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "params.yaml: evaluate.forgetting", f"the harness is not installed ({error})", f"{INSTALL}"
        ) from None
    folder = str(root / asked.folder) if asked.folder else None
    manager = TaskManager(include_path=folder)
    unknown = sorted(set(asked.tasks) - set(manager.all_tasks))
    if unknown:
        raise ConfigError(
            "params.yaml: evaluate.forgetting.tasks", f"unknown task {', '.join(unknown)}", "lm_eval ls tasks"
        )
    with side.active() as model:
        results = simple_evaluate(
            HFLM(pretrained=model, tokenizer=side.tokenizer, batch_size=params.evaluate.batch_size),
            tasks=list(asked.tasks),
            limit=asked.limit,
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=params.seed,
            numpy_random_seed=params.seed,
            torch_random_seed=params.seed,
            fewshot_random_seed=params.seed,
        )
    return {task: scores_of_task(rows) for task, rows in results["samples"].items()}


def scores_of_task(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the scores of the documents by metric (and filter, if a task has several).

    Metrics whose scores are not numbers between 0 and 1 are omitted: they are not means over documents.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name in row["metrics"]:
            score, of_filter = row[name], row.get("filter", "none")
            if isinstance(score, bool | int | float) and 0 <= score <= 1:
                metric = name if of_filter == "none" else f"{name}, {of_filter}"
                found.setdefault(metric, {})[row["doc_id"]] = float(score)
    return {metric: scores for metric, scores in found.items() if len(scores) == len({row["doc_id"] for row in rows})}
