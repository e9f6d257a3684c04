"""Settings against each other and the kind of device: which cause findings, and which do not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune.model.architecture import Architecture
from finetune.validate.checks.quantization import check_quantization
from finetune.validate.checks.settings import check_settings
from finetune.validate.findings import Finding
from tests.builders.checked_settings import CUDA, FLASH, LLAMA, NF4, codes, finding_text, layers, spread
from tests.builders.kinds import Change

Check = Callable[..., list[Finding]]


@pytest.fixture
def settings(change: Change) -> Check:
    """`settings({"train.fp16": True})`: return the findings about params.yaml with keys changed."""

    def checked(keys: dict[str, Any], architecture: Architecture | None = LLAMA) -> list[Finding]:
        params = change(**keys)
        return check_settings(params, architecture) + check_quantization(params, architecture)

    return checked


def test_liger_needs_cuda(settings: Check) -> None:
    """Its kernels need Triton: on a CPU the import would fail after everything was loaded."""
    assert "liger-needs-cuda" in codes(settings({"train.use_liger_kernel": True}))
    assert "liger-needs-cuda" not in codes(settings(CUDA | {"train.use_liger_kernel": True}))


def test_float16_weights_need_loss_scaling(settings: Check) -> None:
    """Gradients below 6e-8 are zero in float16; only fp16's loss scaling prevents this."""
    keys = CUDA | {"model.dtype": "float16"}
    for bf16 in (False, True):
        assert codes(settings(keys | {"train.bf16": bf16, "train.fp16": False})) == ["dtype-unscaled"]
    assert settings(keys | {"train.bf16": False, "train.fp16": True}) == []


# ---- Settings


@pytest.mark.parametrize("environment", ["cpu", "cuda", "apple"])
def test_valid_settings_cause_no_finding(settings: Check, environment: str) -> None:
    """Valid settings cause no finding: users ignore checks that always warn."""
    assert settings({"environment": environment, "model.dtype": "bfloat16"}) == []
    assert settings({"environment": environment, "model.dtype": "bfloat16"}, None) == []


@pytest.mark.parametrize(
    ("keys", "code", "text", "neighbour"),
    [
        (
            {"train.fp16": True},
            "fp16-needs-cuda",
            ("train.fp16: fp16 needs loss scaling, which is CUDA-only, but the environment is cpu; set it to false"),
            CUDA,
        ),
        (
            {"train.tf32": True},
            "tf32-unsupported",
            "train.tf32: tf32 is a mode of CUDA devices, but the environment is cpu; set it to false",
            CUDA,
        ),
        (
            {"model.dtype": "float16"},
            "dtype-slow",
            "model.dtype: CPUs compute float16 slowly, if at all; use bfloat16 or float32",
            {"environment": "apple"},
        ),
        (
            {"environment": "cuda", "model.dtype": "float32"},
            "float32-weights-large",
            "model.dtype: the frozen weights take twice the memory in 32 bits; only the adapter needs 32 bits; "
            "use bfloat16",
            {"environment": "cpu"},
        ),
        (
            {"train.optim": "adamw_8bit"},
            "optimizer-needs-cuda",
            "train.optim: adamw_8bit needs CUDA, but the environment is cpu; use adamw_torch",
            CUDA,
        ),
        (
            {"environment": "apple", "train.optim": "paged_adamw_8bit"},
            "optimizer-needs-cuda",
            "train.optim: paged_adamw_8bit needs CUDA, but the environment is apple; use adamw_torch",
            CUDA,
        ),
        (
            CUDA | spread("zero2", offload_optimizer="cpu") | {"train.optim": "adamw_8bit"},
            "optimizer-needs-deepspeed",
            "train.optim: adamw_8bit keeps its state on the GPU, so DeepSpeed can't offload it; "
            "use adamw_torch, or offload_optimizer: none",
            {"train.optim": "adamw_torch"},
        ),
        (
            FLASH,
            "attention-needs-cuda",
            "model.attention: flash_attention_2 needs CUDA, but the environment is cpu; use sdpa",
            CUDA,
        ),
        (
            {"train.packing": True, "train.train_sampling_strategy": "random"},
            "packing-slow",
            "train.packing: with sdpa a packed row of 256 tokens has a full square attention mask; "
            "use model.attention: flash_attention_2, or packing: false with group_by_length",
            CUDA | FLASH,
        ),
        (
            CUDA | FLASH | {"train.packing": True},
            "packing-ignores-sampling",
            "train.train_sampling_strategy: packed rows all have the same length, so there is nothing to group; "
            "use random",
            {"train.train_sampling_strategy": "sequential"},
        ),
        (
            CUDA | NF4 | spread("fsdp"),
            "quantization-strategy",
            "model.quantization: fsdp shards weights, but nf4 weights are stored as bytes that it can't shard; "
            "use ddp or zero2, or quantization: none",
            spread("zero2"),
        ),
        (
            NF4 | {"environment": "apple"},
            "quantization-slow",
            "model.quantization: nf4 on a Mac uses slow fallbacks; 16-bit weights are faster if they fit; "
            "use none with dtype: bfloat16, if memory allows",
            CUDA,
        ),
        (
            spread("ddp") | {"environment": "apple"},
            "strategy-needs-cuda",
            "train.distributed.strategy: ddp is not available in the environment apple; use none",
            {"environment": "cpu"},
        ),
        (
            spread("fsdp"),
            "strategy-needs-cuda",
            ("train.distributed.strategy: fsdp is not available in the environment cpu; use ddp or none"),
            CUDA,
        ),
        (
            spread("ddp", devices=1),
            "strategy-needless",
            ("train.distributed.strategy: ddp distributes a run over devices, but devices is 1; use none"),
            spread("ddp"),
        ),
        (
            CUDA | spread("zero2", offload_param="cpu"),
            "offload-ignored",
            (
                "train.distributed.offload_param: offload_param: cpu has no effect with zero2; only "
                "zero3 shards and offloads parameters; use none, or strategy: zero3"
            ),
            spread("zero3", offload_param="cpu"),
        ),
        (
            CUDA | spread("ddp", offload_optimizer="cpu"),
            "offload-ignored",
            (
                "train.distributed.offload_optimizer: offload_optimizer: cpu has no effect with ddp; use "
                "none, or strategy: zero2"
            ),
            spread("zero2", offload_optimizer="cpu"),
        ),
        (
            {"train.effective_batch_size": 64},
            "effective-batch-differs",
            "train.gradient_accumulation_steps: 16 per device x 1 accumulated x 1 devices is 16, not "
            "effective_batch_size: 64; use 4, or set train.effective_batch_size: 16",
            {"train.gradient_accumulation_steps": 4},
        ),
        (
            {"train.effective_batch_size": 24},
            "effective-batch-differs",
            "train.gradient_accumulation_steps: 16 per device x 1 accumulated x 1 devices is 16, not "
            "effective_batch_size: 24; set train.effective_batch_size: 16, or another micro-batch",
            {"train.per_device_train_batch_size": 24},
        ),
    ],
)
def test_each_invalid_setting_is_a_finding_and_its_neighbour_is_not(
    settings: Check, keys: dict[str, Any], code: str, text: str, neighbour: dict[str, Any]
) -> None:
    """Without the finding, each problem would show only after the base was loaded, on expensive hardware."""
    (finding,) = settings(keys)
    assert finding_text(finding, code) == f"params.yaml: {text}"
    assert settings(keys | neighbour) == []


