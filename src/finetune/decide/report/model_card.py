"""The model card's metadata in the Hub's format: only what is known and was measured on the test set.

The licence is that of params.yaml, and is omitted if it is not set; the card's text states that base model and data
have their own. Local paths are not included: a local base model appears by its folder's name and its hash.
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

# Metrics that have their own name on the Hub; the others keep ours.
HUB_METRICS = {"binary": "accuracy", "macro_f1": "f1", "weighted_f1": "f1", "bleu": "bleu", "perplexity": "perplexity"}


def card_data(run: Decided) -> Any:
    """Return the front matter, a `huggingface_hub.ModelCardData`."""
    from huggingface_hub import ModelCardData

    evaluation = run.reports.evaluation
    base = evaluation.base
    hub = hub_names(run.reports.prepare)
    # A server may serve another model: its results appear only in the text, with a caveat.
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
    """Return the Hub datasets among the sources; local ones are omitted because a reader could not open them."""
    given = prepare.settings.get("sources", [])
    return [source["hub"] for source in given if source.get("hub")]


def eval_results(run: Decided) -> list[Any]:
    """Return the candidate's result for each metric of each group, with the number of examples.

    The Hub distinguishes data sets by their configuration, so that field holds the group.
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
    """Reduce a name to letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-") or "dataset"


def decoding(evaluation: EvaluationReport) -> str:
    """Describe how the answers were decoded, and whether the baseline's settings are known to be the same."""
    mine, theirs = evaluation.generation, evaluation.baseline_generation
    how = "sampled" if mine.get("do_sample") else "greedy"
    description = f"{how}, at most {mine.get('max_new_tokens', 'an unknown number of')} new tokens"
    if theirs is None:
        return f"{description}; the baseline's settings are not known"
    if other := {key: theirs.get(key) for key in DECODING if theirs.get(key) != mine.get(key)}:
        return f"{description}; the baseline used different settings ({listed(other)})"
    return f"{description}, the same for both sides"


def loading_name(base: BaseIdentity) -> str:
    """Return the base's name for use in a line of Python, without characters that could end its quotes or block."""
    return re.sub(r"[^\w./-]", "_", plain_name(base.name, base.revision), flags=re.ASCII)
