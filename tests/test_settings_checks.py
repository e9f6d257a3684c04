"""Settings against each other, the architecture, the machine and the plan: what raises a finding, and what does not."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.config import Config
from finetune.model import base
from finetune.model.architecture import Architecture, LinearLayers
from finetune.plan.memory import MemoryPlan
from finetune.plan.outlook import Outlook, Workload, foresee
from finetune.plan.schedule import plan_schedule
from finetune.validate import machine_checks, plan_checks
from finetune.validate.adapter_checks import check_adapter
from finetune.validate.findings import Finding
from finetune.validate.machine_checks import check_disk, check_machine, check_packages
from finetune.validate.plan_checks import check_evaluations, check_fit, check_plan, check_room, check_this_machine
from finetune.validate.reference_checks import check_reference
from finetune.validate.run_checks import check_run
from finetune.validate.settings_checks import check_settings
from tests.small_run import ROOT

GB = 10**9
CUDA = {"environment": "cuda", "machine": "h100", "model.dtype": "bfloat16"}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    layers=2,
    hidden=128,
    intermediate=256,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocabulary=1000,
    tied=False,
    max_positions=512,
    parameters=500_000,
    stored="float32",
    linears=(
        *(LinearLayers(name, 128, 128 if name in ("q_proj", "o_proj") else 64, 2) for name in SEVEN[:4]),
        LinearLayers("gate_proj", 128, 256, 2),
        LinearLayers("up_proj", 128, 256, 2),
        LinearLayers("down_proj", 256, 128, 2),
        LinearLayers("lm_head", 128, 1000, 1),
    ),
)


def codes(findings: list[Finding]) -> list[str]:
    """The codes alone."""
    return [finding.code for finding in findings]


@pytest.fixture
def settings(change: Callable[..., Config]) -> Callable[..., list[Finding]]:
    """`settings({"train.fp16": True})`: the findings of check_settings on params.yaml with keys changed."""

    def checked(keys: dict[str, Any], architecture: Architecture | None = LLAMA) -> list[Finding]:
        return check_settings(change(**keys), architecture)

    return checked


def test_liger_needs_cuda(settings: Callable[..., list[Finding]]) -> None:
    """Its kernels are Triton's: on a CPU the import alone would fail, after everything was loaded."""
    assert "liger-needs-cuda" in codes(settings({"train.use_liger_kernel": True}))
    assert "liger-needs-cuda" not in codes(settings(CUDA | {"train.use_liger_kernel": True}))


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_told(change: Callable[..., Config], tracker: str) -> None:
    """A run of hours must not end in an import at its first step."""
    (finding,) = check_packages(change(**{"train.report_to": [tracker]}))
    assert (
        str(finding)
        == f"params.yaml: train.report_to: {tracker} is not installed here; pip install {tracker}, or take it out"
    )
    assert check_packages(change()) == []


def test_auto_attention_says_what_it_means(change: Callable[..., Config]) -> None:
    """The choice is never silent: on CUDA without flash attention it is sdpa, and said."""
    assert codes(check_packages(change(**CUDA | {"model.attention": "auto"}))) == ["attention-fallback"]
    assert check_packages(change(**{"model.attention": "auto"})) == []


def test_an_adapter_that_cannot_start_on_this_base_is_told(change: Callable[..., Config]) -> None:
    """PiSSA takes a part out of the weights, which 4-bit weights do not allow."""
    found = check_adapter(change(**{"model.quantization": "nf4", "adapter.init_lora_weights": "pissa"}), None)
    (finding,) = [finding for finding in found if finding.code == "adapter-impossible"]
    assert finding.where == "params.yaml: adapter.init_lora_weights"
    assert finding.what.startswith("pissa rewrites the base's weights")
    assert finding.fix == "use default or gaussian, or model.quantization: none"
    assert "adapter-impossible" not in codes(check_adapter(change(), None))


def test_float16_weights_need_loss_scaling(change: Callable[..., Config]) -> None:
    """Gradients below 6e-8 are zero in float16; only fp16's scaling lifts them over that."""
    keys = CUDA | {"model.dtype": "float16"}
    assert codes(check_settings(change(**keys | {"train.bf16": False, "train.fp16": False}), LLAMA)) == [
        "dtype-unscaled"
    ]
    assert codes(check_settings(change(**keys | {"train.bf16": True, "train.fp16": False}), LLAMA)) == [
        "dtype-unscaled"
    ]
    assert check_settings(change(**keys | {"train.bf16": False, "train.fp16": True}), LLAMA) == []


