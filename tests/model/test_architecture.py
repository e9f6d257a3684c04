"""Architectures: found without a network, counted without memory; every mistake is a one-line error."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.config.model import AdapterConfig, ModelConfig
from finetune.config.params import parse_config
from finetune.errors import ConfigError
from finetune.model.architecture import measure_architecture
from finetune.model.base_config import FACTS, find_base_config
from finetune.model.targets import lora_config, trainable_parameters
from tests.builders.small_run import ROOT, params

PUBLISHED = {
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
}
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 96}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model(base: str, **changes: Any) -> ModelConfig:
    """Return the model section with this base."""
    keys = {f"model__{key}": value for key, value in changes.items()}
    return parse_config(params(model__base=base, **keys), "params.yaml").model


def adapter(**changes: Any) -> AdapterConfig:
    """Return the adapter section."""
    return parse_config(params(**{f"adapter__{key}": value for key, value in changes.items()}), "params.yaml").adapter


def folder_with(root: Path, content: str, name: str = "base") -> Path:
    """Write a base's folder that contains only this config.json."""
    (root / name).mkdir(parents=True)
    (root / name / "config.json").write_text(content, encoding="utf-8")
    return root


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_facts_give_the_published_parameter_count(name: str) -> None:
    """The count from config.json alone is exact to the parameter."""
    architecture = measure_architecture(find_base_config(model(name), ROOT))
    assert architecture.parameters == PUBLISHED[name]
    assert architecture.stored in ("bfloat16", "float16")
    assert architecture.head == "lm_head"


def test_every_shipped_fact_is_tested() -> None:
    """Every shipped config.json is tested."""
    shipped = {path.parent.relative_to(ROOT / FACTS).as_posix() for path in (ROOT / FACTS).rglob("config.json")}
    assert shipped == set(PUBLISHED)


def test_numbers_of_a_known_base_are_right() -> None:
    """The numbers are grouped queries, head width, positions, tied embeddings, and the linear layers by name."""
    found = measure_architecture(find_base_config(model("meta-llama/Llama-3.2-3B-Instruct"), ROOT))
    assert (found.layers, found.hidden, found.intermediate) == (28, 3072, 8192)
    assert (found.heads, found.kv_heads, found.head_dim) == (24, 8, 128)
    assert (found.vocabulary, found.tied, found.max_positions) == (128_256, True, 131_072)
    assert found.class_name == "LlamaForCausalLM"
    shapes = {linear.name: (linear.inputs, linear.outputs, linear.count) for linear in found.linears}
    assert shapes["k_proj"] == (3072, 1024, 28)
    assert list(shapes) == SEVEN


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [SEVEN, ["q_proj", "v_proj"], ["down_proj"], ["embed_tokens", "o_proj"]])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Coder-7B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_trainable_parameters_equal_pefts(name: str, targets: list[str], dora: bool) -> None:
    """The arithmetic gives what PEFT creates on the meta device."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    config = find_base_config(model(name), ROOT)
    requested = adapter(r=8, target_modules=targets, use_dora=dora)
    counted = trainable_parameters(measure_architecture(config), requested)
    config.num_hidden_layers = 2  # PEFT needs a second per layer with DoRA
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:2]
    small = measure_architecture(config)
    with torch.device("meta"):
        peft = get_peft_model(AutoModelForCausalLM.from_config(config), lora_config(requested, small))
    assert trainable_parameters(small, requested) == peft.get_nb_trainable_parameters()[0]
    assert counted > trainable_parameters(small, requested)


def test_a_local_folder_takes_precedence(tmp_path: Path) -> None:
    """A folder with the base's name is the base, regardless of shipped facts."""
    folder_with(tmp_path, json.dumps({**TINY, **HEADS}), "org/name")
    folder_with(tmp_path, json.dumps({**TINY, **HEADS, "vocab_size": 1}), f"{FACTS}/org/name")
    assert find_base_config(model("org/name"), tmp_path).vocab_size == 96


def test_the_cache_takes_precedence_over_shipped_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is read at the pinned revision, without the network."""
    import huggingface_hub

    folder_with(tmp_path, json.dumps({**TINY, **HEADS}), "cached")
    folder_with(tmp_path, json.dumps({**TINY, **HEADS, "vocab_size": 1}), f"{FACTS}/org/name")
    revision, requested = "a" * 40, []

    def from_cache(*where: Any, **how: Any) -> str:
        requested.append((where, how))
        return str(tmp_path / "cached/config.json")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", from_cache)
    assert find_base_config(model("org/name", revision=revision), tmp_path).vocab_size == 96
    assert requested == [(("org/name", "config.json"), {"revision": revision})]
    assert find_base_config(model("org/name"), tmp_path).vocab_size == 1  # unpinned, so the cache is not read


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "model_type None"),
        (json.dumps({"model_type": "nope"}), "model_type 'nope'"),
        (json.dumps({"model_type": "bert_x"}), "model_type 'bert_x'"),
        (json.dumps({**TINY, **HEADS, "architectures": ["NopeForCausalLM"]}), "the class NopeForCausalLM"),
        (json.dumps({**TINY, **HEADS, "hidden_size": "wide"}), "is not one of llama"),
    ],
)
def test_an_invalid_model_config_is_reported(tmp_path: Path, content: str, what: str) -> None:
    """The error is one line with the key and the remedy."""
    folder_with(tmp_path, content)
    with pytest.raises(ConfigError, match=r"^params\.yaml: model\.base: base: ") as caught:
        find_base_config(model("base"), tmp_path)
    text = str(caught.value)
    assert what in text
    assert "\n" not in text
    assert "; " in text


def test_a_missing_base_is_reported(tmp_path: Path) -> None:
    """The error names all three places that were searched."""
    with pytest.raises(ConfigError, match=r"no config\.json in the folder org/name, in the Hugging Face cache"):
        find_base_config(model("org/name", revision="b" * 40), tmp_path)


def test_code_shipped_with_a_model_is_never_run(tmp_path: Path) -> None:
    """auto_map refers to a module next to config.json, which is not read."""
    marker = tmp_path / "ran"
    content = {**TINY, **HEADS, "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    folder_with(tmp_path, json.dumps(content))
    (tmp_path / "base/own.py").write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
    assert measure_architecture(find_base_config(model("base"), tmp_path)).layers == 2
    assert not marker.exists()
