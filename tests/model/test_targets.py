"""What an adapter changes: layers by name or expression, experts, complete modules, and rows of the embeddings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from finetune.config.params import Config, parse_config
from finetune.errors import BaseModelError, ConfigError
from finetune.model.adapter import CONFIG, WEIGHTS, add_adapter, count_parameters, load_adapter, save_adapter
from finetune.model.architecture import measure_architecture
from finetune.model.base import load_base
from finetune.model.base_config import find_base_config
from finetune.model.merging import as_folder, merge, save_model, untie
from finetune.model.targets import trainable_parameters
from finetune.model.tokens import load_tokenizer
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport
from finetune.reports.train import TrainReport
from finetune.reports.validation import ValidationReport
from tests.builders.small_bases import MULTIMODAL, run_stages, small_checkpoint
from tests.builders.small_run import params

pytestmark = pytest.mark.slow

EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_dropout": 0.0}
# The base's type, the adapter's keys, and what PEFT trains beside matrices of linear layers.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "expression": ("qwen3", {"target_modules": r"model\.layers\.1\..*\.(q|v)_proj"}),
    "excluded names": ("qwen3", {"target_modules": "all-linear", "exclude_modules": ["k_proj", "mlp.up_proj"]}),
    "excluded expression": ("qwen3", {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"}),
    "one layer": ("qwen3", {"layers_to_transform": [1]}),
    "experts": ("qwen3_moe", {"target_modules": ["q_proj"], **EXPERTS}),
    "experts of one layer": (
        "qwen3_moe",
        {"target_modules": ["q_proj"], "target_parameters": ["layers.1.mlp.experts.down_proj"], "lora_dropout": 0.0},
    ),
    "experts of gpt-oss": ("gpt_oss", {"target_modules": ["q_proj"], **EXPERTS}),
    "experts in a checkpoint": ("qwen3_5_moe", {"target_modules": ["q_proj"], **EXPERTS}),
    "all but what Mamba's kernels bypass": ("mamba", {"target_modules": "all-linear"}),
    "head and norm": ("qwen3", {"modules_to_save": ["lm_head", "model.norm"]}),
    "tied embeddings": ("smollm3", {"modules_to_save": ["embed_tokens"]}),
    "tied head": ("smollm3", {"modules_to_save": ["lm_head"]}),
    "rows": ("qwen3", {"trainable_token_indices": [5, 7]}),
    "tied rows": ("smollm3", {"trainable_token_indices": [5, 7]}),
    "expression in a checkpoint": ("qwen3_vl", {"target_modules": r".*layers\.1\..*\.(q|v)_proj"}),
    "one layer in a checkpoint": ("mistral3", {"layers_to_transform": [1], "exclude_modules": ["k_proj"]}),
    "head in a checkpoint": ("qwen3_vl", {"modules_to_save": ["lm_head"]}),
    "rows in a checkpoint": ("mistral3", {"trainable_token_indices": [5, 7]}),
}


def settings(folder: Path, adapter: dict[str, Any], **model: Any) -> Config:
    """Return params with the base in a folder and changed keys of the sections `adapter` and `model`."""
    changes = {f"adapter__{key}": value for key, value in adapter.items()}
    changes |= {f"model__{key}": value for key, value in model.items()}
    return parse_config(params(model__base=str(folder), **changes), "params.yaml")


def changed_adapter(config: Config) -> Any:
    """Return base and adapter, with random numbers added to everything that is trained."""
    torch.manual_seed(1)
    model = add_adapter(load_base(config.model, "cpu"), config.adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    """Return the logits of a text with the tokens 5 and 7."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(20)[None]).logits
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_is_counted_and_published(tmp_path: Path, case: str) -> None:
    """The plan counts what PEFT trains; our loader and PEFT alone load it, the latter into the checkpoint's class."""
    kind, keys = CASES[case]
    small_checkpoint(kind, tmp_path / "base")
    config = settings(tmp_path / "base", keys, attention="eager" if kind in ("gpt_oss", "mamba") else "sdpa")
    model = changed_adapter(config)
    architecture = measure_architecture(find_base_config(config.model, Path()))
    assert count_parameters(model)["trainable"] == trainable_parameters(architecture, config.adapter)
    save_adapter(model, "base", tmp_path / "adapter")
    expected = logits(model)
    assert torch.equal(logits(load_adapter(load_base(config.model, "cpu"), tmp_path / "adapter")), expected)
    auto = AutoModelForImageTextToText if kind in MULTIMODAL else AutoModelForCausalLM
    whole = auto.from_pretrained(tmp_path / "base", attn_implementation=config.model.attention)
    assert torch.equal(logits(PeftModel.from_pretrained(whole, tmp_path / "adapter").eval()), expected)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("case", [case for case, (kind, _) in CASES.items() if kind != "qwen3_vl"])
