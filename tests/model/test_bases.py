"""Today's model classes, text-only and multimodal, run through all five stages as small random checkpoints."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from finetune.config.model import ModelConfig
from finetune.config.params import Config, params_of, parse_config
from finetune.config.validate import ValidateParams
from finetune.errors import BaseModelError, ConfigError
from finetune.model.adapter import CONFIG, WEIGHTS, add_adapter, count_parameters, load_adapter
from finetune.model.architecture import measure_architecture
from finetune.model.base import attention_used, load_base
from finetune.model.base_config import find_base_config
from finetune.model.merging import merge, save_model
from finetune.model.targets import trainable_parameters
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport
from finetune.reports.train import TrainReport
from finetune.validate.checks.adapter import check_router
from finetune.validate.checks.base_model import examine_base
from finetune.validate.checks.settings import check_attention
from tests.builders.small_bases import KINDS, MULTIMODAL, TEXT, run_stages, small_checkpoint
from tests.builders.small_run import ROOT, params

pytestmark = pytest.mark.slow

USUAL = ("mistral3", "qwen3_vl")  # of each way to load; the others run with the pipeline's tests
MORE = pytest.mark.end_to_end


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Return the logits of a fixed text."""
    ids = torch.arange(300, 320)[None]
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("kind", [kind if kind in USUAL else pytest.param(kind, marks=MORE) for kind in KINDS])
def test_all_stages_run_on_a_class(tmp_path: Path, kind: str) -> None:
    """The adapter that is trained loads with PEFT alone into the class that transformers and vLLM load."""
    config, paths = run_stages(tmp_path, kind, KINDS[kind])
    assert read_report(paths.reports / "decision.json", DecisionReport).verdict in ("iterate", "abort")
    auto = AutoModelForImageTextToText if kind in MULTIMODAL else AutoModelForCausalLM
    whole = auto.from_pretrained(config.model.base, attn_implementation=config.model.attention)
    ours = load_adapter(load_base(config.model, "cpu"), paths.adapter)
    bare = logits(load_base(config.model, "cpu").eval())
    assert torch.equal(logits(whole.eval()), bare)
    plain = PeftModel.from_pretrained(whole, str(paths.adapter)).eval()
    assert torch.equal(logits(plain), logits(ours))
    assert (logits(ours) - bare).abs().max() > 1e-3

    named = {name for name, _ in plain.named_parameters() if "lora_" in name}
    with safe_open(paths.adapter / WEIGHTS, "pt") as file:
        assert {name.replace(".weight", ".default.weight") for name in file.keys()} == named  # noqa: SIM118
    trained = read_report(paths.reports / "train.json", TrainReport).parameters
    assert trained.total == sum(parameter.numel() for parameter in ours.parameters())
    content = json.loads((paths.adapter / CONFIG).read_text(encoding="utf-8"))
    assert set(content["target_modules"]) == set(KINDS[kind])


@pytest.mark.end_to_end
@pytest.mark.parametrize("kind", ["gemma4", "mistral3", "qwen3_5", "qwen3_moe", "qwen3_vl"])
def test_all_stages_run_on_a_quantized_class(tmp_path: Path, kind: str) -> None:
    """All linear layers but the head are quantized; experts, which are no linear layers, stay as they are."""
    config, paths = run_stages(tmp_path, kind, KINDS[kind], model__quantization="nf4")
    base = load_base(config.model, "cpu")
    plain = {name for name, module in base.named_modules() if type(module) is torch.nn.Linear}
    assert {name.rsplit(".", 1)[-1] for name in plain} == {"lm_head"}
    experts = [parameter for name, parameter in base.named_parameters() if ".experts." in name]
    assert all(parameter.dtype == torch.float32 for parameter in experts)
    assert bool(experts) is ("moe" in kind)
    before = logits(base.eval())
    assert (logits(load_adapter(base, paths.adapter)) - before).abs().max() > 1e-3


def with_base(folder: Path, targets: str) -> Config:
    """Return params with the base in a folder and these layers to adapt."""
    return parse_config(params(model__base=str(folder), adapter__target_modules=targets), "params.yaml")


@pytest.mark.parametrize("kind", ["llama4", "mistral3", "qwen3_5_moe"])
def test_a_merged_language_model_loads_by_itself(tmp_path: Path, kind: str) -> None:
    """The merged model is a text-only base with the names of its own class, and computes what base and adapter do."""
    small_checkpoint(kind, tmp_path / "base")
    config = with_base(tmp_path / "base", "q_proj")
    model = add_adapter(load_base(config.model, "cpu"), config.adapter).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = logits(model)
    (tmp_path / "merged").mkdir()
    save_model(merge(model), tmp_path / "merged")
    merged = load_base(settings(tmp_path / "merged"), "cpu").eval()
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert not merged.language.is_part


def test_a_model_with_removed_towers_is_not_merged(tmp_path: Path) -> None:
    """Transformers would give the missing vision part random weights."""
    small_checkpoint("qwen3_vl", tmp_path / "base")
    config = with_base(tmp_path / "base", "q_proj")
    model = add_adapter(load_base(config.model, "cpu"), config.adapter)
    with pytest.raises(ConfigError, match="Qwen3VLForConditionalGeneration can't be merged without its other parts"):
        merge(model)