def test_flash_attention_needs_16_bit_computation(settings: Check) -> None:
    """Weights may be stored in 32 bit at a cost, but computation must be in 16 bit."""
    found = settings(CUDA | FLASH | {"model.dtype": "float32"})
    assert codes(found) == ["float32-weights-large", "attention-dtype"]
    assert str(found[1]) == (
        "params.yaml: model.attention: flash_attention_2 supports 16-bit types only, but the run is in float32; "
        "set train.bf16: true, or use sdpa"
    )
    assert found[1].severity == "error"
    for mixed in ("train.bf16", "train.fp16"):
        assert codes(settings(CUDA | FLASH | {"model.dtype": "float32", mixed: True})) == ["float32-weights-large"]


def test_nf4_on_a_cpu_needs_complete_blocks(settings: Check) -> None:
    """bitsandbytes' CPU kernels process 64 inputs and 32 outputs at a time; the loss head is never quantized."""
    assert settings(NF4) == settings(NF4, replace(LLAMA, vocabulary=1001)) == settings(NF4, None) == []
    odd = replace(LLAMA, linears=(layers("q_proj", 96, 128, 2), layers("k_proj", 128, 48, 2)))
    (finding,) = settings(NF4, odd)
    assert finding_text(finding, "quantization-shape") == (
        "params.yaml: model.quantization: q_proj is 96 x 128; nf4 on a CPU needs multiples of 64 x 32; use none"
    )
    assert settings(NF4 | CUDA, odd) == []


def test_deepspeed_offloading_on_one_device_is_accepted(settings: Check) -> None:
    """Offloading is the only reason to use DeepSpeed on one device."""
    assert settings(CUDA | spread("zero3", devices=1, offload_param="cpu")) == []
    assert codes(settings(CUDA | spread("zero3", devices=1))) == ["strategy-needless"]


@pytest.mark.parametrize(
    ("kernel", "environment", "expected"),
    [
        ("flash-attn2", "cuda", []),
        ("flash-attn2", "apple", ["attention-needs-cuda"]),
        ("metal-flash-sdpa", "apple", []),
        ("metal-flash-sdpa", "cuda", ["attention-needs-cuda"]),
    ],
)
def test_kernels_of_the_hub_have_builds_for_some_devices(
    settings: Check, kernel: str, environment: str, expected: list[str]
) -> None:
    """They are those that transformers lists."""
    name = f"kernels-community/{kernel}@{'0' * 40}"
    keys = {"environment": environment, "model.attention": name, "model.dtype": "bfloat16"}
    assert codes(settings(keys)) == expected