def test_what_is_trained_is_merged(tmp_path: Path, case: str) -> None:
    """The merged model computes what base and adapter do."""
    kind, keys = CASES[case]
    small_checkpoint(kind, tmp_path / "base")
    config = settings(tmp_path / "base", keys, attention="eager" if kind in ("gpt_oss", "mamba") else "sdpa")
    model = changed_adapter(config)
    expected = logits(model)
    save_adapter(model, "base", tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    base = untie(load_base(config.model, "cpu"), tmp_path / "adapter")
    save_model(merge(load_adapter(base, tmp_path / "adapter")), tmp_path / "merged")
    merged = load_base(config.model.model_copy(update=as_folder(tmp_path / "merged")), "cpu").eval()
    assert (logits(merged) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["qwen3", "smollm3", "mistral3"])
@pytest.mark.parametrize("spare", [0, 8])
def test_new_tokens_are_trained(tmp_path: Path, kind: str, spare: int) -> None:
    """Their rows are added, or spare ones are used; an adapter contains them, whatever the base's rows were."""
    tokenizer = small_checkpoint(kind, tmp_path / "base", spare=spare)
    config = settings(tmp_path / "base", {}, add_tokens=["<open>", "<close>"])
    first = len(tokenizer)
    model = changed_adapter(config)
    assert model.new_tokens == (first, first + 1)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == max(first + 2, first + spare)
    architecture = measure_architecture(find_base_config(config.model, Path()))
    assert count_parameters(model)["trainable"] == trainable_parameters(architecture, config.adapter, 2)
    ids = torch.tensor([load_tokenizer(config.model)("a <open>b<close>", add_special_tokens=False).input_ids])
    assert {first, first + 1} <= set(ids[0].tolist())
    save_adapter(model, "base", tmp_path / "adapter")
    loaded = load_adapter(load_base(config.model, "cpu"), tmp_path / "adapter")
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    auto = AutoModelForImageTextToText if kind in MULTIMODAL else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "base")
    plain.resize_token_embeddings(rows)
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(input_ids=ids).logits
    assert torch.equal(theirs, expected)


def test_a_known_token_is_refused(tmp_path: Path) -> None:
    """It would get the embedding of a new one."""
    small_checkpoint("qwen3", tmp_path / "base")
    with pytest.raises(BaseModelError, match=r"add_tokens: <\|im_start\|> is a token of .* already, with the id"):
        load_tokenizer(settings(tmp_path / "base", {}, add_tokens=["<|im_start|>"]).model)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (
            "qwen3",
            {"target_modules": ["q_prj"]},
            "q_prj match nothing in Qwen3ForCausalLM; use some of q_proj,",
        ),
        (
            "qwen3",
            {"target_modules": r".*\.c_attn"},
            "match complete paths, for example model.layers.0.self_at",
        ),
        ("qwen3", {"target_modules": ["self_attn"]}, "model.layers.0.self_attn (2 such) is not a linear layer"),
        ("qwen3", {"target_modules": r".*norm|.*q_proj"}, "is not a linear layer; use some of q_proj"),
        ("qwen3", {"target_modules": r".*\.q_proj|lm_head"}, "lm_head is the LM head"),
        ("qwen3_moe", {"target_modules": ["q_proj", "gate"]}, "model.layers.0.mlp.gate (2 such) is not a linear layer"),
        ("mamba", {"target_modules": ["in_proj", "out_proj"]}, "out_proj of MambaForCausalLM can't have an adapter"),
        ("qwen3", {"exclude_modules": ["visual"]}, "adapter.exclude_modules: visual match nothing"),
        ("qwen3", {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "leave no layer to adapt"),
        ("qwen3", EXPERTS, "adapter.target_parameters: mlp.experts.gate_up_proj, mlp.experts.down_proj match nothing"),
        ("qwen3_moe", {**EXPERTS, "target_parameters": ["experts.w1"]}, "use some of mlp.experts.gate_up_proj, mlp.e"),
        ("qwen3_moe", {**EXPERTS, "lora_dropout": 0.1}, "0.1 is impossible with target_parameters"),
        ("qwen3_moe", {**EXPERTS, "use_dora": True}, "use_dora: true is impossible with target_parameters"),
        ("qwen3_moe", {**EXPERTS, "init_lora_weights": "olora"}, "init_lora_weights: olora is impossible with"),
        ("qwen3", {"layers_to_transform": [2]}, "2 is not a layer of Qwen3ForCausalLM, whose layers are 0 to 1"),
        ("qwen3", {"modules_to_save": ["lm_haed"]}, "lm_haed match nothing in Qwen3ForCausalLM; use one of lm_head"),
        ("qwen3", {"modules_to_save": ["q_proj"]}, "adapter.modules_to_save: q_proj is in target_modules too"),
        ("qwen3", {"trainable_token_indices": [10**6]}, "1000000 is not a token of Qwen3ForCausalLM"),
        ("qwen3", {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]}, "is trained already"),
        ("qwen3", {"trainable_token_indices": [1], "target_modules": ["embed_tokens"]}, "is trained already"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    tmp_path: Path, kind: str, keys: dict[str, Any], message: str | None
) -> None:
    """Each is a problem with its key and a remedy, before anything is trained."""
    small_checkpoint(kind, tmp_path / "base")
    config = settings(tmp_path / "base", keys, attention="auto")
    base = load_base(config.model, "cpu")
    with pytest.raises(ConfigError) as raised:
        add_adapter(base, config.adapter)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "keys",
    [{"target_modules": r".*q_proj", "layers_to_transform": [0]}, {**EXPERTS, "layers_to_transform": [0]}],
)
def test_ignored_layers_are_refused(keys: dict[str, Any]) -> None:
    """PEFT would adapt all layers."""
    with pytest.raises(ConfigError, match="layers_to_transform has no effect on"):
        settings(Path("base"), keys)