def test_a_separate_head_is_planned_and_loaded(mistral3: Path, tmp_path: Path) -> None:
    """Checkpoints of Mistral Small 3.1 have a head of their own, and a config that does not say so."""
    folder = tmp_path / "base"
    shutil.copytree(mistral3, folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del content["tie_word_embeddings"], content["text_config"]["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["language_model.model.embed_tokens.weight"]
    weights["language_model.lm_head.weight"] = embeddings.flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_base(settings(folder), "cpu")
    assert not loaded.config.tie_word_embeddings
    counted = measure_architecture(find_base_config(settings(folder), Path()))
    assert counted.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert not counted.tied


def test_sizes_may_be_at_the_top_of_a_multimodal_config(tmp_path: Path) -> None:
    """Qwen2.5-VL's config has them there; its class moves them into the text config."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    content = {"model_type": "qwen2_5_vl", "vocab_size": 256, "intermediate_size": 128, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    assert measure_architecture(find_base_config(settings(tmp_path), Path())).hidden == 64


def test_all_linear_leaves_out_routers(tmp_path: Path) -> None:
    """Llama 4's router is a linear layer that gives a tuple, which no adapter can be added to."""
    small_checkpoint("llama4", tmp_path / "base")
    config = parse_config(
        params(model__base=str(tmp_path / "base"), adapter__target_modules="all-linear"), "params.yaml"
    )
    model = add_adapter(load_base(config.model, "cpu"), config.adapter)
    assert "router" not in model.peft_config["default"].target_modules
    assert logits(model.eval()).isfinite().all()


def test_all_linear_finds_the_layers_of_every_class(tmp_path: Path) -> None:
    """In a hybrid, these are those of both kinds of layers; the plan counts what PEFT trains, and the head is left."""
    small_checkpoint("lfm2", tmp_path / "base")
    config = parse_config(
        params(model__base=str(tmp_path / "base"), adapter__target_modules="all-linear"), "params.yaml"
    )
    model = add_adapter(load_base(config.model, "cpu"), config.adapter)
    architecture = measure_architecture(find_base_config(config.model, Path()))
    assert count_parameters(model)["trainable"] == trainable_parameters(architecture, config.adapter)
    names = set(model.peft_config["default"].target_modules)
    assert names == {*TEXT["lfm2"], "w1", "w2", "w3"}


@pytest.fixture(scope="module")
def mistral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small multimodal checkpoint."""
    folder = tmp_path_factory.mktemp("bases") / "mistral3"
    small_checkpoint("mistral3", folder)
    return folder


def settings(folder: Path) -> ModelConfig:
    """Return the section model with the base in a folder."""
    return parse_config(params(model__base=str(folder)), "params.yaml").model


def test_towers_are_neither_loaded_nor_counted(mistral3: Path) -> None:
    """The plan counts what is loaded, which is less than the checkpoint contains."""
    whole = AutoModelForImageTextToText.from_pretrained(mistral3)
    loaded = load_base(settings(mistral3), "cpu")
    counted = measure_architecture(find_base_config(settings(mistral3), Path()))
    size = sum(parameter.numel() for parameter in loaded.parameters())
    assert counted.parameters == size < sum(parameter.numel() for parameter in whole.parameters())
    assert (counted.class_name, counted.layers) == ("MistralForCausalLM", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "lacks text_config.hidden_size"),
        ({"text_config": {"model_type": "mistral", "hidden_size": 64}}, "lacks text_config.num_hidden_layers"),
        ({"model_type": "clip"}, "has the model_type 'clip', which is not a causal language model"),
        ({"model_type": "siglip"}, "has the model_type 'siglip', which is not a causal language model"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "has the class LlavaForConditionalGeneration, but"),
    ],
)
def test_a_checkpoint_without_a_language_model_is_refused(
    mistral3: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The error comes from config.json, before anything is loaded."""
    content = json.loads((mistral3 / "config.json").read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in content.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(BaseModelError, match=re.escape(f"its config.json {message}")):
        measure_architecture(find_base_config(settings(tmp_path), Path()))


def test_missing_weights_are_refused(mistral3: Path, tmp_path: Path) -> None:
    """Transformers gives missing weights random values, with a warning only."""
    folder = tmp_path / "base"
    shutil.copytree(mistral3, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no weights for model\.layers\.1\.mlp\.up_proj\.weight \(1 such\)"):
        load_base(settings(folder), "cpu")


def deeper(weights: dict[str, torch.Tensor]) -> None:
    """Add a layer."""
    more = {name.replace("layers.1.", "layers.5."): tensor.clone() for name, tensor in weights.items()}
    weights |= more


def renamed(weights: dict[str, torch.Tensor]) -> None:
    """Give all tensors another prefix."""
    for name in list(weights):
        weights[f"backbone.{name}"] = weights.pop(name)


def narrower(weights: dict[str, torch.Tensor]) -> None:
    """Cut the outputs of one layer in half."""
    name = next(name for name in weights if name.endswith("layers.1.self_attn.o_proj.weight"))
    weights[name] = weights[name][:64].clone()


def shallower(weights: dict[str, torch.Tensor]) -> None:
    """Remove the weights of one expert or layer."""
    del weights[next(name for name in sorted(weights) if "layers.1" in name and "down_proj" in name)]


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "mistral3", "qwen3_vl", "llama4", "gpt_oss"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (deeper, r"weights for model\..*layers\.5\..* such\), which its config.json does not have"),
        (renamed, r"no weights for .* such\); its files have backbone\."),
        (narrower, r"weights of 64 x 128 for model\..*layers\.1\.self_attn\.o_proj\.weight, which is 128 x 128 in"),
        (
            shallower,
            r"no weights for model.*layers\.1.*down_proj|weights of 3 x 128 x \d+ for .*down_proj, which is 4 x",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, damage: Any, message: str
) -> None:
    """It is a finding before the training, and an error of any command that loads the base."""
    small_checkpoint(kind, tmp_path / "base")
    file = tmp_path / "base/model.safetensors"
    weights = load_file(file)
    damage(weights)
    save_file(weights, file, metadata={"format": "pt"})
    attention = "eager" if kind == "gpt_oss" else "sdpa"
    monkeypatch.chdir(tmp_path)
    config = parse_config(params(model__base="base", model__attention=attention), "params.yaml")
    base = examine_base(params_of("validate", config), Path(), fetch=True)
    (finding,) = (finding for finding in base.findings if finding.code == "base-incomplete")
    assert re.search(message, finding.message)
    with pytest.raises(ConfigError, match=message):
        load_base(config.model, "cpu")


def test_an_unsupported_attention_is_a_finding(tmp_path: Path) -> None:
    """Gpt-oss has no sdpa; auto then means eager."""
    small_checkpoint("gpt_oss", tmp_path / "base")
    config = parse_config(params(model__base=str(tmp_path / "base")), "params.yaml")
    architecture = measure_architecture(find_base_config(config.model, Path()))
    (finding,) = check_attention(ValidateParams.select_from(config), architecture)
    assert (finding.code, finding.message) == ("attention-unsupported", "GptOssForCausalLM does not support sdpa")
    auto = config.model.model_copy(update={"attention": "auto"})
    assert attention_used(auto, "cpu") == "eager"


def test_the_page_lists_the_tested_classes() -> None:
    """The table of docs/bases.md has one row per tested model type, with its layers."""
    page = (ROOT / "docs/bases.md").read_text(encoding="utf-8").split("## ")[1]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\|([^|]*)\|", page, flags=re.MULTILINE)
    short = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    shown = {kind: {short.get(name, name) for name in re.findall(r"\w+", names)} for kind, names in rows}
    assert shown == {kind: set(names) for kind, names in KINDS.items()}


# Convolutions, linear attention, recurrent layers; and the eager attention of gpt-oss, which ignores positions (5.23).
MIXING = {"lfm2", "qwen3_5", "qwen3_5_moe", "recurrent_gemma", "gpt_oss"}


@pytest.mark.parametrize("kind", [*KINDS, "recurrent_gemma"])
def test_packing_is_refused_where_layers_mix_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Attention separates packed examples by their positions; recurrent and convolutional layers do not."""
    small_checkpoint(kind, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    config = parse_config(params(model__base="base", train__packing=True), "params.yaml")
    codes = {finding.code for finding in examine_base(params_of("validate", config), Path()).findings}
    assert ("packing-mixes" in codes) is (kind in MIXING)


@pytest.mark.parametrize("kind", ["bamba", "falcon_h1", "granitemoehybrid"])
def test_infinite_numbers_of_a_config_are_read(tmp_path: Path, kind: str) -> None:
    """Transformers 5 writes them as objects, for example a limit of time steps."""
    AutoConfig.for_model(kind, num_hidden_layers=2).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert measure_architecture(find_base_config(settings(tmp_path), Path())).layers == 2


def test_the_loss_of_routers_is_not_part_of_the_validation_loss(tmp_path: Path) -> None:
    """It changes the training if it is on, and the loss before the first step is the same with and without it."""
    losses = {}
    for coefficient in (0.0, 0.5):
        root = tmp_path / str(coefficient)
        _, paths = run_stages(root, "qwen3_moe", ("q_proj",), train__router_aux_loss_coef=coefficient)
        report = read_report(paths.reports / "train.json", TrainReport)
        losses[coefficient] = (report.first_validation_loss, report.train_loss)
    assert losses[0.0][0] == losses[0.5][0]
    assert (losses[0.5][1] or 0) > (losses[0.0][1] or 0) + 0.3


def test_the_loss_of_routers_needs_routers(tmp_path: Path) -> None:
    """TRL would raise an error after everything was loaded."""
    small_checkpoint("qwen3", tmp_path / "base")
    changes = {"model__base": str(tmp_path / "base"), "train__router_aux_loss_coef": 0.1}
    config = parse_config(params(**changes), "params.yaml")
    architecture = measure_architecture(find_base_config(config.model, Path()))
    (finding,) = check_router(params_of("validate", config), architecture)
    assert finding.code == "router-missing"
