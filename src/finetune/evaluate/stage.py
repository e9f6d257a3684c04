"""The evaluate stage: `out/adapter` and the test split -> answers, `reports/evaluation.json`, `reports/cost.json`."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.artifacts import read_json, read_manifest, sha256_file, sha256_tensors, write_json, write_lines
from finetune.config import Config
from finetune.config_evaluate import Classification
from finetune.console import say, table
from finetune.errors import DataError
from finetune.evaluate.groups import describe_classes, describe_group, groups_of
from finetune.looks import count_look
from finetune.machine import arithmetic, describe_machine, require_device, set_device_environment, versions
from finetune.metrics import SIDES
from finetune.model.adapter import WEIGHTS
from finetune.model.base import identify_base
from finetune.paths import FINISHED, Paths
from finetune.records import Answer, Example, Prediction, read_examples, text_key, to_json_lines
from finetune.score.scorers import build_scorers
from finetune.score.scoring import Scored, Scorers


def run(config: Config, paths: Paths) -> None:
    """Answer every test prompt with both sides, score the answers, measure the cost."""
    set_device_environment(config.environment, 1, deterministic=False)
    device = require_device(config.environment)
    evidence = check_evidence(config, paths)
    examples = read_test(paths)
    labels = read_json(paths.reports / "prepare.json")["labels"]
    scorers = build_scorers(config.evaluate.scorers, labels, examples, paths.root)
    remove_finished(paths.checkpoints)  # not before: a train that has to be run again would start from nothing

    from finetune.evaluate.cost import measure_latency, measure_memory
    from finetune.evaluate.forgetting import measure_forgetting
    from finetune.evaluate.sides import open_sides

    sides = open_sides(config, paths, device, examples)
    scored = ask_sides(sides, examples, scorers, config, paths, evidence)
    predictions = pair_answers(sides, examples, scored, config)
    sample = choose_prompts(predictions, examples, config.evaluate.latency.prompts)
    timings, alone = measure_latency(sides, sample, config.evaluate.latency.warmup)
    same = share_identical(sample, alone, predictions)
    forgetting = measure_forgetting(config, sides, paths.root)
    described = describe_sides(sides)
    del sides
    memory = measure_memory(config.evaluate, paths.root)

    look = count_look(paths.looks, evidence["test_sha256"], evidence["adapter_sha256"])
    write_lines(paths.predictions, to_json_lines(predictions))
    write_lines(paths.latency, to_json_lines(timings))
    cost = describe_cost(timings, memory, same, config, evidence, sha256_file(paths.latency))
    write_json(paths.reports / "cost.json", cost)
    evaluation = {
        **evidence,
        **described,
        "predictions_sha256": sha256_file(paths.predictions),
        **describe_answers(predictions, scored, config),
        "forgetting": forgetting,
    }
    write_json(paths.reports / "evaluation.json", evaluation)
    shutil.rmtree(paths.evaluation, ignore_errors=True)
    show(evaluation, cost, look)


def read_test(paths: Paths) -> list[Example]:
    """The test split; DataError where it is empty."""
    examples = read_examples(paths.prepared / "test.jsonl")
    if not examples:
        raise DataError(f"{paths.prepared / 'test.jsonl'}: holds no example; give data.split.test a share")
    return examples


def remove_finished(checkpoints: Path) -> None:
    """Remove the checkpoints of finished runs, which train marks and keeps until DVC has stored its outputs."""
    for mark in checkpoints.glob(f"*/{FINISHED}"):
        shutil.rmtree(mark.parent, ignore_errors=True)


def check_evidence(config: Config, paths: Paths) -> dict[str, Any]:
    """Hashes of what is evaluated; DataError unless it is the adapter that train published and prepare's test set."""
    manifest, trained = read_manifest(paths.adapter), read_json(paths.reports / "train.json")
    adapter = sha256_tensors(paths.adapter / WEIGHTS)
    if not adapter == manifest["adapter_sha256"] == trained["adapter_sha256"]:
        raise DataError(
            f"{paths.adapter}: is not the adapter that train published; run train again (dvc repro -f train)"
        )
    if manifest["base"] != identify_base(config.model):
        raise DataError(f"{paths.adapter}: was trained on another base than params.yaml names; run train again")
    test, ledger = paths.prepared / "test.jsonl", read_json(paths.reports / "prepare.json")
    if not test.exists() or sha256_file(test) != ledger["prepared_sha256"]["test"]:
        raise DataError(f"{test}: is not the test set that prepare wrote; run prepare again (dvc repro -f prepare)")
    if manifest["prepared_sha256"] != ledger["prepared_sha256"]:
        raise DataError(f"{paths.adapter}: was trained on other splits than these; run train again (dvc repro)")
    return {"adapter_sha256": adapter, "test_sha256": sha256_file(test), "base": manifest["base"]}


def ask_sides(
    sides: Any, examples: Sequence[Example], scorers: Scorers, config: Config, paths: Paths, evidence: Mapping[str, Any]
) -> Scored:
    """Both sides' scored answers, in the order of the test set."""
    from finetune.evaluate.answers import answer_all
    from finetune.evaluate.local import LocalSide
    from finetune.evaluate.recorded import RecordedSide

    determines = {"test": evidence["test_sha256"], "versions": versions(), "arithmetic": arithmetic(config.environment)}
    answers: dict[str, list[Answer]] = {}
    likeliest: dict[str, dict[str, list[str | None]]] = {}
    for name in SIDES:
        side, size = getattr(sides, name), config.evaluate.batch_size
        if isinstance(side, RecordedSide):
            answers[name] = [side.answers[example.id] for example in examples]
        else:
            answers[name] = answer_all(side, examples, size, config.seed, paths.evaluation, determines)
        if isinstance(side, LocalSide):
            likeliest[name] = {
                scorer: [side.likeliest(item, built.classes, size) if built.counts(item) else None for item in examples]
                for scorer, built in scorers.by_likelihood.items()
            }
    return scorers.score(examples, answers["baseline"], answers["candidate"], likeliest)