def test_an_expression_must_be_one() -> None:
    """The error of Python's parser is in the message."""
    with pytest.raises(ConfigError, match=r"'\*\.q_proj' is not a regular expression: nothing to repeat"):
        settings(Path("base"), {"target_modules": "*.q_proj"})


def test_quantized_modules_are_not_trained_completely(tmp_path: Path) -> None:
    """Their weights are integers, without gradients."""
    small_checkpoint("qwen3", tmp_path / "base")
    config = settings(tmp_path / "base", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}, quantization="nf4")
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.gate_proj is quantized"):
        add_adapter(load_base(config.model, "cpu"), config.adapter)


def test_paths_are_published_only_if_names_do_not_suffice(tmp_path: Path) -> None:
    """An adapter config of names is short, and other programs read it."""
    small_checkpoint("mistral3", tmp_path / "base")
    for keys, count in (({"target_modules": "all-linear"}, 7), ({"layers_to_transform": [0]}, 7)):
        config = settings(tmp_path / "base", keys)
        save_adapter(changed_adapter(config), "base", tmp_path / "adapter")
        content = json.loads((tmp_path / "adapter" / CONFIG).read_text(encoding="utf-8"))
        assert len(content["target_modules"]) == count
        assert all(("." in name) is ("layers_to_transform" in keys) for name in content["target_modules"])


# What PEFT adds to a run beside matrices of linear layers, in each number format that a base is held in.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "experts and new tokens, NF4": (
        "qwen3_moe",
        {"adapter__target_parameters": EXPERTS["target_parameters"], "model__add_tokens": ["<new>"]}
        | {"model__quantization": "nf4"},
    ),
    "embeddings, bfloat16": (
        "smollm3",
        {"adapter__modules_to_save": ["embed_tokens"], "model__dtype": "bfloat16", "train__bf16": True},
    ),
    "head and rows, bfloat16": (
        "mistral3",
        {"adapter__trainable_token_indices": [300, 301], "adapter__modules_to_save": ["model.norm"]}
        | {"model__dtype": "bfloat16", "train__bf16": True},
    ),
}


@pytest.mark.end_to_end
@pytest.mark.parametrize("case", RUNS)
def test_all_stages_run(tmp_path: Path, case: str) -> None:
    """Trained parts of every kind change in a run, and the verdict is about them."""
    kind, changes = RUNS[case]
    config, paths = run_stages(tmp_path, kind, ("q_proj", "v_proj"), **changes)
    assert read_report(paths.reports / "decision.json", DecisionReport).verdict in ("iterate", "abort")
    trained = read_report(paths.reports / "train.json", TrainReport).parameters.trainable
    architecture = measure_architecture(find_base_config(config.model, Path()))
    assert trained == trainable_parameters(architecture, config.adapter, len(config.model.add_tokens))
    found = {finding.code for finding in read_report(paths.reports / "validation.json", ValidationReport).findings}
    assert ("quantization-partial" in found) is (config.model.quantization == "nf4")
    with safe_open(paths.adapter / WEIGHTS, "pt") as file:
        beside = [name for name in file.keys() if "lora_" not in name]  # noqa: SIM118
        assert all(file.get_tensor(name).dtype == torch.float32 for name in beside)
    assert beside
