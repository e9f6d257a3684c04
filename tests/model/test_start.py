"""Training that continues from an adapter: what fits, what does not, and what is recorded of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.config.model import AdapterConfig
from finetune.config.params import Config, params_of, parse_config
from finetune.decide import stage as decide
from finetune.errors import ConfigError
from finetune.evaluate import stage as evaluate
from finetune.files.hashing import sha256_tensors
from finetune.files.manifests import read_manifest
from finetune.model.adapter import CONFIG, WEIGHTS, add_adapter, save_adapter
from finetune.model.base import load_base
from finetune.model.start import adapter_shapes, find_start_problem, load_start
from finetune.paths import Paths
from finetune.reports.base import read_report
from finetune.reports.train import TrainReport
from finetune.reports.validation import ValidationReport
from finetune.train import setup
from finetune.train import stage as train
from finetune.validate import stage as validate
from tests.builders.small_bases import small_checkpoint
from tests.builders.small_run import params, validated

pytestmark = pytest.mark.slow


EXPERTS = {"target_parameters": ["mlp.experts.down_proj"], "lora_dropout": 0.0}


def started(paths: Paths, start: dict[str, Any], **changes: Any) -> Config:
    """Return params of the same run that continue from an adapter."""
    return parse_config(params(adapter__start=start, **changes), "params.yaml")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train a small run once; return its folder and the hash of its adapter, a copy of which is in `earlier`."""
    root = tmp_path_factory.mktemp("first")
    config, paths = validated(root)
    train.run(params_of("train", config), paths)
    shutil.copytree(paths.adapter, root / "earlier")
    return root, read_manifest(paths.adapter)["adapter_sha256"]


