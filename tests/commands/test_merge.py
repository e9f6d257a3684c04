"""merge writes one plain 16-bit model that answers as base and adapter do, or stops with a reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.cli.main import main
from finetune.commands import merge
from finetune.commands.merge import Measured, allowed_difference, compare_forms, cut_packed, stop_unless_the_same
from finetune.config.params import params_of
from finetune.errors import ConfigError, DataError, MachineError
from finetune.files.manifests import MANIFEST, read_manifest
from finetune.files.strict_json import read_json
from finetune.model.adapter import load_adapter
from finetune.model.base import load_base
from finetune.model.tokens import IGNORED
from finetune.paths import Paths
from finetune.train import stage
from tests.builders.small_run import copy_of, validated
from tests.train.test_stage import enter

pytestmark = pytest.mark.slow

RATE = {"train__learning_rate": 1e-2}  # high, so that the adapter learns something in a dozen steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained(model__dtype="bfloat16")`: return a workspace with a published adapter, one per set of keys."""
    ready = tmp_path_factory.mktemp("merge") / "ready"
    validated(ready)
    done: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in done:
            done[key] = copy_of(ready, ready.parent / str(len(done)))
            config, paths = enter(done[key], **RATE, **changes)
            stage.run(params_of("train", config), paths)
        return done[key]

    return make


