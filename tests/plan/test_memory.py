"""The predicted memory: activations are compared with torch's own hooks, the rest with known properties."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from finetune.config.model import AdapterConfig, ModelConfig
from finetune.config.params import Config, parse_config
from finetune.config.train import DistributedConfig, TrainConfig
from finetune.model.architecture import Architecture, measure_architecture
from finetune.model.base_config import find_base_config
from finetune.plan.activations import Run, layer_saved
from finetune.plan.memory import MemoryPlan, largest_length, largest_micro_batch, plan_memory
from tests.builders.checked_settings import layers
from tests.builders.small_run import ROOT, params, validated

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GIB = 2**30


@cache
def usual() -> Config:
    """Return the small run's params, read once."""
    return parse_config(params(), "params.yaml")


def sections(**changes: Any) -> tuple[ModelConfig, AdapterConfig, TrainConfig]:
    """Return the three sections of a small run's params, changed by `section__key`."""
    parts: dict[str, Any] = {"model": usual().model, "adapter": usual().adapter, "train": usual().train}
    for key, value in changes.items():
        section, name = key.split("__")
        changed = DistributedConfig(nodes=1, **value) if name == "distributed" else value
        parts[section] = parts[section].model_copy(update={name: changed})
    return parts["model"], parts["adapter"], parts["train"]