@pytest.fixture
def run(first: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Paths, dict[str, Any]]:
    """Copy that run; return its paths and a start at its adapter."""
    shutil.copytree(first[0], tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return Paths(tmp_path / "run"), {"path": "earlier", "sha256": first[1]}


def test_no_step_changes_no_bit(run: tuple[Paths, dict[str, Any]]) -> None:
    """The adapter before the first step is the one to continue from."""
    paths, start = run
    config = started(paths, start)
    validate.run(params_of("validate", config), paths)
    codes = {finding.code for finding in read_report(paths.reports / "validation.json", ValidationReport).findings}
    assert "start-rows-unknown" in codes
    model = setup.build_model(params_of("train", config), "cpu", paths)
    assert save_adapter(model, "base", paths.root / "again") == start["sha256"]


def test_a_manifest_of_another_program_is_left_alone(run: tuple[Paths, dict[str, Any]]) -> None:
    """It is a common name; the base is then compared by its name alone."""
    paths, start = run
    (paths.root / "earlier/manifest.json").write_text('{"version": 3}', encoding="utf-8")
    validate.run(params_of("validate", started(paths, start)), paths)
    assert read_manifest(paths.validated)["start"] == {
        "sha256": start["sha256"],
        "source": "folder earlier",
        "start": None,
    }


def test_the_lineage_is_in_manifest_report_and_card(run: tuple[Paths, dict[str, Any]]) -> None:
    """A run that continues from a run that continued names both adapters."""
    paths, start = run
    lineage = {"sha256": start["sha256"], "source": "folder earlier", "start": None}
    for _ in range(2):
        config = started(paths, start, train__num_train_epochs=1, train__learning_rate=1e-3)
        for stage, name in ((validate, "validate"), (train, "train")):
            stage.run(params_of(name, config), paths)
        manifest = read_manifest(paths.adapter)
        assert manifest["start"] == lineage
        assert manifest["adapter_sha256"] != start["sha256"]
        shutil.copytree(paths.adapter, paths.root / "later", dirs_exist_ok=True)
        start = {"path": "later", "sha256": manifest["adapter_sha256"]}
        lineage = {"sha256": start["sha256"], "source": "folder later", "start": lineage}
    report = read_report(paths.reports / "train.json", TrainReport)
    assert report.start is not None
    assert report.start.start is not None
    for stage, name in ((evaluate, "evaluate"), (decide, "decide")):
        stage.run(params_of(name, config), paths)
    card = paths.model_card.read_text(encoding="utf-8")
    page = (paths.reports / "report.html").read_text(encoding="utf-8")
    for sha256 in (report.start.sha256, report.start.start.sha256):
        assert sha256 in card
        assert sha256 in page
    assert card.index(report.start.sha256) < card.index(report.start.start.sha256)


def drop_tensor(folder: Path) -> None:
    """Remove one tensor from an adapter."""
    tensors = load_file(folder / WEIGHTS)
    del tensors[min(tensors)]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, **keys: Any) -> None:
    """Change keys of an adapter's PEFT config."""
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | keys
    (folder / CONFIG).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "keys", "message"),
    [
        (None, {"r": 8}, "has r: 4, but params.yaml has 8; set adapter.r: 4"),
        (None, {"lora_alpha": 64}, "but params.yaml has 64"),
        (None, {"use_rslora": True}, "has use_rslora: False"),
        (None, {"use_dora": True}, "has use_dora: False"),
        (None, {"target_modules": ["all-linear", "embed_tokens"]}, "has no tensor for base_model.model.model.embed"),
        (None, {"target_modules": ["q_proj"]}, "has a tensor that this adapter lacks: base_model.model.model.layers"),
        (None, {"layers_to_transform": [0]}, "has a tensor that this adapter lacks: base_model.model.model.layers.1"),
        (None, {"modules_to_save": ["model.norm"]}, "has no tensor for base_model.model.model.norm.weight (1 such)"),
        (drop_tensor, {}, "has no tensor for"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 99), {}, "has no readable adapter_model.safetensors"),
        (lambda folder: (folder / CONFIG).unlink(), {}, "has no readable adapter_model.safetensors"),
        (lambda folder: change_config(folder, alpha_pattern={"q_proj": 64}), {}, "is not a LoRA adapter with one rank"),
        (lambda folder: change_config(folder, rank_pattern={"q_proj": 8}), {}, "is not a LoRA adapter with one rank"),
        (lambda folder: change_config(folder, peft_type="VERA"), {}, "is not a LoRA adapter with one rank"),
        (lambda folder: change_config(folder, base_model_name_or_path="org/other"), {}, "was trained on org/other"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: tuple[Paths, dict[str, Any]], damage: Any, keys: dict[str, Any], message: str
) -> None:
    """Each is a finding before anything is loaded, whether the adapter has too much or too little."""
    paths, start = run
    if damage is not None:
        damage(paths.root / "earlier")
        if (paths.root / "earlier" / WEIGHTS).stat().st_size > 99:
            start["sha256"] = sha256_tensors(paths.root / "earlier" / WEIGHTS)
    config = started(paths, start, **{f"adapter__{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError) as raised:
        validate.run(params_of("validate", config), paths)
    assert raised.value.problem.code == "start-unfit"
    assert message in str(raised.value)


def test_a_missing_start_and_a_wrong_hash_are_refused(run: tuple[Paths, dict[str, Any]]) -> None:
    """The hash identifies the adapter; the place may change."""
    paths, start = run
    for wrong, message in (
        ({"path": "nowhere", "sha256": start["sha256"]}, "folder nowhere can't be fetched"),
        ({"experiment": "none", "sha256": start["sha256"]}, "experiment none can't be fetched"),
        ({"hub": "org/x", "revision": "0" * 40, "sha256": start["sha256"]}, "org/x at 0000000000"),
        ({"path": "earlier", "sha256": "0" * 64}, f"its tensors have the hash {start['sha256']}"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate.run(params_of("validate", started(paths, wrong)), paths)


@pytest.mark.parametrize(
    "start",
    [{}, {"path": "a", "hub": "b/c", "revision": "0" * 40}, {"hub": "b/c"}, {"path": "a", "revision": "0" * 40}],
)
def test_a_start_has_one_place(start: dict[str, Any]) -> None:
    """A commit belongs to a repository of the Hub."""
    with pytest.raises(ConfigError, match=r"exactly one of path, experiment and hub|hub needs revision"):
        parse_config(params(adapter__start=start | {"sha256": "0" * 64}), "params.yaml")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("mistral3", {"target_modules": "all-linear", "modules_to_save": ["model.norm"]}),
        ("qwen3_vl", {"layers_to_transform": [1], "trainable_token_indices": [5, 7]}),
        (
            "qwen3_moe",
            {"target_modules": "all-linear", "target_parameters": ["mlp.experts.down_proj"], "lora_dropout": 0.0},
        ),
        ("smollm3", {"use_dora": True, "modules_to_save": ["embed_tokens"]}),
    ],
)
def test_every_kind_of_tensor_is_loaded(tmp_path: Path, kind: str, keys: dict[str, Any]) -> None:
    """Names and shapes are known without weights, and what is loaded is published again with the same bits."""
    small_checkpoint(kind, tmp_path / "base")
    start = {"path": "x", "sha256": "0" * 64}
    changes = {f"adapter__{key}": value for key, value in keys.items()} | {"adapter__start": start}
    config = parse_config(params(model__base=str(tmp_path / "base"), **changes), "params.yaml")
    model = add_adapter(load_base(config.model, "cpu"), config.adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    sha256 = save_adapter(model, "base", tmp_path / "adapter")
    found = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter" / WEIGHTS).items()}
    assert adapter_shapes(model.language, config.adapter, ()) == found
    content = config.adapter.model_dump() | {"start": start | {"sha256": sha256}}
    adapter = AdapterConfig.model_validate(content)
    assert find_start_problem(tmp_path / "adapter", config.model, adapter, model.language, ()) is None
    again = add_adapter(load_base(config.model, "cpu"), config.adapter)
    load_start(again, tmp_path / "adapter" / WEIGHTS)
    assert save_adapter(again, "base", tmp_path / "again") == sha256