def merged(root: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Merge in a workspace and return the config and the manifest of the published model."""
    config, paths = enter(root, **RATE, **changes)
    merge.run(config, paths)
    return config, read_manifest(Paths(root).merged)


def answers(model: Any) -> torch.Tensor:
    """Return logits (rows, tokens, vocabulary) in float32."""
    ids = torch.randint(0, 1000, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter__use_dora": True},
        {"adapter__init_lora_weights": "pissa", "adapter__use_rslora": True},
        {"adapter__target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["plain", "dora", "pissa", "tied"],
)
def test_merged_model_equals_base_and_adapter(trained: Callable[..., Path], changes: dict[str, Any]) -> None:
    """The merged model needs no PEFT and no other folder; tied weights with an adapter work, too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changes = changes | {"model__dtype": "bfloat16"}
    root = trained(**changes)
    config, manifest = merged(root, **changes)
    model = AutoModelForCausalLM.from_pretrained(Paths(root).merged, dtype=torch.bfloat16, use_safetensors=True)
    assert not hasattr(model, "peft_config")
    base = load_adapter(load_base(config.model, "cpu"), root / "out/adapter")
    together = answers(base)
    with base.disable_adapter():
        moved = float((answers(base) - together).abs().max())
    # measured: 0.004 to 0.016, while the adapter changes logits by 0.5 to 4
    assert float((answers(model) - together).abs().max()) < min(0.04, moved / 10)
    assert AutoTokenizer.from_pretrained(Paths(root).merged).chat_template
    assert manifest["adapter_sha256"] == read_manifest(root / "out/adapter")["adapter_sha256"]
    assert manifest["base"]["name"] == "base"
    assert manifest["dtype"] == "bfloat16"
    assert set(manifest["compared"]["loss"]) == {"adapted", "base", "merged"}
    assert {path.suffix for path in (Paths(root).merged).iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__quantization": "nf4"}, "trained and evaluated on base weights rounded to NF4"),
        ({"model__quantization": "nf4", "model__dtype": "float16"}, "the merged model has float16 weights"),
        ({}, "evaluated in float32; bfloat16 rounds each merged weight to a relative precision of 1/256"),
    ],
    ids=["nf4", "nf4-float16", "float32"],
)
def test_difference_to_the_evaluated_model_is_reported(
    trained: Callable[..., Path], capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    """The verdict was on another form of the model; its difference to the merged one is reported."""
    root = trained(**changes)
    capsys.readouterr()
    _, manifest = merged(root, **changes)
    shown = capsys.readouterr().out
    assert told in shown
    assert "the verdict covers base + adapter, not this merged model: evaluate it before you ship it" in shown
    compared = manifest["compared"]
    evaluated, adapted = (compared["against_merged"][name] for name in ("evaluated", "adapted"))
    assert adapted["mean_difference"] <= compared["allowed_mean_difference"]
    assert evaluated["mean_difference"] > 0
    assert ("nf4" in str(changes)) == (evaluated["mean_difference"] > 3 * adapted["mean_difference"])
    assert f"{compared['loss']['evaluated']:.4f}" in shown
    assert f"{evaluated['mean_difference']:.4f}" in shown


@pytest.mark.parametrize("wrong", ["lost", "twice", "nan"])
def test_tampered_merge_is_not_published(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """If the adapter is lost, applied twice or not finite, the exit code is 3 and the previous model stays."""
    root = trained(model__dtype="bfloat16")
    _, before = merged(root, model__dtype="bfloat16")

    def tamper(model: Any) -> Any:
        if wrong == "lost":
            return model.unload()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data *= 2 if wrong == "twice" else float("nan")
        return model.merge_and_unload(safe_merge=False)

    config, paths = enter(root, **RATE, model__dtype="bfloat16")
    monkeypatch.setattr(merge, "merge", tamper)
    with pytest.raises(DataError, match=r"rounding explains .*; ship the adapter with its base"):
        merge.run(config, paths)
    assert read_manifest(Paths(root).merged) == before
    assert not list(root.glob("out/.merged*"))


def test_non_finite_adapter_is_reported(trained: Callable[..., Path]) -> None:
    """PEFT's own check during the merge is reported in one line instead of a ValueError."""
    root = trained(model__dtype="bfloat16")
    config, paths = enter(root, **RATE, model__dtype="bfloat16")
    model = load_adapter(load_base(config.model, "cpu"), paths.adapter)
    next(tensor for name, tensor in model.named_parameters() if "lora_B" in name).data.fill_(float("inf"))
    with pytest.raises(DataError, match="out/adapter: can't be merged: NaNs detected in the merged weights"):
        merge.merge(model)


def test_missing_or_outdated_adapter_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    """Only the adapter that train published for the current params is merged."""
    root = copy_of(trained(model__dtype="bfloat16"), tmp_path / "run")
    shutil.rmtree(Paths(root).merged, ignore_errors=True)
    with pytest.raises(
        DataError, match=r"was trained with model.quantization: none, but params.yaml has nf4; restore its"
    ):
        merged(root, model__dtype="bfloat16", model__quantization="nf4")
    (root / "base/config.json").write_text((root / "base/config.json").read_text() + "\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"out/adapter: was trained on base at sha256:\w+, but params.yaml names base at"
    ):
        merged(root, model__dtype="bfloat16")
    shutil.rmtree(root / "out/adapter")
    assert main(["merge"]) == 3
    assert not Paths(root).merged.exists()


def test_changed_adapter_or_rows_are_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    """The manifest's hashes prove that this is the evaluated adapter."""
    root = copy_of(trained(model__dtype="bfloat16"), tmp_path / "run")
    content = read_json(root / "data/validated" / MANIFEST)
    content["files"].pop("train.arrow")
    (root / "data/validated" / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"data/validated: is not the data that out/adapter was trained on; train again"
    ):
        merged(root, model__dtype="bfloat16")
    with (root / "out/adapter/adapter_config.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    with pytest.raises(DataError, match=r"adapter_config.json: differs from the published file"):
        merged(root, model__dtype="bfloat16")


def test_full_disk_is_reported_before_writing(trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A 7B model needs 14 GB, and the error of safetensors does not name a size."""
    root = trained(model__dtype="bfloat16")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match=r"out: 0.00 GB are needed, but only 0.00 GB are free; free disk space"):
        merged(root, model__dtype="bfloat16")


def test_merging_holds_the_lock_of_the_folder(trained: Callable[..., Path]) -> None:
    """Otherwise train could publish another adapter during the merge."""
    from finetune.files.run_lock import pipeline_lock

    root = trained(model__dtype="bfloat16")
    _, paths = enter(root, **RATE, model__dtype="bfloat16")
    with pipeline_lock(paths.work / "pipeline.lock", "train"):
        assert main(["merge"]) == ConfigError.exit_code


def form(nats: list[float], size: float = 10.0) -> Measured:
    """Return a form of the model with these losses of its tokens."""
    return Measured(torch.zeros(len(nats)), torch.tensor(nats), size)


def test_bound_covers_rounding_and_half_of_the_adapters_effect() -> None:
    """In bfloat16 half a unit in the last place is 1/256: for logits of about 10, 0.039 nats."""
    one, base = form([1.0, 1.0]), form([9.0, 9.0])
    assert allowed_difference(one, base, "bfloat16") == pytest.approx(2 * 10 / 256)
    assert allowed_difference(one, base, "float16") == pytest.approx(2 * 10 / 2048)
    assert allowed_difference(one, form([1.1, 0.9]), "bfloat16") == pytest.approx(0.05)
    assert allowed_difference(one, form([1.0, 1.001]), "bfloat16") == pytest.approx(10 / 256)
    assert allowed_difference(form([1.0], size=0.1), form([9.0]), "bfloat16") == pytest.approx(2 / 256)


def test_comparison_is_per_token_and_refuses_nan(tmp_path: Path) -> None:
    """NaN is below no bound, so the comparison must be written to fail for NaN."""
    forms = {"adapted": form([1.0, 2.0]), "base": form([5.0, 5.0]), "merged": form([1.0, 2.125])}
    found = compare_forms(forms, "bfloat16")
    assert found["against_merged"]["adapted"] == {
        "same_likeliest": 1.0,
        "mean_difference": 0.0625,
        "largest_difference": 0.125,
    }
    stop_unless_the_same(found, tmp_path)
    found["against_merged"]["adapted"]["mean_difference"] = float("nan")
    with pytest.raises(DataError, match="differ from those of base and adapter by nan nats"):
        stop_unless_the_same(found, tmp_path)


def test_packed_rows_are_compared_example_by_example() -> None:
    """In a packed row an example could attend to its neighbours, which does not happen in evaluation."""
    row = {"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORED, 2, IGNORED, IGNORED, 5], "seq_lengths": [2, 3]}
    assert list(cut_packed(row)) == [([1, 2], [IGNORED, 2]), ([3, 4, 5], [IGNORED, IGNORED, 5])]
    whole = {"input_ids": [1, 2], "labels": [IGNORED, 2]}
    assert list(cut_packed(whole)) == [([1, 2], [IGNORED, 2])]
