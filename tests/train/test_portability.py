"""An adapter trained with one machine's recipe works on every other machine: same file format, same effect."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.config.loading import read_yaml
from finetune.config.model import ModelConfig
from finetune.config.params import Config, parse_config
from finetune.model.adapter import CONFIG, WEIGHTS, add_adapter, load_adapter, save_adapter
from finetune.model.base import load_base
from finetune.model.base_config import find_base_config
from finetune.model.shrink import build_small_base, rehearsal_tokenizer
from tests.builders.small_run import ROOT

pytestmark = pytest.mark.slow

RECIPES = ("h100", "apple-m4")  # the same base: in NF4 on a GPU, in bfloat16 on a Mac
STEPS, RATE = 8, 5e-3  # moves the small base's logits by more than 1; the recipes' rate is meant for thousands of steps
# The largest allowed relative difference (ratio of norms) between the adapter's effect on the logits on another form of
# the base and on its own. Measured: 0.001 to 0.008 between bfloat16, float16 and float32; 0.14 to 0.17 between NF4 and
# the others, which is what NF4 does to the logits of this random base without an adapter (0.15). Halving the scale
# gives 0.5.
TOLERANCE_16, TOLERANCE_NF4 = 0.02, 0.25


def recipe(name: str) -> Config:
    """Return a recipe as it runs: its sections replace those of params.yaml."""
    content = read_yaml(ROOT / "params.yaml") | read_yaml(ROOT / f"recipes/{name}.yaml")
    return parse_config(content, f"recipes/{name}.yaml")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create Mistral cut to two layers in `base`, and beside it the adapters that the recipes train and publish."""
    folder = tmp_path_factory.mktemp("home")
    os.chdir(ROOT)  # the recipes' templates are relative to it, and another test may have changed the directory
    model = recipe("h100").model
    tokenizer, _ = rehearsal_tokenizer(model, ROOT)
    build_small_base(find_base_config(model, ROOT), tokenizer, folder / "base", seed=0)
    for name in RECIPES:
        publish(recipe(name), folder, name)
    return folder


def model_in(model: ModelConfig, folder: Path, **changes: Any) -> ModelConfig:
    """Return a recipe's model settings with the base in this folder."""
    return model.model_copy(update={"base": str(folder / "base"), "revision": None} | changes)


def number_formats(folder: Path) -> dict[str, ModelConfig]:
    """Return the base in the number format of each machine."""
    plain = model_in(recipe("apple-m4").model, folder)
    dtypes = {dtype: plain.model_copy(update={"dtype": dtype}) for dtype in ("bfloat16", "float16", "float32")}
    return {"nf4": model_in(recipe("h100").model, folder), **dtypes}


def tokens(seed: int) -> torch.Tensor:
    """Return random rows (2, 32) of token ids of the small base."""
    return torch.randint(0, 2000, (2, 32), generator=torch.Generator().manual_seed(seed))


def publish(config: Config, folder: Path, name: str, rows: int = 1) -> None:
    """Train some steps with the recipe's base and number format, then publish as the train stage does."""
    torch.manual_seed(config.seed)
    model = add_adapter(load_base(model_in(config.model, folder), "cpu"), config.adapter).train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in weights} == {torch.float32}
    optimizer = torch.optim.AdamW(weights, lr=RATE)
    ids = tokens(rows)
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(model, config.model.base, folder / name)


def logits_added(model: ModelConfig, adapter: Path) -> torch.Tensor:
    """Return what an adapter adds to the logits (rows, tokens, vocabulary) of a base, for trained and other rows."""
    loaded = load_adapter(load_base(model, "cpu"), adapter)
    ids = torch.cat([tokens(1), tokens(2)])
    with torch.inference_mode():
        whole = loaded(input_ids=ids).logits.float()
        with loaded.disable_adapter():
            return whole - loaded(input_ids=ids).logits.float()  # type: ignore[no-any-return]


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference divided by the norm of the expected value."""
    return float((found - expected).norm() / expected.norm())


def test_both_recipes_publish_the_same_form(home: Path) -> None:
    """Keys, shapes, number formats and the adapter config are equal: the files do not depend on the machine."""
    first, second = (load_file(home / name / WEIGHTS) for name in RECIPES)
    assert len(first) == 2 * 7 * 2  # two layers, seven linear layers, two matrices
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in first.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in second.items()
    }
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    read = [json.loads((home / name / CONFIG).read_text(encoding="utf-8")) for name in RECIPES]
    assert read[0] == read[1]
    assert read[0]["base_model_name_or_path"] == "mistralai/Mistral-7B-Instruct-v0.3"


@pytest.mark.parametrize(("name", "trained_on"), [("h100", "nf4"), ("apple-m4", "bfloat16")])
def test_adapter_has_the_same_effect_on_every_form_of_the_base(home: Path, name: str, trained_on: str) -> None:
    """From the H100 to the Mac and back, and to a CPU in float32: results differ only by the rounding of the base."""
    reference = logits_added(number_formats(home)[trained_on], home / name)
    assert reference.abs().max() > 1  # the adapter has an effect to compare
    for form, model in number_formats(home).items():
        tolerance = TOLERANCE_NF4 if "nf4" in (form, trained_on) else TOLERANCE_16
        assert form == trained_on or relative_difference(logits_added(model, home / name), reference) < tolerance, form


def test_pissa_adapter_is_portable(home: Path) -> None:
    """PiSSA trains on a modified base; the published adapter still fits the base in 16 bit and in NF4."""
    config = recipe("apple-m4")
    adapter = config.adapter.model_copy(update={"init_lora_weights": "pissa_niter_16"})
    publish(config.model_copy(update={"adapter": adapter}), home, "pissa")
    reference = logits_added(number_formats(home)["bfloat16"], home / "pissa")
    assert relative_difference(logits_added(number_formats(home)["float32"], home / "pissa"), reference) < TOLERANCE_16
    assert relative_difference(logits_added(number_formats(home)["nf4"], home / "pissa"), reference) < TOLERANCE_NF4


def test_wrong_adapters_exceed_the_tolerance(home: Path, tmp_path: Path) -> None:
    """The tolerance is strict enough: half the scale, a lost layer and an adapter of other rows all exceed it."""
    model = number_formats(home)["bfloat16"]
    reference = logits_added(model, home / "apple-m4")
    content = json.loads((home / "apple-m4" / CONFIG).read_text(encoding="utf-8"))
    weights = load_file(home / "apple-m4" / WEIGHTS)

    def write(name: str, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).write_text(json.dumps(content | changes), encoding="utf-8")
        save_file(tensors, tmp_path / name / WEIGHTS)
        return tmp_path / name

    half = write("half", weights, lora_alpha=content["lora_alpha"] / 2)
    lost = write("lost", {name: tensor * (".layers.1." not in name) for name, tensor in weights.items()})
    publish(recipe("apple-m4"), home, "other", rows=3)
    for wrong in (half, lost, home / "other"):
        assert relative_difference(logits_added(model, wrong), reference) > 1.5 * TOLERANCE_NF4, wrong.name
