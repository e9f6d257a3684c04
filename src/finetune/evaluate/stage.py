"""The evaluate stage: `out/adapter` and the test split -> answers, `reports/evaluation.json`, `reports/cost.json`."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.artifacts import read_json, read_manifest, sha256_file, sha256_tensors, write_json, write_lines
from finetune.config import Config
from finetune.console import say, table
from finetune.errors import DataError
from finetune.looks import count_look
from finetune.machine import describe_machine, require_device, set_device_environment, versions
from finetune.model.adapter import WEIGHTS, load_adapter
from finetune.model.base import identify_base, load_base
from finetune.model.tokens import Tokenized, load_tokenizer, tokenize, tokenize_prompt
from finetune.paths import Paths
from finetune.records import Answer, Example, Prediction, read_examples, to_json_lines


def run(config: Config, paths: Paths) -> None:
    """Answer every test prompt with the base and with the candidate, score the answers, measure the cost."""
    set_device_environment(config.environment, 1, deterministic=False)
    device = require_device(config.environment)
    test = check_evidence(config, paths)
    remove_finished(paths.checkpoints)  # not before: a train that has to be run again would start from nothing
    examples = read_examples(paths.prepared / "test.jsonl")
    tokenizer = load_tokenizer(config.model, paths.adapter)
    model = load_adapter(load_base(config.model, device), paths.adapter)

    from finetune.evaluate.cost import measure_latency, measure_memory, summarize_cost
    from finetune.evaluate.generate import generation_settings
    from finetune.evaluate.scorers import describe_group, groups_of

    settings = generation_settings(model, tokenizer, config.evaluate.max_new_tokens)
    predictions = predict(model, tokenizer, examples, settings, config)
    sample = choose_prompts(examples, config.evaluate.latency.prompts)
    prompts = [(example.id, tokenize_prompt(tokenizer, example.prompt, example.tools)) for example in sample]
    latency = measure_latency(model, prompts, settings, config.evaluate.latency.warmup, config.environment)
    del model
    memory = measure_memory(config.evaluate, paths.root)

    look = count_look(paths.looks, test["test_sha256"], test["adapter_sha256"])
    groups = {name: describe_group(members) for name, members in groups_of(predictions).items()}
    write_lines(paths.predictions, to_json_lines(predictions))
    write_lines(paths.latency, to_json_lines(latency))
    cost = summarize_cost(latency, memory, config)
    machine = {"machine": describe_machine(config.environment), "versions": versions()}
    measured_on = {"adapter_sha256": test["adapter_sha256"], "latency_sha256": sha256_file(paths.latency)}
    write_json(paths.reports / "cost.json", {**cost, **measured_on, **machine})
    write_json(
        paths.reports / "evaluation.json",
        {**test, "predictions_sha256": sha256_file(paths.predictions), "generation": settings, "groups": groups},
    )
    show(groups, cost, look)


def remove_finished(checkpoints: Path) -> None:
    """Remove the checkpoints of finished runs, which train marks and keeps until DVC has stored its outputs."""
    for mark in checkpoints.glob("*/finished"):
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


def predict(
    model: Any, tokenizer: Any, examples: Sequence[Example], settings: dict[str, Any], config: Config
) -> list[Prediction]:
    """Both models' answers to every example, in the order of the test set."""
    prompts = [tokenize_prompt(tokenizer, example.prompt, example.tools) for example in examples]
    references = [tokenize(tokenizer, example.messages, example.tools) for example in examples]
    with model.disable_adapter():
        baseline = answer_all(model, tokenizer, examples, prompts, references, settings, config, "base")
    candidate = answer_all(model, tokenizer, examples, prompts, references, settings, config, "candidate")
    return [
        Prediction(
            id=example.id,
            agent=example.agent,
            prompt=example.prompt[-1].text,
            reference=example.completion,
            reference_tokens=reference.supervised,
            baseline=base_answer,
            candidate=candidate_answer,
        )
        for example, reference, base_answer, candidate_answer in zip(
            examples, references, baseline, candidate, strict=True
        )
    ]


def answer_all(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    references: Sequence[Tokenized],
    settings: dict[str, Any],
    config: Config,
    side: str,
) -> list[Answer]:
    """One side's answers with their scores."""
    from finetune.evaluate.generate import generate_all, reference_nats
    from finetune.evaluate.scorers import exact_match

    size = config.evaluate.batch_size
    generated = generate_all(model, prompts, settings, size, f"answers of the {side}")
    nats = reference_nats(model, references, settings["pad_token_id"], size, f"loss of the {side}")
    answers = []
    for example, found, loss in zip(examples, generated, nats, strict=True):
        text = tokenizer.decode(found.tokens, skip_special_tokens=True)
        correct = exact_match(text, example.completion)
        answers.append(Answer(text, len(found.tokens), found.finished, correct, loss))
    return answers


def choose_prompts(examples: Sequence[Example], count: int) -> list[Example]:
    """So many examples for the latency pass, the same ones every time, in no order of the data."""
    by_hash = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())
    return by_hash[:count]


def show(groups: dict[str, Any], cost: dict[str, Any], look: int) -> None:
    """A few lines for the person who watches."""
    rows = []
    for name, group in groups.items():
        for metric in ("exact_match", "macro_f1", "loss"):
            first = metric == "exact_match"
            figures = [f"{group[side][metric]:.3f}" for side in ("baseline", "candidate")]
            rows.append([name if first else "", str(group["examples"]) if first else "", metric, *figures])
    table("evaluate: test split", ["group", "examples", "metric", "base", "candidate"], rows)
    base, candidate = (cost["latency"][side]["mean_seconds"] for side in ("baseline", "candidate"))
    peak = cost["memory"]["largest_bytes"] / 1e9
    processes = cost["memory"]["processes"]
    say(f"latency {candidate:.3f} s (base {base:.3f} s) an answer; peak memory {peak:.2f} GB, of {processes} processes")
    say(f"look {look} at this test set; answers in out/predictions.jsonl, figures in reports/evaluation.json")
