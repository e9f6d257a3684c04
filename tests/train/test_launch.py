"""The launch of several processes and their distributed settings, checked without training."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.config.params import Config
from finetune.errors import MachineError
from finetune.hardware import preflight
from finetune.train import launch
from finetune.train.sft_config import strategy_options


def spread_config(change: Callable[..., Config], strategy: str = "ddp", **keys: Any) -> Config:
    """Return params.yaml on several devices, with the given keys of train.distributed."""
    how: dict[str, Any] = {"nodes": 1, "devices": 2, "offload_optimizer": "none", "offload_param": "none", **keys}
    return change(**{"train.distributed": {**how, "strategy": strategy}})


def test_torchrun_starts_the_processes_of_this_node(
    change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single node picks a free port, so that two runs on a machine do not collide; several nodes get the head's."""
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    run, work = [sys.executable, "-m", "finetune.train.launch"], ["--max-restarts", "0", "-m", "finetune.train.worker"]
    one = launch.command(spread_config(change))
    assert one == [*run, "--standalone", "--nnodes", "1", "--nproc-per-node", "2", *work]
    two = launch.command(spread_config(change, nodes=2, devices=8))
    place = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "head", "--master-port", "29500"]
    assert two == [*run, *place, "--nproc-per-node", "4", *work]


def test_processes_share_the_cores(change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with one thread per core each would wait for each other; with too few cores each gets one."""
    monkeypatch.setattr(launch, "usable_cores", lambda: 6)
    assert launch.threads(spread_config(change)) == 3
    assert launch.threads(spread_config(change, nodes=2, devices=4)) == 3
    assert launch.threads(spread_config(change, devices=8)) == 1


def test_missing_devices_are_reported(change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing devices and packages are reported before the start, with a remedy; processes on a CPU need no devices."""
    launch.require_devices(spread_config(change, devices=8))
    cuda = spread_config(change, nodes=2, devices=8).model_copy(update={"environment": "cuda"})
    monkeypatch.setattr(preflight, "find_missing_device", lambda _: None)
    monkeypatch.setattr(preflight, "count_devices", lambda _: 4)
    launch.require_devices(cuda)
    monkeypatch.setattr(preflight, "count_devices", lambda _: 1)
    with pytest.raises(MachineError, match=r"devices: 4 devices per node are required, but 1 found; use 2 with train"):
        launch.require_devices(cuda)
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"strategy: zero2 needs the package deepspeed, which is not installed"):
        launch.require_devices(spread_config(change, "zero2"))


@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_fsdp_options_reach_the_plugin(change: Callable[..., Config], tmp_path: Path, offload: str) -> None:
    """accelerate shards with FSDP2, frees layers after their pass, and saves the complete adapter in one file."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    options = strategy_options(spread_config(change, "fsdp", offload_param=offload))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSDP_VERSION", "1")  # the options take precedence over the environment
        plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert type(plugin.cpu_offload).__name__ == ("CPUOffloadPolicy" if offload == "cpu" else "OffloadPolicy")
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.activation_checkpointing
    os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)  # TrainingArguments leaves it in the environment


@pytest.mark.parametrize(("strategy", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_options_are_filled_in(
    change: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, stage: int
) -> None:
    """transformers fills each "auto" with the run's value, and no value disagrees; the package itself is not needed."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations import deepspeed

    monkeypatch.setattr(deepspeed, "dep_version_check", lambda *_: None)
    reader = type("Reader", (deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig), {})
    config = spread_config(change, strategy, offload_optimizer="cpu", offload_param="cpu")
    read = reader(strategy_options(config)["deepspeed"])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=True
    )
    read.trainer_config_process(arguments)
    read.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=64)), 100)
    content, cpu = read.config, {"device": "cpu", "pin_memory": True}
    assert '"auto"' not in json.dumps(content)
    assert content["zero_optimization"]["stage"] == stage
    assert content["zero_optimization"]["offload_optimizer"] == cpu
    assert ("offload_param" in content["zero_optimization"]) == (stage == 3)
    assert (content["train_micro_batch_size_per_gpu"], content["gradient_accumulation_steps"]) == (4, 2)
    assert (content["bf16"], content["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert (read.is_zero2(), read.is_zero3(), read.is_offload()) == (stage == 2, stage == 3, True)


def test_only_ddp_sets_a_backend(change: Callable[..., Config]) -> None:
    """On a CPU the processes use gloo; NCCL, the Trainer's default on GPUs, is not available there."""
    assert strategy_options(spread_config(change)) == {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    assert strategy_options(change()) == {}
