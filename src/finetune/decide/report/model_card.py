"""The metadata of the model card, as the Hub reads it: only what is known and was measured on the test set.

The licence is the one of params.yaml, and none is stated without: base and data have theirs, which the card says. No
local path is told: a local base is named by its folder and pinned by its hash.
"""

import re
from typing import Any

from finetune.decide.evidence import DECODING
from finetune.decide.report.formatting import listed, name, plain_name
from finetune.decide.report.headline import is_served
from finetune.decide.report.readings import ANSWER_FACTS, examples_counted, known_metrics
from finetune.decide.run_reports import Decided
from finetune.records.examples import ALL
from finetune.reports.base import BaseIdentity
from finetune.reports.evaluation import EvaluationReport
from finetune.reports.prepare import PrepareReport

# Metrics that the Hub knows by a name of its own; the others keep ours.
HUB_METRICS = {"binary": "accuracy", "macro_f1": "f1", "weighted_f1": "f1", "bleu": "bleu", "perplexity": "perplexity"}


def card_data(run: Decided) -> Any:
    """The front matter: a `huggingface_hub.ModelCardData`."""
    from huggingface_hub import ModelCardData

    evaluation = run.reports.evaluation
    base = evaluation.base
    hub = hub_names(run.reports.prepare)
    # What a server serves may be another model: such figures are told in the text, with their proviso, alone.
    results = [] if is_served(run) else eval_results(run)
    return ModelCardData(
        base_model=plain_name(base.name, base.revision),
        library_name="peft",
        license=run.decide.license,
        pipeline_tag="text-generation",
        tags=["lora", "peft", "fine-tuned"],
        datasets=hub or None,
        model_name=name(run.recipe) if results else None,
        eval_results=results or None,
    )


def hub_names(prepare: PrepareReport) -> list[str]:
    """The datasets of the Hub among the sources; local ones are no dataset that a reader could open."""
    given = prepare.settings.get("sources", [])
    return [source["hub"] for source in given if source.get("hub")]


def eval_results(run: Decided) -> list[Any]:
    """A result for each metric of each group, of the candidate, with the examples it rests on.

    The Hub tells data sets apart by their configuration, so the group stands there.
    """
    from huggingface_hub import EvalResult

    evaluation, hub = run.reports.evaluation, hub_names(run.reports.prepare)
    sources = [name(source) for source in run.reports.prepare.sources]
    kind = hub[0] if len(hub) == len(sources) == 1 else slug("-".join(sources))
    metrics, found = known_metrics(evaluation.scorers), []
    tested = f"test split of {', '.join(sources)}"
    figures = [(group, *item) for group, one in evaluation.groups.items() for item in one.candidate.items()]
    for group, key, value in figures:
        if key in ANSWER_FACTS or value is None:
            continue
        examples, metric = examples_counted(key, group, evaluation), metrics.get(key)
        known = key if key == "exact_match" else HUB_METRICS.get(metric.kind, slug(key)) if metric else slug(key)
        result = EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=kind,
            dataset_name=name(tested if group == ALL else f"{tested}: {name(group)}", 200),
            dataset_config=name(group),
            dataset_split="test",
            dataset_args={"sha256": evaluation.test_sha256},
            metric_type=known,
            metric_name=name(key),
            metric_value=round(value, 6),
            metric_args=None if examples is None else {"examples": examples},
        )
        found.append(result)
    return found


def slug(text: str) -> str:
    """A name of letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-") or "dataset"


def decoding(evaluation: EvaluationReport) -> str:
    """How the answers were decoded, and whether the baseline's were too, as far as that is known."""
    mine, theirs = evaluation.generation, evaluation.baseline_generation
    how = "sampled" if mine.get("do_sample") else "greedy"
    told = f"{how}, at most {mine.get('max_new_tokens', 'an unknown number of')} new tokens"
    if theirs is None:
        return f"{told}; the baseline's settings are not known"
    if other := {key: theirs.get(key) for key in DECODING if theirs.get(key) != mine.get(key)}:
        return f"{told}; the baseline used different settings ({listed(other)})"
    return f"{told}, the same for both sides"


def loading_name(base: BaseIdentity) -> str:
    """The base's name for a line of Python, with nothing that could end its quotes or its block."""
    return re.sub(r"[^\w./-]", "_", plain_name(base.name, base.revision), flags=re.ASCII)