def spread(strategy: str = "ddp", devices: int = 2, **offload: str) -> dict[str, Any]:
    """A run over so many devices, with the effective batch size that follows."""
    distributed = {"nodes": 1, "devices": devices, "strategy": strategy}
    distributed |= {"offload_optimizer": "none", "offload_param": "none"} | offload
    return {"train.distributed": distributed, "train.effective_batch_size": 16 * devices}


# ---- Settings


@pytest.mark.parametrize("environment", ["cpu", "cuda", "apple"])
def test_settings_that_fit_raise_nothing(settings: Callable[..., list[Finding]], environment: str) -> None:
    """A check that always warns is a check that nobody reads."""
    assert settings({"environment": environment, "model.dtype": "bfloat16"}) == []
    assert settings({"environment": environment, "model.dtype": "bfloat16"}, None) == []


NF4 = {"model.quantization": "nf4"}
FLASH = {"model.attention": "flash_attention_2"}


@pytest.mark.parametrize(
    ("keys", "code", "severity", "text", "neighbour"),
    [
        (
            {"train.fp16": True},
            "fp16-needs-cuda",
            "error",
            "train.fp16: fp16 needs CUDA's loss scaling, the environment is cpu; set it to false",
            CUDA,
        ),
        (
            {"train.tf32": True},
            "tf32-unsupported",
            "error",
            "train.tf32: tf32 is a mode of CUDA devices, the environment is cpu; set it to false",
            CUDA,
        ),
        (
            {"model.dtype": "float16"},
            "dtype-slow",
            "warning",
            "model.dtype: float16 on a CPU is computed slowly, or not at all; use bfloat16 or float32",
            {"environment": "apple"},
        ),
        (
            {"environment": "cuda", "model.dtype": "float32"},
            "float32-weights-large",
            "warning",
            "model.dtype: the frozen weights in 32 bit take twice the memory; only the adapter needs them; "
            "use bfloat16",
            {"environment": "cpu"},
        ),
        (
            {"train.optim": "adamw_8bit"},
            "optimizer-needs-cuda",
            "error",
            "train.optim: adamw_8bit needs CUDA, the environment is cpu; use adamw_torch",
            CUDA,
        ),
        (
            {"environment": "apple", "train.optim": "paged_adamw_8bit"},
            "optimizer-needs-cuda",
            "error",
            "train.optim: paged_adamw_8bit needs CUDA, the environment is apple; use adamw_torch",
            CUDA,
        ),
        (
            CUDA | spread("zero2", offload_optimizer="cpu") | {"train.optim": "adamw_8bit"},
            "optimizer-needs-deepspeed",
            "error",
            "train.optim: adamw_8bit keeps its state on the GPU, so DeepSpeed can't offload it; "
            "use adamw_torch, or offload_optimizer: none",
            {"train.optim": "adamw_torch"},
        ),
        (
            FLASH,
            "attention-needs-cuda",
            "error",
            "model.attention: flash_attention_2 needs CUDA, the environment is cpu; use sdpa",
            CUDA,
        ),
        (
            {"train.packing": True, "train.train_sampling_strategy": "random"},
            "packing-slow",
            "warning",
            "train.packing: with sdpa a packed row of 256 tokens has a square mask over all of it; "
            "use model.attention: flash_attention_2, or packing: false with group_by_length",
            CUDA | FLASH,
        ),
        (
            CUDA | FLASH | {"train.packing": True},
            "packing-ignores-sampling",
            "note",
            "train.train_sampling_strategy: packed rows are all of one length, so there is nothing to group; "
            "use random",
            {"train.train_sampling_strategy": "sequential"},
        ),
        (
            CUDA | NF4 | spread("fsdp"),
            "quantization-strategy",
            "error",
            "model.quantization: fsdp shards weights, and nf4 weights are stored in bytes that it can't shard; "
            "use ddp or zero2, or quantization: none",
            spread("zero2"),
        ),
        (
            NF4 | {"environment": "apple"},
            "quantization-slow",
            "warning",
            "model.quantization: nf4 on a Mac goes through fallbacks; 16-bit weights are quicker where they fit; "
            "use none with dtype: bfloat16, if memory allows",
            CUDA,
        ),
        (
            spread("ddp") | {"environment": "apple"},
            "strategy-needs-cuda",
            "error",
            "train.distributed.strategy: ddp does not run in the environment apple; use none",
            {"environment": "cpu"},
        ),
        (
            spread("fsdp"),
            "strategy-needs-cuda",
            "error",
            "train.distributed.strategy: fsdp does not run in the environment cpu; use ddp or none",
            CUDA,
        ),
        (
            spread("ddp", devices=1),
            "strategy-needless",
            "warning",
            "train.distributed.strategy: ddp spreads a run over devices, and devices is 1; use none",
            spread("ddp"),
        ),
        (
            CUDA | spread("zero2", offload_param="cpu"),
            "offload-ignored",
            "warning",
            "train.distributed.offload_param: offload_param: cpu does nothing with zero2; only zero3 shards and "
            "offloads parameters; use none, or strategy: zero3",
            spread("zero3", offload_param="cpu"),
        ),
        (
            CUDA | spread("ddp", offload_optimizer="cpu"),
            "offload-ignored",
            "warning",
            "train.distributed.offload_optimizer: offload_optimizer: cpu does nothing with ddp; "
            "use none, or strategy: zero2",
            spread("zero2", offload_optimizer="cpu"),
        ),
        (
            {"train.effective_batch_size": 64},
            "effective-batch-differs",
            "error",
            "train.gradient_accumulation_steps: 16 a device x 1 accumulated x 1 devices make 16, effective_batch_size "
            "says 64; use 4, or set train.effective_batch_size: 16",
            {"train.gradient_accumulation_steps": 4},
        ),
        (
            {"train.effective_batch_size": 24},
            "effective-batch-differs",
            "error",
            "train.gradient_accumulation_steps: 16 a device x 1 accumulated x 1 devices make 16, effective_batch_size "
            "says 24; set train.effective_batch_size: 16, or another micro-batch",
            {"train.per_device_train_batch_size": 24},
        ),
    ],
)
def test_each_setting_and_its_neighbour(
    settings: Callable[..., list[Finding]],
    keys: dict[str, Any],
    code: str,
    severity: str,
    text: str,
    neighbour: dict[str, Any],
) -> None:
    """Each would be found out only after the base was loaded, on a machine that is paid by the hour."""
    (finding,) = settings(keys)
    assert str(finding) == f"params.yaml: {text}"
    assert (finding.code, finding.severity) == (code, severity)
    assert settings(keys | neighbour) == []