def mistral() -> Architecture:
    """Return the numbers of Mistral 7B."""
    shapes = [("q_proj", 4096, 4096), ("k_proj", 4096, 1024), ("v_proj", 4096, 1024), ("o_proj", 4096, 4096)]
    shapes += [("gate_proj", 4096, 14336), ("up_proj", 4096, 14336), ("down_proj", 14336, 4096)]
    linears = tuple(layers(*shape, 32) for shape in shapes)
    facts = {"layers": 32, "hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128}
    rest = {"vocabulary": 32768, "tied": False, "max_positions": 32768, "parameters": 7_248_023_552}
    return Architecture("mistral", "MistralForCausalLM", **facts, **rest, stored="bfloat16", linears=linears)


def plan(
    environment: Any = "cuda", length: int = 2048, supervised: int = 512, ranks: int = 1, **keys: Any
) -> MemoryPlan:
    """Return the plan of a run of Mistral 7B."""
    usual = {"model__dtype": "bfloat16", "adapter__r": 16, "train__per_device_train_batch_size": 2}
    usual["train__per_device_eval_batch_size"] = 2
    arguments = sections(**{**usual, **keys})
    return plan_memory(mistral(), *arguments, environment, length=length, supervised=supervised, ranks=ranks)


# -------------------------------------------------------------------------------------- activations kept by autograd


@contextmanager
def kept_storages(model: Any) -> Iterator[dict[int, int]]:
    """Yield bytes by storage that the graph still holds at the end, without parameters and inputs."""
    import torch

    class Kept:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    found: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield found
    gc.collect()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for kept in list(alive):
        storage = kept.tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = storage.nbytes()


def build(kind: str, layers: int, shape: tuple[int, ...], run: Run) -> Any:
    """Return a tiny base of this kind with the run's adapter, as build_model makes it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from finetune.model.adapter import add_adapter
    from finetune.model.language import find_language_model

    hidden, intermediate, heads, kv_heads = shape
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=96,
        max_position_embeddings=128,
        pad_token_id=0,
        **({"sliding_window": None} if kind == "mistral" else {}),
    )
    base = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, run.model.dtype), attn_implementation=run.model.attention
    )
    base.language, base.new_tokens = find_language_model(config), ()
    return add_adapter(base.requires_grad_(False), run.adapter).train()


def bytes_of_a_layer(kind: str, shape: tuple[int, ...], run: Run) -> int:
    """Return how much a third layer adds to the storage kept by the graph of two."""
    import torch

    sizes = []
    for depth in (2, 3):
        model = build(kind, depth, shape, run)
        ids = torch.randint(1, 90, (run.batch, run.length))
        mask = torch.ones_like(ids)
        mask[0, -3:] = 0 if run.batch > 1 else 1
        with kept_storages(model) as found, torch.autocast("cpu", torch.bfloat16, enabled=run.autocast):
            hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        sizes.append(sum(found.values()))
        del hidden
    return sizes[1] - sizes[0]


WAYS: list[dict[str, Any]] = [
    {},
    {"adapter__lora_dropout": 0.0},
    {"model__dtype": "bfloat16"},
    {"model__dtype": "bfloat16", "adapter__lora_dropout": 0.0},
    {"train__bf16": True},
    {"model__dtype": "bfloat16", "train__bf16": True},
    {"model__attention": "eager"},
    {"model__attention": "eager", "adapter__lora_dropout": 0.0},
    {"model__attention": "eager", "model__dtype": "bfloat16"},
    {"adapter__use_dora": True},
    {"adapter__use_dora": True, "adapter__lora_dropout": 0.0},
    {"adapter__use_dora": True, "model__dtype": "bfloat16"},
    {"adapter__target_modules": ("q_proj", "v_proj")},
]


def shape_of(kind: str, shape: tuple[int, ...]) -> Architecture:
    """Return the numbers of the tiny base."""
    from transformers import AutoConfig

    hidden, intermediate, heads, kv_heads = shape
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 96}
    return measure_architecture(AutoConfig.for_model(kind, **sizes))


def run_of(kind: str, shape: tuple[int, ...], batch: int, length: int, **keys: Any) -> Run:
    """Return a run of the tiny base."""
    return Run(shape_of(kind, shape), *sections(**keys), "cpu", batch, length, 8, 1)


@pytest.mark.parametrize("keys", WAYS, ids=lambda keys: " ".join(f"{key}={keys[key]}" for key in keys) or "plain")
def test_activations_of_a_layer_are_predicted_exactly(keys: dict[str, Any]) -> None:
    """The prediction is exact to the byte for a Llama with grouped queries and padded rows."""
    shape = (64, 176, 4, 2)
    run = run_of("llama", shape, 2, 24, **keys)
    assert bytes_of_a_layer("llama", shape, run) == layer_saved(run)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize(("shape", "batch", "length"), [((64, 176, 4, 4), 1, 33), ((96, 256, 6, 2), 3, 16)])
def test_the_prediction_holds_for_every_kind_and_shape(kind: str, shape: Any, batch: int, length: int) -> None:
    """The prediction is exact to the byte, with and without padding."""
    run = run_of(kind, shape, batch, length)
    assert bytes_of_a_layer(kind, shape, run) == layer_saved(run)


# ---------------------------------------------------------------------------------------------------- known properties

ENVIRONMENTS = ["cpu", "cuda", "apple"]
GROWING: list[tuple[str, list[Any]]] = [
    ("train__per_device_train_batch_size", [1, 2, 3, 8, 64]),
    ("adapter__r", [1, 8, 64, 256]),
    ("train__per_device_eval_batch_size", [1, 8, 128]),
    ("adapter__target_modules", [("q_proj",), ("q_proj", "v_proj"), tuple(SEVEN)]),
    ("adapter__use_dora", [False, True]),
]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("key", "values"), GROWING, ids=[key for key, _ in GROWING])
def test_larger_settings_need_more_memory(environment: str, checkpointing: bool, key: str, values: list[Any]) -> None:
    """The peak never decreases with batch, rank or targets."""
    common = {"train__activation_checkpointing": checkpointing}
    peaks = [plan(environment, **{**common, key: value}).peak for value in values]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_longer_rows_need_more_memory(environment: str, attention: str) -> None:
    """This holds for every kind of attention, packed or not, and for more supervised tokens."""
    for packing in (False, True):
        keys = {"model__attention": attention, "train__packing": packing}
        peaks = [plan(environment, length, 64, **keys).peak for length in (64, 512, 1000, 4096, 16384)]
        assert peaks == sorted(peaks)
        assert peaks[0] < peaks[-1]
    peaks = [plan(environment, 4096, supervised).peak for supervised in (1, 100, 1000, 8192)]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_on_a_cpu_grows_with_the_rows(checkpointing: bool) -> None:
    """The peak grows even around the size from which the C library maps tensors separately."""
    arguments = (mistral(), *sections(model__dtype="bfloat16", train__activation_checkpointing=checkpointing), "cpu")
    peaks = [plan_memory(*arguments, length=length, supervised=64).peak for length in range(16, 2048, 16)]
    assert peaks == sorted(peaks)


@pytest.mark.parametrize("environment", ["cuda", "apple"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_checkpointing_never_costs_memory_on_a_gpu(environment: str, way: dict[str, Any]) -> None:
    """Checkpointing keeps each layer's input and one layer instead of all layers."""
    kept, again = (plan(environment, **way, train__activation_checkpointing=value) for value in (False, True))
    assert again.peak < kept.peak
    assert again.activations < kept.activations / 3


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_checkpointing_never_costs_memory_on_a_cpu(way: dict[str, Any]) -> None:
    """On a CPU, fragmentation of the heap costs a part of the savings, but never all."""
    kept, again = (plan("cpu", 512, **way, train__activation_checkpointing=value).peak for value in (False, True))
    assert again <= kept


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_peak_is_the_sum_of_its_parts(environment: str) -> None:
    """The report has all parts in bytes."""
    found = plan(environment)
    report = found.to_json()
    assert report.pop("peak") == found.peak == sum(report.values()) - report["host"]
    assert all(isinstance(size, int) and size >= 0 for size in report.values())
    assert set(report) >= {"runtime", "weights", "quantization", "adapter", "gradients", "optimizer", "activations"}


def test_weights_of_a_7b_have_the_known_size() -> None:
    """16 bit: 14.5 GB; NF4: 4.1 GB with its scales, as embeddings and loss head stay in 16 bit."""
    assert plan().weights == 2 * 7_248_023_552
    small = plan(model__quantization="nf4")
    linear = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert small.weights == linear // 2 + 2 * (7_248_023_552 - linear)
    assert small.quantization / linear * 8 == pytest.approx(0.127, abs=0.001)  # bits per weight: QLoRA, section 3
    assert small.peak < plan().peak


def test_a_qlora_run_of_a_7b_has_the_known_peak() -> None:
    """With NF4, checkpointing and one row of 512 tokens it fits in 8 GB, as published; 16 bit needs at least 16 GB."""
    keys = {"train__activation_checkpointing": True, "train__optim": "paged_adamw_8bit", "train__bf16": True}
    keys |= {"train__per_device_train_batch_size": 1, "train__per_device_eval_batch_size": 1}
    assert 5 * GIB < plan(length=512, model__quantization="nf4", **keys).peak < 8 * GIB
    assert 14 * GIB < plan(length=512, **keys).peak < 18 * GIB


@pytest.mark.parametrize(
    ("optim", "size"),
    [("adamw_torch", 8.0), ("adamw_torch_fused", 8.0), ("adamw_8bit", 2.03), ("sgd", 0.0), ("paged_adamw_8bit", 0.0)],
)
def test_optimizer_states_have_the_expected_size(optim: str, size: float) -> None:
    """Sizes are bytes per trained parameter; paged state can leave the GPU, so it counts as host memory."""
    found = plan(train__optim=optim)
    assert found.optimizer / (found.adapter / 4) == pytest.approx(size, abs=0.01)
    assert (found.host > 0) == optim.startswith("paged")
    assert plan(train__optim="adafactor").optimizer < found.adapter / 4


def test_strategies_shard_and_offload() -> None:
    """FSDP and ZeRO-3 shard the weights, ZeRO-2 only the optimizer, DDP nothing; offloading empties the device."""
    by = {}
    for strategy in ("ddp", "fsdp", "zero2", "zero3"):
        arguments = {"devices": 4, "strategy": strategy, "offload_optimizer": "none", "offload_param": "none"}
        by[strategy] = plan(ranks=4, train__distributed=arguments)
    alone = plan()
    assert by["ddp"].weights == by["zero2"].weights == alone.weights
    assert by["fsdp"].weights == by["zero3"].weights == -(-alone.weights // 4)
    assert by["zero2"].optimizer == by["fsdp"].optimizer == -(-alone.optimizer // 4)
    assert by["ddp"].optimizer == alone.optimizer
    arguments = {"devices": 4, "strategy": "zero3", "offload_optimizer": "cpu", "offload_param": "cpu"}
    off = plan(ranks=4, train__distributed=arguments)
    assert off.weights == off.optimizer == 0
    assert off.host == by["zero3"].weights + by["zero3"].adapter + by["zero3"].optimizer


@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
def test_more_devices_need_less_memory_each(strategy: str) -> None:
    """This holds for the sharded parts."""
    arguments = {"devices": 8, "strategy": strategy, "offload_optimizer": "none", "offload_param": "none"}
    peaks = [plan(ranks=ranks, train__distributed=arguments).peak for ranks in (1, 2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)


def test_the_largest_fitting_size_is_found() -> None:
    """The next larger batch or length does not fit."""
    keys = {"model__dtype": "bfloat16", "model__quantization": "nf4", "train__activation_checkpointing": True}
    arguments = (mistral(), *sections(**keys), "cuda")
    room = 24 * GIB
    batch = largest_micro_batch(*arguments, available=room, length=1024, supervised_share=0.5)

    def peak(rows: int, length: int) -> int:
        model, adapter, train = arguments[1:4]
        train = train.model_copy(update={"per_device_train_batch_size": rows})
        scored = rows * length // 2
        return plan_memory(mistral(), model, adapter, train, "cuda", length=length, supervised=scored).peak

    assert peak(batch, 1024) <= room < peak(batch + 1, 1024)
    rows = arguments[3].per_device_train_batch_size
    length = largest_length(*arguments, available=room, supervised_share=0.5)
    assert peak(rows, length - length % 2) <= room < peak(rows, length + 2)
    assert largest_micro_batch(*arguments, available=GIB, length=1024, supervised_share=0.5) == 0
    assert largest_length(*arguments, available=GIB, supervised_share=0.5) == 0


@pytest.mark.slow
def test_a_real_run_needs_the_predicted_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of the small run is mostly that of the libraries; benchmarks/bench_memory.py tests realistic bases."""
    monkeypatch.chdir(tmp_path)
    config, paths = validated(tmp_path / "run")
    command = [sys.executable, "-m", "finetune", "train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    measured = json.loads((paths.reports / "train_cost.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
    arguments = (config.model, config.adapter, config.train, config.environment)
    architecture = measure_architecture(find_base_config(config.model, Path()))
    predicted = plan_memory(architecture, *arguments, length=64, supervised=32).peak
    assert predicted == pytest.approx(measured, rel=0.15)
