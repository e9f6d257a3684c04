"""The devices and packages that a run needs and this machine lacks: one list of problems for every command.

check and train stop on them, validate reports them as findings, doctor and plan list them.
"""

from collections.abc import Iterator
from importlib.util import find_spec

from finetune.config.kernels import find_kernel
from finetune.config.model import Environment, ModelConfig
from finetune.config.train import TrainConfig
from finetune.errors import Problem
from finetune.hardware.devices import count_devices, find_missing_device, flash_attention_found

TRACKERS = {  # of train.report_to: alternative modules, of which one is enough
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


def find_device_problem(environment: Environment, train: TrainConfig) -> Problem | None:
    """Return the problem of a missing device, or of too few devices for one node of the run."""
    missing = find_missing_device(environment)
    if missing:
        remedy = "use a recipe for this machine (./finetune doctor lists one), or run this one on its target machine"
        return Problem("device-missing", "params.yaml: environment", missing, remedy)
    return None if environment == "cpu" else find_count_problem(train, count_devices(environment))


def find_count_problem(train: TrainConfig, available: int) -> Problem | None:
    """Return the problem of too few devices for one node, with settings that keep the effective batch size."""
    needed = train.distributed.devices // train.distributed.nodes
    if available >= needed:
        return None
    accumulation, rest = divmod(train.gradient_accumulation_steps * needed, available or 1)
    kept = f" with train.gradient_accumulation_steps: {accumulation}, which keeps the effective batch size"
    message = f"{needed} devices per node are required, but {available} found"
    remedy = f"use {available * train.distributed.nodes}{'' if rest else kept}"
    return Problem("devices-missing", "params.yaml: train.distributed.devices", message, remedy)


def find_package_problems(environment: Environment, model: ModelConfig, train: TrainConfig) -> Iterator[Problem]:
    """Yield problems of missing packages that only some recipes need, so that no lock contains them."""
    if model.attention == "flash_attention_2" and not flash_attention_found():
        message = "neither flash_attn nor its kernels from the Hub are installed"
        remedy = (
            "pip install flash-attn --no-build-isolation, or use sdpa, which published benchmarks show "
            "to be as fast on an H100"
        )
        yield Problem("attention-missing", "params.yaml: model.attention", message, remedy)
    if problem := find_kernel_problem(model.attention):
        yield problem
    if train.use_liger_kernel and environment == "cuda" and not find_spec("liger_kernel"):
        message, remedy = (
            "the package liger-kernel is not installed",
            "pip install liger-kernel, or set it to false",
        )
        yield Problem("liger-missing", "params.yaml: train.use_liger_kernel", message, remedy)
    strategy = train.distributed.strategy
    if strategy in ("zero2", "zero3") and not find_spec("deepspeed"):
        message = f"{strategy} needs the package deepspeed, which is not installed"
        place, remedy = "params.yaml: train.distributed.strategy", "pip install deepspeed, or use ddp"
        yield Problem("strategy-missing", place, message, remedy)
    yield from find_tracker_problems(train)


def find_kernel_problem(attention: str) -> Problem | None:
    """Return the problem of a kernel of the Hub that can't be loaded here without a network."""
    kernel = find_kernel(attention)
    if kernel is None:
        return None
    place = "params.yaml: model.attention"
    if not kernels_supported():
        message = f"{kernel.name} needs the package kernels, in a version that transformers supports"
        return Problem("attention-missing", place, message, "pip install kernels, or use auto")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(kernel.name, revision=kernel.revision, repo_type="kernel", local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        message = f"{kernel.name} at {kernel.revision} is not in the cache"
        return Problem("attention-missing", place, message, "run ./finetune pin with the recipe while connected")
    return None


def kernels_supported() -> bool:
    """Return whether the package kernels is installed in a version that transformers loads."""
    if find_spec("kernels") is None or find_spec("transformers") is None:
        return False
    from transformers.utils import is_kernels_available

    return bool(is_kernels_available())


def needs_bitsandbytes(model: ModelConfig, train: TrainConfig) -> bool:
    """Return whether the run quantizes the base's weights or uses an 8-bit optimizer."""
    return model.quantization in ("nf4", "int8") or train.optim.endswith("8bit")


def find_tracker_problems(train: TrainConfig) -> Iterator[Problem]:
    """Yield problems of trackers in `train.report_to` that are not installed."""
    for name in train.report_to:
        if not any(find_spec(module) for module in TRACKERS[name]):
            message, remedy = f"{name} is not installed", f"pip install {name}, or remove it"
            yield Problem("tracker-missing", "params.yaml: train.report_to", message, remedy)
