"""evaluate: batched answers are the answers one by one, losses are the model's own, evidence is checked."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.artifacts import read_json, write_json
from finetune.errors import DataError
from finetune.evaluate import stage
from finetune.evaluate.cost import measure_latency
from finetune.evaluate.generate import (
    batches_by_length,
    cut_at_end,
    generate,
    generate_all,
    generation_settings,
    reference_nats,
)
from finetune.evaluate.scorers import describe_group, exact_match, groups_of
from finetune.model.adapter import load_adapter
from finetune.model.base import load_base
from finetune.model.tokens import IGNORED, load_tokenizer, tokenize, tokenize_prompt
from finetune.records import read_examples, read_predictions, read_timings
from finetune.train import stage as train_stage
from finetune.train.checkpoints import FINISHED
from tests.small_run import ROOT, copy_of, validated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A workspace with an adapter, and its config."""
    root = tmp_path_factory.mktemp("trained") / "work"
    config, paths = validated(root)
    train_stage.run(config, paths)
    return root, config


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any, list[Any]]:
    """The embedded base, its tokenizer, and conversations of many lengths."""
    from finetune.config import load_config
    from finetune.records import Message

    os.chdir(ROOT)
    model = load_config(ROOT / "params.yaml").model
    prompts = ["def read(self)", "class Queue", "Return the item." * 5, "x = 1", "raise ValueError", "import os\n" * 9]
    talks = [(Message("user", prompt), Message("assistant", prompt[::-1])) for prompt in prompts]
    return load_base(model, "cpu").eval(), load_tokenizer(model), talks


def test_batched_answers_equal_those_one_by_one(embedded: tuple[Any, Any, list[Any]]) -> None:
    """Padding and batching are for speed alone; the answers must not know of them."""
    model, tokenizer, talks = embedded
    settings = generation_settings(model, tokenizer, 12)
    prompts = [tokenize_prompt(tokenizer, talk[:-1]) for talk in talks]
    together = generate_all(model, prompts, settings, 4, "test")
    alone = [generate(model, [prompt], settings)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(answer.tokens) for answer in together}) > 1


def test_reference_loss_is_the_models_own(embedded: tuple[Any, Any, list[Any]]) -> None:
    """Summed over the supervised tokens alone, whatever the batch and its padding: as one plain forward pass says."""
    model, tokenizer, talks = embedded
    references = [tokenize(tokenizer, talk) for talk in talks]
    found = reference_nats(model, references, tokenizer.pad_token_id, 4, "test")
    for row, nats in zip(references, found, strict=True):
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert nats == pytest.approx(float(loss) * sum(label != IGNORED for label in row.labels), rel=1e-4)


def test_answer_ends_at_the_first_end_token() -> None:
    """What a batch-mate's length adds after the end is no part of the answer; an answer without end is cut off."""
    assert cut_at_end([5, 6, 2, 0, 0], [2, 9]).tokens == [5, 6]
    assert cut_at_end([5, 6, 2], [2, 9]).finished
    assert not cut_at_end([5, 6, 7], [2, 9]).finished
    assert cut_at_end([2], [2]).tokens == []


def test_batches_hold_every_position_once_longest_first() -> None:
    """The longest batch first shows at once whether memory is enough."""
    lengths = [3, 9, 1, 9, 4]
    assert list(batches_by_length(lengths, 2)) == [[1, 3], [4, 0], [2]]


def test_exact_match_forgives_white_space_alone() -> None:
    """Nearly right is wrong."""
    assert exact_match(" ValueError\n", "ValueError")
    assert not exact_match("ValueError.", "ValueError")
    assert not exact_match("valueerror", "ValueError")


def test_groups_are_all_and_each_agent(prediction: Any) -> None:
    """The figures of a group are of its members alone."""
    groups = groups_of(
        [prediction(True, False, agent="a"), prediction(False, True, agent="b", reference="x", nats=6.0)]
    )
    assert list(groups) == ["all", "a", "b"]
    described = {name: describe_group(members) for name, members in groups.items()}
    assert [described[name]["candidate"]["exact_match"] for name in groups] == [0.5, 1.0, 0.0]
    assert described["b"]["candidate"]["loss"] == pytest.approx(2.0)
    assert described["all"]["majority_share"] == 0.5