def test_flash_attention_computes_in_16_bit(settings: Callable[..., list[Finding]]) -> None:
    """Weights may be kept in 32 bit, at a price; what is computed may not."""
    found = settings(CUDA | FLASH | {"model.dtype": "float32"})
    assert codes(found) == ["float32-weights-large", "attention-dtype"]
    assert str(found[1]) == (
        "params.yaml: model.attention: flash_attention_2 computes in 16 bit alone, and the run is in float32; "
        "set train.bf16: true, or use sdpa"
    )
    assert found[1].severity == "error"
    for mixed in ("train.bf16", "train.fp16"):
        assert codes(settings(CUDA | FLASH | {"model.dtype": "float32", mixed: True})) == ["float32-weights-large"]


def test_nf4_on_a_cpu_needs_whole_blocks(settings: Callable[..., list[Finding]]) -> None:
    """bitsandbytes' CPU kernels read 64 inputs and 32 outputs at a time; the loss head is never quantized."""
    odd_head = replace(LLAMA, linears=(*LLAMA.linears[:-1], LinearLayers("lm_head", 100, 1001, 1)))
    assert settings(NF4) == settings(NF4, odd_head) == settings(NF4, None) == []
    odd = replace(LLAMA, linears=(LinearLayers("q_proj", 96, 128, 2), LinearLayers("k_proj", 128, 48, 2)))
    (finding,) = settings(NF4, odd)
    assert str(finding) == (
        "params.yaml: model.quantization: q_proj is 96 x 128; nf4 on a CPU needs multiples of 64 x 32; use none"
    )
    assert (finding.code, finding.severity) == ("quantization-shape", "error")
    assert settings(NF4 | CUDA, odd) == []


