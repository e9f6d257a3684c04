"""The adapter settings against base and learning rate: which cause findings, and which do not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune.model.architecture import Architecture
from finetune.model.targets import trainable_parameters
from finetune.validate.checks.adapter import check_adapter
from finetune.validate.findings import Finding
from tests.builders.checked_settings import LLAMA, SEVEN, codes, finding_text
from tests.builders.kinds import Change

Check = Callable[..., list[Finding]]


def test_an_initialization_unsuited_to_the_base_is_reported(change: Change) -> None:
    """PiSSA modifies the base weights, which 4-bit weights do not allow."""
    found = check_adapter(change(**{"model.quantization": "nf4", "adapter.init_lora_weights": "pissa"}), None)
    (finding,) = [finding for finding in found if finding.code == "adapter-impossible"]
    assert finding.place == "params.yaml: adapter.init_lora_weights"
    assert finding.message.startswith("pissa changes the base weights")
    assert finding.remedy == "use default or gaussian, or model.quantization: none"
    assert "adapter-impossible" not in codes(check_adapter(change(), None))


# ---- The adapter


@pytest.fixture
def adapter(change: Change) -> Check:
    """`adapter({"adapter.r": 8})`: return the findings of check_adapter on params.yaml with keys changed."""

    def checked(keys: dict[str, Any], architecture: Architecture | None = LLAMA) -> list[Finding]:
        return check_adapter(change(**keys), architecture)

    return checked


def test_a_target_module_without_a_match_is_an_error(adapter: Check) -> None:
    """The module names are those of another architecture: PEFT would fail only after the base was loaded."""
    assert adapter({}) == []
    assert adapter({"adapter.target_modules": ["c_attn"], "train.learning_rate": 2e-4}, None) == []
    (finding,) = adapter({"adapter.target_modules": ["q_proj", "c_attn", "c_proj"]})
    assert finding_text(finding, "target-modules-missing") == (
        "params.yaml: adapter.target_modules: c_attn, c_proj match nothing in LlamaForCausalLM; "
        "use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or all-linear"
    )


def test_the_end_of_a_path_is_a_name(adapter: Check) -> None:
    """PEFT compares names with the ends of paths."""
    assert codes(adapter({"adapter.target_modules": ["part.q_proj"]})) == ["target-modules-partial"]
    assert codes(adapter({"adapter.target_modules": ["other.q_proj"]})) == ["target-modules-missing"]


def test_embeddings_can_be_adapted_but_the_head_cannot(adapter: Check) -> None:
    """PEFT supports both; but the loss uses the head's own weights directly, bypassing its adapter."""
    assert adapter({"adapter.target_modules": [*SEVEN, "embed_tokens"]}) == []
    assert codes(adapter({"adapter.target_modules": [*SEVEN, "lm_head"]})) == ["adapter-impossible"]


def test_layers_without_an_adapter_are_a_note(adapter: Check) -> None:
    """QLoRA found that all linear layers matter. By hand: 2 x (128 x 64 x 2 + 128 x 256 x 3) of 500,000 parameters."""
    (finding,) = adapter({"adapter.target_modules": ["q_proj", "o_proj"]})
    assert finding_text(finding, "target-modules-partial") == (
        "params.yaml: adapter.target_modules: k_proj, v_proj, gate_proj, up_proj, down_proj get "
        "no adapter: 46% of LlamaForCausalLM; use all-linear if the validation loss stays high"
    )


def test_all_linear_leaves_no_layer_without_an_adapter(adapter: Check, change: Any) -> None:
    """It means every linear layer but the head, as the list of their names does; a single name needs no list."""
    assert adapter({"adapter.target_modules": "all-linear"}) == []
    named, every = (change(**{"adapter.target_modules": value}).adapter for value in (list(SEVEN), "all-linear"))
    assert trainable_parameters(LLAMA, every) == trainable_parameters(LLAMA, named)
    assert change(**{"adapter.target_modules": "q_proj"}).adapter.target_modules == ("q_proj",)


@pytest.mark.parametrize("alpha", [3, 129])
def test_an_unusual_scale_is_a_warning(adapter: Check, alpha: int) -> None:
    """Scales from a quarter to eight occur in papers and cause no warning; rsLoRA divides by the root."""
    for usual in (4, 128):
        assert adapter({"adapter.r": 16, "adapter.lora_alpha": usual}) == []
    (finding,) = adapter({"adapter.r": 16, "adapter.lora_alpha": alpha})
    assert finding_text(finding, "alpha-unusual") == (
        f"params.yaml: adapter.lora_alpha: lora_alpha {alpha} over r 16 is {alpha / 16:g}, outside 0.25 to 8; use 32"
    )
    assert adapter({"adapter.lora_alpha": 16, "adapter.use_rslora": True}) == []
    assert codes(adapter({"adapter.lora_alpha": 1000, "adapter.use_rslora": True})) == ["alpha-unusual"]


SMALL, LARGE = replace(LLAMA, parameters=99_999_999), replace(LLAMA, parameters=100_000_000)


@pytest.mark.parametrize(
    ("architecture", "edge", "above", "text"),
    [
        (SMALL, 1e-2, 1.1e-2, "0.011 is above 0.01, where LoRA runs of bases of this size tend to diverge; use 0.002"),
        (LARGE, 1e-3, 2e-3, "0.002 is above 0.001, where LoRA runs of bases of this size tend to diverge; use 0.0002"),
        (None, 1e-3, 2e-3, "0.002 is above 0.001, where LoRA runs of bases of this size tend to diverge; use 0.0002"),
    ],
)
def test_a_high_learning_rate_is_a_warning(
    adapter: Check, architecture: Architecture | None, edge: float, above: float, text: str
) -> None:
    """A tenfold rate is usual for a tiny base; rates of SGD are on another scale."""
    assert adapter({"train.learning_rate": edge}, architecture) == []
    (finding,) = adapter({"train.learning_rate": above}, architecture)
    assert finding_text(finding, "learning-rate-high") == f"params.yaml: train.learning_rate: {text}"
    assert adapter({"train.learning_rate": above, "train.optim": "sgd"}, architecture) == []


def test_a_low_learning_rate_is_a_warning(adapter: Check) -> None:
    """2e-5 is usual for full fine-tuning, and often copied from there."""
    assert adapter({"train.learning_rate": 3e-5}) == []
    (finding,) = adapter({"train.learning_rate": 2e-5})
    assert finding_text(finding, "learning-rate-low") == (
        "params.yaml: train.learning_rate: 2e-05 is below 3e-05: a learning rate for full "
        "fine-tuning, not for adapters; use 0.00018"
    )
