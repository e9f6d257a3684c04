"""The evaluate stage: `out/adapter` and the test split -> answers, `reports/evaluation.json`, `reports/cost.json`."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config.evaluate import EvaluateParams
from finetune.console import progress
from finetune.errors import DataError
from finetune.evaluate.pairing import pair_answers, reference_tokens
from finetune.evaluate.report import describe_answers, describe_cost, describe_sides, show
from finetune.files.atomic import write_json, write_lines
from finetune.files.hashing import sha256_file, sha256_tensors
from finetune.files.manifests import read_manifest
from finetune.hardware.devices import arithmetic, require_device, set_device_environment
from finetune.hardware.versions import versions
from finetune.history.test_set_uses import count_look
from finetune.model.adapter import WEIGHTS
from finetune.model.base import identify_base
from finetune.paths import FINISHED, Paths
from finetune.records.examples import Answer, Example
from finetune.records.io import read_examples, to_json_lines
from finetune.reports.base import read_report
from finetune.reports.evaluation import EvaluationReport
from finetune.reports.prepare import PrepareReport
from finetune.reports.train import TrainReport
from finetune.score.metrics import SIDES
from finetune.score.scorers import build_scorers
from finetune.score.scoring import Scorers

if TYPE_CHECKING:
    from finetune.evaluate.sides import Sides


def run(params: EvaluateParams, paths: Paths) -> None:
    """Answer every test prompt with both sides, score the answers, and measure the cost."""
    set_device_environment(params.environment, 1, deterministic=False)
    device = require_device(params.environment)
    evidence = check_evidence(params, paths)
    examples = read_test(paths)
    labels = read_report(paths.reports / "prepare.json", PrepareReport).labels
    scorers = build_scorers(params.evaluate.scorers, labels, examples, paths.root)
    remove_finished(paths.checkpoints)  # not earlier: a repeated train would start from scratch

    from finetune.evaluate.cost import measure_latency, measure_memory
    from finetune.evaluate.harness import measure_forgetting
    from finetune.evaluate.sides import open_sides

    sides = open_sides(params, paths, device, examples)
    asked = ask_sides(sides, examples, scorers, params, paths, evidence)
    tokens = reference_tokens(sides, examples, params)
    sample = choose_prompts(examples, params.evaluate.latency.prompts)
    latency = measure_latency(sides, sample, params.evaluate.latency.warmup)
    forgetting = measure_forgetting(params, sides, paths.root)
    described = describe_sides(sides, evidence["adapter_sha256"])
    del sides
    memory = measure_memory(params.evaluate, paths.root)
    scored = scorers.score(examples, *asked)  # the judge costs money, so it runs after everything that may fail
    predictions = pair_answers(examples, scored, tokens)

    look = count_look(paths.looks, evidence["test_sha256"], described["look_key"])
    write_lines(paths.predictions, to_json_lines(predictions))
    write_lines(paths.latency, to_json_lines(latency.timings))
    cost = describe_cost(latency, memory, predictions, params, evidence, sha256_file(paths.latency))
    write_json(paths.reports / "cost.json", cost.to_json())
    evaluation = EvaluationReport(
        **evidence,
        **described,
        predictions_sha256=sha256_file(paths.predictions),
        **describe_answers(predictions, scored, params),
        forgetting=forgetting,
    )
    write_json(paths.reports / "evaluation.json", evaluation.to_json())
    shutil.rmtree(paths.evaluation, ignore_errors=True)
    show(evaluation, cost, look)


def read_test(paths: Paths) -> list[Example]:
    """Read the test split. Raise DataError if it is empty."""
    examples = read_examples(paths.prepared / "test.jsonl")
    if not examples:
        raise DataError(f"{paths.prepared / 'test.jsonl'}", "has no examples", "set data.split.test above 0")
    return examples


def remove_finished(checkpoints: Path) -> None:
    """Remove the checkpoints of finished runs, which train marks and keeps until DVC has stored its outputs."""
    for mark in checkpoints.glob(f"*/{FINISHED}"):
        shutil.rmtree(mark.parent, ignore_errors=True)


def check_evidence(params: EvaluateParams, paths: Paths) -> dict[str, Any]:
    """Return the hashes of the inputs. Raise DataError unless the adapter is train's and the test set prepare's."""
    manifest, trained = read_manifest(paths.adapter), read_report(paths.reports / "train.json", TrainReport)
    adapter = sha256_tensors(paths.adapter / WEIGHTS)
    if not adapter == manifest["adapter_sha256"] == trained.adapter_sha256:
        raise DataError(
            f"{paths.adapter}", "is not the adapter that train published", "run train again (dvc repro -f -s train)"
        )
    if manifest["base"] != identify_base(params.model):
        raise DataError(paths.adapter, "was trained on a different base than params.yaml names", "run train again")
    test, ledger = paths.prepared / "test.jsonl", read_report(paths.reports / "prepare.json", PrepareReport)
    if not test.exists() or sha256_file(test) != ledger.prepared_sha256["test"]:
        raise DataError(
            f"{test}", "is not the test set that prepare wrote", "run prepare again (dvc repro -f -s prepare)"
        )
    if manifest["prepared_sha256"] != ledger.prepared_sha256:
        raise DataError(paths.adapter, "was trained on different splits", "run train again (dvc repro)")
    return {"adapter_sha256": adapter, "test_sha256": sha256_file(test), "base": manifest["base"]}


Asked = tuple[list[Answer], list[Answer], dict[str, dict[str, list[str | None]]]]


def ask_sides(
    sides: "Sides",
    examples: Sequence[Example],
    scorers: Scorers,
    params: EvaluateParams,
    paths: Paths,
    evidence: Mapping[str, Any],
) -> Asked:
    """Return both sides' answers in the order of the test set, and the most likely labels of each side."""
    from finetune.evaluate.answers import answer_all
    from finetune.evaluate.local import LocalSide
    from finetune.evaluate.recorded import RecordedSide

    determines = {"test": evidence["test_sha256"], "versions": versions(), "arithmetic": arithmetic(params.environment)}
    answers: dict[str, list[Answer]] = {}
    likeliest: dict[str, dict[str, list[str | None]]] = {}
    for name in SIDES:
        side, size = getattr(sides, name), params.evaluate.batch_size
        if isinstance(side, RecordedSide):
            answers[name] = [side.answers[example.id] for example in examples]
        else:
            answers[name] = answer_all(side, examples, size, params.seed, paths.evaluation, determines)
        if isinstance(side, LocalSide):
            likeliest[name] = {
                scorer: [
                    side.likeliest(item, built.classes, size) if built.counts(item) else None
                    for item in progress(examples, f"labels scored by {side.described['name']}")
                ]
                for scorer, built in scorers.by_likelihood.items()
            }
    return answers["baseline"], answers["candidate"], likeliest


def choose_prompts(examples: Sequence[Example], count: int) -> list[Example]:
    """Choose `count` examples deterministically, independent of the order of the data."""
    return sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())[:count]