def test_offloading_deepspeed_on_one_device_is_no_needless_strategy(settings: Callable[..., list[Finding]]) -> None:
    """The one reason to take it there."""
    assert settings(CUDA | spread("zero3", devices=1, offload_param="cpu")) == []
    assert codes(settings(CUDA | spread("zero3", devices=1))) == ["strategy-needless"]


# ---- The adapter


@pytest.fixture
def adapter(change: Callable[..., Config]) -> Callable[..., list[Finding]]:
    """`adapter({"adapter.r": 8})`: the findings of check_adapter on params.yaml with keys changed."""

    def checked(keys: dict[str, Any], architecture: Architecture | None = LLAMA) -> list[Finding]:
        return check_adapter(change(**keys), architecture)

    return checked


def test_a_target_module_that_is_nowhere_is_an_error(adapter: Callable[..., list[Finding]]) -> None:
    """Names of another architecture: PEFT would say so after the base was loaded."""
    assert adapter({}) == []
    assert adapter({"adapter.target_modules": ["c_attn"], "train.learning_rate": 2e-4}, None) == []
    (finding,) = adapter({"adapter.target_modules": ["q_proj", "c_attn", "c_proj"]})
    assert str(finding) == (
        "params.yaml: adapter.target_modules: c_attn, c_proj match nothing in LlamaForCausalLM; "
        "use some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
    assert (finding.code, finding.severity) == ("target-modules-missing", "error")


def test_a_path_is_no_name_of_a_module(adapter: Callable[..., list[Finding]]) -> None:
    """train takes names alone, so what it refuses is refused here."""
    assert codes(adapter({"adapter.target_modules": ["self_attn.q_proj"]})) == ["target-modules-missing"]


def test_embeddings_can_be_adapted_and_the_head_can_not(adapter: Callable[..., list[Finding]]) -> None:
    """PEFT knows both, so neither is missing; but the loss multiplies with the head's own weights, past its adapter."""
    assert adapter({"adapter.target_modules": [*SEVEN, "embed_tokens"]}) == []
    assert codes(adapter({"adapter.target_modules": [*SEVEN, "lm_head"]})) == ["adapter-impossible"]


def test_layers_without_an_adapter_are_a_note(adapter: Callable[..., list[Finding]]) -> None:
    """QLoRA found that all linear layers matter; by hand 2 x (128 x 64 x 2 + 128 x 256 x 3) of 500,000 parameters."""
    (finding,) = adapter({"adapter.target_modules": ["q_proj", "o_proj"]})
    assert str(finding) == (
        "params.yaml: adapter.target_modules: down_proj, gate_proj, k_proj, up_proj, v_proj get no adapter: 46% of "
        "LlamaForCausalLM; use all of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, where the "
        "validation loss stays high"
    )
    assert (finding.code, finding.severity) == ("target-modules-partial", "note")


@pytest.mark.parametrize("alpha", [3, 129])
def test_an_unusual_scale_is_a_warning(adapter: Callable[..., list[Finding]], alpha: int) -> None:
    """At a quarter and at eight it is still what papers used; rsLoRA divides by the root."""
    for usual in (4, 128):
        assert adapter({"adapter.r": 16, "adapter.lora_alpha": usual}) == []
    (finding,) = adapter({"adapter.r": 16, "adapter.lora_alpha": alpha})
    assert str(finding) == (
        f"params.yaml: adapter.lora_alpha: lora_alpha {alpha} over r 16 is {alpha / 16:g}, outside 0.25 to 8; use 32"
    )
    assert (finding.code, finding.severity) == ("alpha-unusual", "warning")
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
    adapter: Callable[..., list[Finding]], architecture: Architecture | None, edge: float, above: float, text: str
) -> None:
    """Ten times more is usual for a tiny base; SGD's rates are others altogether."""
    assert adapter({"train.learning_rate": edge}, architecture) == []
    (finding,) = adapter({"train.learning_rate": above}, architecture)
    assert str(finding) == f"params.yaml: train.learning_rate: {text}"
    assert (finding.code, finding.severity) == ("learning-rate-high", "warning")
    assert adapter({"train.learning_rate": above, "train.optim": "sgd"}, architecture) == []