def pair_answers(sides: Any, examples: Sequence[Example], scored: Scored, config: Config) -> list[Prediction]:
    """Both sides' answers to each example; its cluster is the user or conversation of its row, else its prompt."""
    from finetune.evaluate.local import LocalSide
    from finetune.model.tokens import load_tokenizer, tokenize

    local = next((side for side in (sides.candidate, sides.baseline) if isinstance(side, LocalSide)), None)
    tokenizer = local.tokenizer if local else load_tokenizer(config.model)
    return [
        Prediction(
            id=example.id,
            agent=example.agent,
            source=example.source,
            cluster=example.group or text_key(example.prompt).hex(),
            prompt=example.prompt[-1].text,
            reference=example.completion,
            reference_tokens=tokenize(tokenizer, example.messages, example.tools).supervised,
            baseline=baseline,
            candidate=candidate,
        )
        for example, baseline, candidate in zip(examples, scored.baseline, scored.candidate, strict=True)
    ]


def choose_prompts(predictions: Sequence[Prediction], examples: Sequence[Example], count: int) -> list[Example]:
    """So many examples that both sides could answer, the same ones every time, in no order of the data."""
    able = {item.id for item in predictions if item.candidate.failed is None and item.baseline.failed is None}
    by_hash = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())
    return [example for example in by_hash if example.id in able][:count]


def share_identical(sample: Sequence[Example], alone: Sequence[Any], predictions: Sequence[Prediction]) -> float | None:
    """Of the timed prompts the share to which the candidate answered the same by itself and in a batch."""
    texts = {item.id: item.candidate.text for item in predictions}
    same = [texts[example.id] == timed.text for example, timed in zip(sample, alone, strict=True)]
    return sum(same) / len(same) if same else None


def describe_sides(sides: Any) -> dict[str, Any]:
    """Who answered, and what each was asked with (None: not known)."""
    return {
        **{name: getattr(sides, name).described for name in SIDES},
        "generation": sides.candidate.settings,
        "baseline_generation": getattr(sides.baseline, "settings", None),
    }


def describe_answers(predictions: Sequence[Prediction], scored: Scored, config: Config) -> dict[str, Any]:
    """The metrics of every group, the classes of every classification, and what could not be scored."""
    metrics, scorers = config.evaluate.metrics, config.evaluate.scorers
    named = [name for name, scorer in scorers.items() if isinstance(scorer, Classification)]
    return {
        "scorers": {name: scorer.model_dump(mode="json") for name, scorer in scorers.items()},
        "groups": {name: describe_group(members, metrics) for name, members in groups_of(predictions).items()},
        "classes": {name: describe_classes(predictions, name) for name in named},
        "problems": [asdict(problem) for problem in scored.problems],
        "judges": scored.judges,
    }


def describe_cost(
    timings: Sequence[Any],
    memory: list[int],
    same: float | None,
    config: Config,
    evidence: Mapping[str, Any],
    latency_sha256: str,
) -> dict[str, Any]:
    """What was measured, on what, and of which adapter."""
    from finetune.evaluate.cost import summarize_latency

    return {
        "latency": {**summarize_latency(timings), "identical_answers": same},
        "memory": {"processes": len(memory), "largest_bytes": max(memory, default=None), "bytes": memory},
        "settings": config.evaluate.model_dump(mode="json"),
        "adapter_sha256": evidence["adapter_sha256"],
        "latency_sha256": latency_sha256,
        "machine": describe_machine(config.environment),
        "versions": versions(),
    }


def show(evaluation: Mapping[str, Any], cost: Mapping[str, Any], look: int) -> None:
    """A few lines for the person who watches."""
    rows = []
    for name, group in evaluation["groups"].items():
        told = [metric for metric in group["candidate"] if group["candidate"][metric] is not None]
        for metric in told:
            figures = [group[side][metric] for side in SIDES]
            shown = ["n/a" if value is None else f"{value:.4g}" for value in figures]
            first = metric == told[0]
            rows.append([name if first else "", str(group["examples"]) if first else "", metric, *shown])
    names = [evaluation[side]["name"] for side in SIDES]
    table("evaluate: test split", ["group", "examples", "metric", *names], rows)
    for problem in evaluation["problems"]:
        what = f"{problem['count']} answers of the {problem['side']} have no score"
        say(f"{problem['scorer']}: {what}; the first is of {problem['example']}: {problem['reason']}")
    show_cost(cost)
    say(f"look {look} at this test set; answers in out/predictions.jsonl, figures in reports/evaluation.json")


def show_cost(cost: Mapping[str, Any]) -> None:
    """Latency and memory in a line each, as far as they were measured."""
    latency, memory = cost["latency"], cost["memory"]
    if latency["candidate"]:
        base, candidate = (latency[side]["mean_seconds"] for side in SIDES)
        say(f"latency {candidate:.3f} s an answer (baseline {base:.3f} s), {latency['prompts']} prompts one at a time")
    if latency["identical_answers"] is not None:
        say(f"the same answers in batches as one by one: {latency['identical_answers']:.1%}")
    if memory["bytes"]:
        say(f"peak memory {memory['largest_bytes'] / 1e9:.2f} GB, of {memory['processes']} processes")