def test_latency_takes_turns_and_leaves_the_warmup_out(trained: tuple[Path, Any]) -> None:
    """Every prompt is timed once with each side, the warm-up ones not at all."""
    root, config = trained
    os.chdir(root)
    paths = stage.Paths()
    tokenizer = load_tokenizer(config.model, paths.adapter)
    model = load_adapter(load_base(config.model, "cpu"), paths.adapter)
    examples = read_examples(paths.prepared / "test.jsonl")
    prompts = [(example.id, tokenize_prompt(tokenizer, example.prompt)) for example in examples[:3]]
    found = measure_latency(model, prompts, generation_settings(model, tokenizer, 4), 2, config.environment)
    assert [row.id for row in found] == [name for name, _ in prompts]
    assert all(row.baseline_seconds > 0 and row.candidate_seconds > 0 for row in found)
    assert all(1 <= row.candidate_tokens <= 5 for row in found)


def test_stage_writes_repeatable_figures(trained: tuple[Path, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """Answers and evaluation.json are the same for every repetition; what was measured stands in cost.json alone."""
    root, config = trained
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    kept = []
    for name in ("a", "b"):
        os.chdir(copy_of(root, tmp_path / name))
        paths = stage.Paths()
        stage.run(config, paths)
        monkeypatch.setattr("finetune.evaluate.cost.measure_memory", lambda *_: [2 * 10**8] * 3)  # once is enough
        kept.append([path.read_bytes() for path in (paths.predictions, paths.reports / "evaluation.json")])
        cost = read_json(paths.reports / "cost.json")
        assert len(cost["memory"]["bytes"]) == 3
        assert min(cost["memory"]["bytes"]) > 10**8
        assert len(read_timings(paths.latency)) == 12  # the whole test split is smaller than the 20 asked for
        assert len(read_predictions(paths.predictions)) == len(read_examples(paths.prepared / "test.jsonl"))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("changed", ["adapter", "manifest", "test", "base", "splits"])
def test_changed_evidence_is_refused(trained: tuple[Path, Any], tmp_path: Path, changed: str) -> None:
    """A score on another test set, adapter or base than the run's is no evidence; nothing is evaluated."""
    root, config = trained
    os.chdir(copy_of(root, tmp_path / "run"))
    paths = stage.Paths()
    if changed == "adapter":
        path = paths.adapter / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif changed == "manifest":
        report = read_json(paths.reports / "train.json")
        write_json(paths.reports / "train.json", {**report, "adapter_sha256": "0" * 64})
    elif changed == "test":
        test = paths.prepared / "test.jsonl"
        test.write_text("".join(test.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    elif changed == "splits":
        ledger = read_json(paths.reports / "prepare.json")
        ledger["prepared_sha256"]["train"] = "0" * 64
        write_json(paths.reports / "prepare.json", ledger)
    else:
        content = json.loads(Path("base/config.json").read_text(encoding="utf-8"))
        Path("base/config.json").write_text(json.dumps({**content, "rope_theta": 1.0}), encoding="utf-8")
    with pytest.raises(DataError):
        stage.run(config, paths)
    assert not paths.predictions.exists()


def test_checkpoints_of_finished_runs_are_removed(tmp_path: Path) -> None:
    """Those that train marked; a run that is still to go on keeps its own."""
    for name in ("finished-run/checkpoint-3", "other-run/checkpoint-6"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "finished-run" / FINISHED).touch()
    stage.remove_finished(tmp_path)
    stage.remove_finished(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other-run"]


def test_failed_memory_probe_is_told(trained: tuple[Path, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """A probe that dies is no measurement of zero bytes."""
    from finetune.errors import MachineError
    from finetune.evaluate.cost import measure_memory

    root, config = trained
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    folder = copy_of(root, tmp_path / "run")
    shutil.rmtree(folder / "out/adapter")
    with pytest.raises(MachineError, match="the memory probe failed"):
        measure_memory(config.evaluate, folder)