def test_a_low_learning_rate_is_a_warning(adapter: Callable[..., list[Finding]]) -> None:
    """2e-5 is what full fine-tuning takes, and the commonest value that is copied from it."""
    assert adapter({"train.learning_rate": 3e-5}) == []
    (finding,) = adapter({"train.learning_rate": 2e-5})
    assert str(finding) == (
        "params.yaml: train.learning_rate: 2e-05 is below 3e-05: a rate for training all weights, not for adapters; "
        "use 0.00018"
    )
    assert (finding.code, finding.severity) == ("learning-rate-low", "warning")


# ---- This machine

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(devices=2)`: this machine, as the checks see it; with all that there is, if nothing is said."""

    def seen(
        *,
        missing: str | None = None,
        devices: int = 8,
        supports: tuple[str, ...] = ("bfloat16", "tf32"),
        fast: bool = True,
        packages: tuple[str, ...] = ("deepspeed", "flash_attn"),
    ) -> None:
        monkeypatch.setattr(machine_checks, "why_unavailable", lambda environment: missing)
        monkeypatch.setattr(machine_checks, "count_devices", lambda environment: devices)
        monkeypatch.setattr(
            machine_checks, "device_supports", lambda number_format, environment: number_format in supports
        )
        monkeypatch.setattr(machine_checks, "has_fast_bfloat16", lambda: fast)
        monkeypatch.setattr(machine_checks, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(machine_checks, "flash_attention_found", lambda: "flash_attn" in packages)

    return seen


def test_a_machine_that_has_all_raises_nothing(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """The counterpart of the tests below."""
    machine()
    for environment in ("cpu", "cuda", "apple"):
        keys = {"environment": environment, "train.bf16": True, "train.tf32": environment == "cuda"} | FLASH
        assert check_machine(change(**keys)) == []


def test_a_missing_device_is_a_warning_and_the_only_one(
    machine: Callable[..., None], change: Callable[..., Config]
) -> None:
    """Validate is run on a laptop before the machine is rented; what that one has, nobody can ask here."""
    machine(missing="no CUDA device answers", devices=0, supports=(), packages=())
    (finding,) = check_machine(change(**CUDA | FLASH | spread("zero2", devices=4)))
    assert str(finding) == (
        "params.yaml: environment: no CUDA device answers; "
        "use a recipe for this machine (make doctor names one), or run this one where it belongs"
    )
    assert (finding.code, finding.severity) == ("device-missing", "warning")


def test_fewer_devices_than_asked_for_is_a_warning(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """The advice keeps the effective batch size, where whole numbers can; processes share a CPU as they like."""
    config = change(**CUDA | spread("ddp", devices=4) | {"train.gradient_accumulation_steps": 2})
    machine(devices=4)
    assert check_machine(config) == []
    machine(devices=2)
    (finding,) = check_machine(config)
    assert str(finding) == (
        "params.yaml: train.distributed.devices: 4 are asked for, 2 found; "
        "use 2 with train.gradient_accumulation_steps: 4, which keeps the effective batch size"
    )
    assert (finding.code, finding.severity) == ("devices-missing", "warning")
    machine(devices=3)
    (finding,) = check_machine(config)
    assert finding.fix == "use 3"
    machine(devices=1)
    assert check_machine(change(**spread("ddp", devices=4))) == []


@pytest.mark.parametrize(("key", "value"), [("train.bf16", True), ("model.dtype", "bfloat16")])
def test_a_device_without_bfloat16_is_an_error(
    machine: Callable[..., None], change: Callable[..., Config], key: str, value: Any
) -> None:
    """A V100 or a T4: the first kernel would fail, or be emulated for hours."""
    machine(supports=("tf32",))
    assert check_machine(change(environment="cuda")) == []
    (finding,) = check_machine(change(**{"environment": "cuda", key: value}))
    assert str(finding) == f"params.yaml: {key}: this device has no bfloat16; use float16 and fp16: true"
    assert (finding.code, finding.severity) == ("bf16-unsupported", "error")


def test_an_old_processor_emulates_bfloat16(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """Right and slow, so a warning; on a GPU the processor does not matter."""
    machine(fast=False)
    assert check_machine(change()) == []
    assert check_machine(change(**{"environment": "cuda", "train.bf16": True})) == []
    (finding,) = check_machine(change(**{"train.bf16": True}))
    assert str(finding) == (
        "params.yaml: train.bf16: this processor has no bfloat16 instructions (avx512_bf16, amx_bf16), so it is "
        "emulated; use float32 where memory allows"
    )
    assert (finding.code, finding.severity) == ("bf16-slow", "warning")


def test_a_device_without_tf32_is_an_error(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """transformers refuses it after the base is loaded."""
    machine(supports=("bfloat16",))
    assert check_machine(change(environment="cuda")) == []
    (finding,) = check_machine(change(**{"environment": "cuda", "train.tf32": True}))
    assert str(finding) == "params.yaml: train.tf32: this device is older than Ampere; set it to false"
    assert (finding.code, finding.severity) == ("tf32-unsupported", "error")


def test_packages_that_only_some_recipes_need(machine: Callable[..., None], change: Callable[..., Config]) -> None:
    """They are not in the lock, so they may be missing."""
    machine(packages=())
    attention, strategy = check_machine(change(**CUDA | FLASH | spread("zero3")))
    assert str(attention) == (
        "params.yaml: model.attention: neither flash_attn nor its kernels in the Hub's cache are here; "
        "install one, or use sdpa, which is no slower on an H100 by published tests"
    )
    assert str(strategy) == (
        "params.yaml: train.distributed.strategy: the package deepspeed is not installed here; "
        "install deepspeed, or use ddp"
    )
    assert [(found.code, found.severity) for found in (attention, strategy)] == [
        ("attention-missing", "warning"),
        ("strategy-missing", "warning"),
    ]
    machine(packages=("flash_attn",))
    assert check_machine(change(**CUDA | FLASH | spread("fsdp"))) == []


def test_flash_attention_is_its_package_or_its_kernels_fetched_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[..., Config]
) -> None:
    """The package `kernels` alone would fetch them from the Hub when the run begins, where no network may be."""
    packages: set[str] = set()
    monkeypatch.setattr(base, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = change(**CUDA | {"model.attention": "auto"}).model
    assert not base.flash_attention_found()
    packages.add("kernels")
    assert not base.flash_attention_found()
    assert base.attention_used(model, "cuda") == "sdpa"
    (tmp_path / "models--kernels-community--flash-attn2").mkdir()
    assert base.flash_attention_found()
    assert base.attention_used(model, "cuda") == "flash_attention_2"
    assert base.attention_used(model, "cpu") == "sdpa"
    assert base.attention_used(change(**{"model.attention": "auto"}).model, "cuda") == "sdpa"  # it is in float32
    packages.clear()
    assert not base.flash_attention_found()
    packages.add("flash_attn")
    assert base.flash_attention_found()


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that ends at its first checkpoint has cost all its hours; at the byte there is room."""
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda root: Usage(9 * GB, 8 * GB, GB))
    assert check_disk(tmp_path, GB) == []
    (finding,) = check_disk(tmp_path, GB + 10**8)
    assert str(finding) == (
        f"{tmp_path}: 1.0 GB are free, checkpoints, adapter and data need 1.1 GB; "
        "free some (dvc gc -w), or lower train.save_total_limit"
    )
    assert (finding.code, finding.severity) == ("disk-short", "error")


# ---- The plan


def outlook_of(config: Config, peak: int, available: int | None, fits: tuple[int, int] = (2, 128)) -> Any:
    """An outlook with this peak on a machine of this memory."""
    schedule, workload = plan_schedule(config.train, 100), Workload.at_most(config.train, 100)
    plan: Any = SimpleNamespace(peak=peak)
    outlook = Outlook(config, workload, schedule, LLAMA, memory=plan, available=available)
    object.__setattr__(outlook, "what_fits", lambda: fits)
    return outlook


def test_a_peak_beyond_the_memory_is_an_error_and_near_it_a_warning(config: Config) -> None:
    """The prediction is good to a tenth: up to nine tenths is room, up to all of it a risk, above it no run."""
    assert check_fit(outlook_of(config, 90 * GB, 100 * GB)) == []
    assert check_fit(outlook_of(config, 90 * GB, None)) == []
    (tight,) = check_fit(outlook_of(config, 100 * GB, 100 * GB))
    assert str(tight) == (
        "params.yaml: train: a peak of 100.0 GB is predicted, 100.0 GB are there; "
        "use per_device_train_batch_size 2 or max_length 128"
    )
    assert (tight.code, tight.severity) == ("memory-tight", "warning")
    (short,) = check_fit(outlook_of(config, 101 * GB, 100 * GB, fits=(0, 0)))
    assert (short.code, short.severity) == ("memory-short", "error")
    assert short.fix.startswith("use a smaller micro-batch (with more accumulation) or max_length, or nf4")


@pytest.mark.parametrize(("fits", "fix"), [((2, 0), "batch_size 2"), ((0, 64), "max_length 64")])
def test_advice_names_only_what_fits(config: Config, fits: tuple[int, int], fix: str) -> None:
    """`use per_device_train_batch_size 0` would be refused in turn."""
    (finding,) = check_fit(outlook_of(config, 2 * GB, GB, fits))
    assert finding.fix.endswith(fix)
    assert " 0" not in finding.fix


def test_a_smaller_machine_than_the_recipes_is_a_warning(
    change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop with a GPU runs the rehearsal; the run itself needs the machine that was named."""
    monkeypatch.setattr(plan_checks, "why_unavailable", lambda environment: None)
    monkeypatch.setattr(plan_checks, "memory_bytes", lambda environment: 8 * GB)
    config = change(**CUDA)
    assert check_this_machine(config, outlook_of(config, 8 * GB, 80 * GB)) == []
    (finding,) = check_this_machine(config, outlook_of(config, 9 * GB, 80 * GB))
    assert str(finding) == (
        "params.yaml: machine: a peak of 9.00 GB is predicted, this machine has 8.00 GB; "
        "train on NVIDIA H100 80 GB; here, make rehearse and make plan"
    )
    assert (finding.code, finding.severity) == ("this-machine-short", "warning")
    here = change()
    assert check_this_machine(here, outlook_of(here, 9 * GB, 8 * GB)) == []  # check_fit's business
    monkeypatch.setattr(plan_checks, "why_unavailable", lambda environment: "no CUDA device answers")
    assert check_this_machine(config, outlook_of(config, 9 * GB, 80 * GB)) == []


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """`peaks(60, 50)`: what the plan predicts without checkpointing, and without quantization, in GB."""

    def predicted(unchecked: int, unquantized: int) -> None:
        def peak(config: Config, architecture: Architecture, workload: Workload, ranks: int) -> MemoryPlan:
            size = unchecked if config.model.quantization == "nf4" else unquantized
            plan: Any = SimpleNamespace(peak=size * GB)
            return plan  # type: ignore[no-any-return]

        monkeypatch.setattr(plan_checks, "peak_memory", peak)

    return predicted


def test_what_is_saved_for_nothing_is_told(change: Callable[..., Config], peaks: Callable[[int, int], None]) -> None:
    """Up to seven tenths of the memory there would be room to spare, which is a third of the work."""
    config = change(**CUDA | NF4 | {"train.activation_checkpointing": True})
    peaks(71, 71)
    assert check_room(config, outlook_of(config, 30 * GB, 100 * GB)) == []
    assert check_room(config, outlook_of(config, 30 * GB, None)) == []
    peaks(70, 60)
    checkpointing, quantization = check_room(config, outlook_of(config, 30 * GB, 100 * GB))
    assert str(checkpointing) == (
        "params.yaml: train.activation_checkpointing: without it the peak would be 70.0 GB of 100.0 GB; "
        "set it to false: a third of the work is saved"
    )
    assert str(quantization) == (
        "params.yaml: model.quantization: with bfloat16 weights the peak would be 60.0 GB of 100.0 GB; "
        "use none: no weight is dequantized in each pass, which is quicker and exact"
    )
    assert (checkpointing.code, checkpointing.severity) == ("checkpointing-needless", "warning")
    assert (quantization.code, quantization.severity) == ("quantization-needless", "note")
    plain = change(**CUDA)
    assert check_room(plain, outlook_of(plain, 30 * GB, 100 * GB)) == []


def test_an_unknown_architecture_has_no_plan(config: Config) -> None:
    """The base's own finding says why."""
    outlook = foresee(config, None, Workload.at_most(config.train, 100))
    assert check_plan(config, outlook) == []


def test_the_advice_of_a_real_plan_is_taken(change: Callable[..., Config]) -> None:
    """With real predictions: too large is an error that names a micro-batch, and with that one it is gone."""
    keys = {"machine": "gpu-24gb", "environment": "cuda", "train.max_length": 512}
    config = change(**keys | {"train.per_device_train_batch_size": 65536})
    (finding,) = check_fit(foresee(config, LLAMA, Workload.at_most(config.train, 100_000)))
    assert finding.code == "memory-short"
    advised = int(finding.fix.split()[2])
    config = change(**keys | {"train.per_device_train_batch_size": advised})
    assert check_fit(foresee(config, LLAMA, Workload.at_most(config.train, 100_000))) == []


# ---- The run on several devices, and packed


def test_a_run_over_devices_is_judged_by_its_own_steps(change: Callable[..., Config]) -> None:
    """Four devices take a fourth of the steps, so a warmup that was right on one is too long."""
    train = change(
        **{"train.warmup_steps": 10, "train.eval_steps": 5, "train.save_steps": 5, "train.logging_steps": 1}
    ).train
    assert check_run(train, plan_schedule(train, 640, devices=1)) == []
    (finding,) = check_run(train, plan_schedule(train, 640, devices=4))
    assert finding.what == "10 of the run's 20 steps are warmup"
    *_, partial = check_run(train.model_copy(update={"warmup_steps": 0}), plan_schedule(train, 650, devices=4))
    assert partial.what == "the last step of each epoch takes 10 instead of 64 examples"


def test_a_packed_run_is_judged_by_its_rows(change: Callable[..., Config]) -> None:
    """1,600 examples in 160 rows are 10 steps an epoch, not 100: the intervals of the plain run are too long."""
    keys = {"train.warmup_steps": 0, "train.eval_steps": 50, "train.save_steps": 50, "train.packing": True}
    train = change(**keys).train
    assert check_run(train, plan_schedule(train, 1600)) == []
    assert codes(check_run(train, plan_schedule(train, 160))) == ["eval-never", "save-never"]


# ---- The recipe


def test_another_batch_size_than_the_recipes_is_told(change: Callable[..., Config], tmp_path: Path) -> None:
    """Learning rates are chosen for a batch size; params.yaml alone can't tell that it was changed."""
    assert check_reference(change(), ROOT / "recipes") == []
    keys = {"train.effective_batch_size": 32, "train.gradient_accumulation_steps": 2}
    (finding,) = check_reference(change(**keys), ROOT / "recipes")
    assert str(finding) == (
        f"params.yaml: train.effective_batch_size: 32 here, 16 in {ROOT}/recipes/tiny.yaml, whose learning rate was "
        "chosen for that; use 16 (with another gradient_accumulation_steps), or another learning_rate"
    )
    assert finding.severity == "warning"
    assert check_reference(change(**keys), tmp_path) == []  # a run of no recipe


# ---- What evaluations cost


def test_costly_evaluations_are_a_warning(change: Callable[..., Config]) -> None:
    """188 evaluations of a validation split as large as a tenth of the rows would double the run."""
    config = change(**{"train.eval_steps": 15, "train.save_steps": 15})
    outlook = foresee(config, LLAMA, Workload.at_most(config.train, 15_000, validation=1_300))
    (finding,) = check_evaluations(outlook)
    assert (finding.code, finding.severity) == ("evaluations-costly", "warning")
    assert finding.where == "params.yaml: train.eval_steps"
    interval = int(finding.fix.split()[1])
    rarer = change(**{"train.eval_steps": interval, "train.save_steps": interval})
    assert check_evaluations(foresee(rarer, LLAMA, Workload.at_most(rarer.train, 15_000, validation=1_300))) == []
