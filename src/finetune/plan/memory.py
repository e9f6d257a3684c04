"""Predict the peak memory of a training run by part, before anything is loaded.

The result is computed from an architecture's dimensions and params.yaml. A run passes through phases with different
needs; the peak is that of the largest phase. activations.py computes what a step keeps and temporarily needs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

from finetune.config.model import AdapterConfig, Environment, ModelConfig
from finetune.config.train import TrainConfig
from finetune.model.architecture import Architecture
from finetune.model.quantization import FOUR_BITS
from finetune.plan.activations import (
    MAPPED,
    NARROW,
    WIDE,
    Run,
    backward_bytes,
    forward_bytes,
    head_gradient_bytes,
    heap_slack,
    layer_saved,
    loss_head_bytes,
    saved_bytes,
)

Phase = Literal["loading", "loss", "backward", "optimizer", "evaluation"]
MIB = 2**20
LARGEST_BATCH = 1024
# The memory of a process before its first step: interpreter, torch, transformers, TRL. CPU: measured, 604 MiB with
# torch 2.13 on Linux, including a few for the base's small tensors. CUDA: the context, cuBLAS's workspaces (32 MiB on
# Hopper) and kernels, which nvidia-smi shows and torch's counter does not; assumed. Apple: the CPU's, and Metal's;
# assumed.
RUNTIME: dict[Environment, int] = {"cpu": 600 * MIB, "cuda": 700 * MIB, "apple": 900 * MIB}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device at the peak, by part, in one phase of the run; `host` is what was offloaded."""

    phase: Phase
    runtime: int = 0
    weights: int = 0
    quantization: int = 0
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0
    host: int = 0

    @property
    def peak(self) -> int:
        """The sum of the parts on the device."""
        parts = (field.name for field in fields(self) if field.name not in ("phase", "host"))
        return sum(getattr(self, name) for name in parts)

    def to_json(self) -> dict[str, int]:
        """Return the bytes as a plain mapping, for reports."""
        return {**{field.name: getattr(self, field.name) for field in fields(self)[1:]}, "peak": self.peak}


# ---------------------------------------------------------------------------------------------------- constant parts


def base_bytes(run: Run) -> tuple[int, int]:
    """Return the bytes of the frozen weights and, if they are quantized, of the scales.

    Quantized weights are those of linear layers except the loss head; embeddings, norms, biases and experts keep 16
    bits. In 4 bits, a block of 64 weights has a one-byte scale, 256 scales share one float32 (double quantization,
    arXiv 2305.14314, section 3), and a matrix has two code books of 256 and 16 float32. In 8 bits, each output has a
    float32 scale.
    """
    parameters, linears = run.architecture.parameters, run.architecture.linears
    if run.bits is None:
        return parameters * run.weight_size, 0
    quantized = sum(linear.parameters for linear in linears)
    matrices = sum(linear.count for linear in linears)
    scales = quantized // 64 + quantized // (64 * 256) * WIDE + matrices * (256 + 16) * WIDE
    if run.bits > FOUR_BITS:
        scales = sum(linear.outputs * linear.count for linear in linears) * WIDE
    return quantized * run.bits // 8 + (parameters - quantized) * run.weight_size, scales


def optimizer_bytes(run: Run) -> tuple[int, int]:
    """Return the optimizer's bytes on the device and on the host (paged state is managed memory, which can move)."""
    trained = run.trained
    if run.train.optim in ("adamw_torch", "adamw_torch_fused"):
        return 2 * WIDE * trained, 0
    if run.train.optim in ("adamw_8bit", "paged_adamw_8bit"):  # one byte and, for every 256, a float32 scale; twice
        state = 2 * trained + 2 * trained // 256 * WIDE
        return (0, state) if run.train.optim.startswith("paged") and run.environment == "cuda" else (state, 0)
    if run.train.optim == "adafactor":  # one row and one column of second moments for each of the two LoRA matrices
        rank = run.adapter.r
        adapted = (*run.targets.layers, *run.targets.experts)
        sides = sum((x.inputs + x.outputs + 2 * rank * x.experts) * x.count for x in adapted)
        return sides * WIDE, 0
    return 0, 0  # SGD without momentum


def largest_weight(shape: Architecture) -> int:
    """Return the parameters of the largest weight: embeddings, a linear layer, or the experts of one layer."""
    others = (x.inputs * x.outputs * x.experts for x in (*shape.linears, *shape.experts))
    return max(shape.vocabulary * shape.hidden, *others)


def loading_bytes(run: Run) -> int:
    """Return the additional bytes needed while loading.

    On a CPU, weights in the file's own dtype are its mapped pages themselves; others are read in full and stay mapped
    until the last is converted. NF4 copies each matrix in the model's dtype, which leaves a hole in the heap
    (heap_slack) that the next one rarely fits: measured 0.36 and 0.94 of the copies in two loads of 0.4 billion
    parameters. A GPU reads one tensor after another.
    """
    size = WIDE if run.architecture.stored == "float32" else NARROW
    if run.environment != "cpu":
        return largest_weight(run.architecture) * size
    pages = run.architecture.parameters * size
    if run.bits is None:
        return 0 if run.model.dtype == run.architecture.stored else pages
    on_heap = (x for x in run.architecture.linears if x.inputs * x.outputs * run.weight_size < MAPPED)
    return pages + sum(linear.parameters for linear in on_heap) * run.weight_size // 2


def slack_bytes(run: Run, moving: int) -> int:
    """Return the bytes that the allocator holds but does not use; on a GPU, gaps between torch's blocks (assumed)."""
    return heap_slack(run) if run.environment == "cpu" else moving // 20


# --------------------------------------------------------------------------------------------------- several devices


def spread(run: Run, plan: MemoryPlan) -> MemoryPlan:
    """Distribute the constant parts over several devices: the strategy shards some, offloading moves some to hosts."""
    asked = run.train.distributed
    names = {"zero2": ["gradients", "optimizer"], "fsdp": SHARDED, "zero3": SHARDED}.get(asked.strategy, [])
    parts = {name: -(-getattr(plan, name) // (run.ranks if name in names else 1)) for name in SHARDED}
    host = plan.host
    if asked.offload_optimizer == "cpu" and names:
        host += parts["optimizer"]
        parts["optimizer"] = 0
    if asked.offload_param == "cpu" and names is SHARDED:
        moved = ("weights", "quantization", "adapter")
        host += sum(parts[name] for name in moved)
        parts |= dict.fromkeys(moved, 0)
    return replace(plan, **parts, host=host)


SHARDED = ["weights", "quantization", "adapter", "gradients", "optimizer"]


def communication_bytes(run: Run) -> int:
    """Return the strategy's buffers: DDP copies the gradients; FSDP and ZeRO-3 gather two layers and the loss head."""
    strategy, shape = run.train.distributed.strategy, run.architecture
    if strategy == "ddp":
        return run.trained * WIDE
    if run.train.distributed.shards_base:
        weights, scales = base_bytes(run)
        outside = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden * run.weight_size
        return 2 * max(weights + scales - outside, 0) // shape.layers + outside
    return 2 * shape.hidden**2 * WIDE if strategy == "zero2" else 0  # the reduce bucket that transformers configures


# -------------------------------------------------------------------------------------------------- the complete plan


def plan_memory(
    architecture: Architecture,
    model: ModelConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    environment: Environment,
    *,
    length: int,
    supervised: int,
    ranks: int = 1,
) -> MemoryPlan:
    """Predict a run's memory on one device: `length` padded positions per row, `supervised` tokens per micro-batch."""
    batch = train.per_device_train_batch_size
    run = Run(architecture, model, adapter, train, environment, batch, length, supervised, ranks)
    weights, scales = base_bytes(run)
    trained = run.trained * WIDE
    state, host = optimizer_bytes(run)
    standing = MemoryPlan("loading", RUNTIME[environment], weights, scales, trained, trained, state, host=host)
    return max(phases(run, spread(run, standing)), key=lambda plan: plan.peak)


def phases(run: Run, standing: MemoryPlan) -> list[MemoryPlan]:
    """Return the needs of each phase of a run; between two micro-batches of a step, the gradients are kept."""
    layers, between = run.architecture.layers, run.train.gradient_accumulation_steps > 1
    saved, layer = saved_bytes(run), layer_saved(run)
    inside = layer if run.train.activation_checkpointing else 0
    early = standing.gradients if between else standing.gradients // layers
    head = loss_head_bytes(run, run.supervised, backward=True) + head_gradient_bytes(run)
    # evaluation rows are as long and as supervised as training rows
    evaluated = run.train.per_device_eval_batch_size
    idle = replace(run, batch=evaluated)
    judged = loss_head_bytes(idle, -(-run.supervised * evaluated // run.batch), backward=False)
    work, buffers = backward_bytes(run), communication_bytes(run)
    end = idle.tokens * run.architecture.hidden * 2 * WIDE
    plans = [
        replace(standing, phase="loss", gradients=early, activations=saved, logits=head, workspace=buffers),
        replace(standing, phase="backward", gradients=early, activations=saved + inside, workspace=work + buffers),
        replace(standing, phase="backward", activations=layer, workspace=work + buffers),
        replace(standing, phase="optimizer", workspace=standing.adapter),
        replace(standing, phase="evaluation", gradients=0, workspace=forward_bytes(idle) + buffers),
        replace(standing, phase="evaluation", gradients=0, activations=end, logits=judged, workspace=buffers),
        replace(standing, phase="loading", gradients=0, optimizer=0, adapter=0, workspace=loading_bytes(run)),
    ]
    return [with_slack(run, plan) for plan in plans]


def with_slack(run: Run, plan: MemoryPlan) -> MemoryPlan:
    """Add the allocator's slack to the plan's workspace."""
    if plan.phase in ("loading", "optimizer"):
        return plan
    moving = plan.activations + plan.logits + plan.workspace
    return replace(plan, workspace=plan.workspace + slack_bytes(run, moving))


# ---------------------------------------------------------------------------------------------------- settings that fit


def largest_that_fits(peak: Callable[[int], int], available: int, most: int) -> int:
    """Return the largest integer up to `most` whose peak fits, by bisection; 0 if not even 1 does."""
    fits, fails = 0, most + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if peak(middle) <= available else (fits, middle)
    return fits


def largest_micro_batch(
    architecture: Architecture,
    model: ModelConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    environment: Environment,
    *,
    available: int,
    length: int,
    supervised_share: float,
    ranks: int = 1,
) -> int:
    """Return the largest micro-batch with rows of this length that fits in `available` bytes; 0 if no row fits."""

    def peak(batch: int) -> int:
        changed = train.model_copy(update={"per_device_train_batch_size": batch})
        scored = math.ceil(supervised_share * batch * length)
        asked = (architecture, model, adapter, changed, environment)
        return plan_memory(*asked, length=length, supervised=scored, ranks=ranks).peak

    return largest_that_fits(peak, available, LARGEST_BATCH)


def largest_length(
    architecture: Architecture,
    model: ModelConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    environment: Environment,
    *,
    available: int,
    supervised_share: float,
    ranks: int = 1,
) -> int:
    """Return the longest rows of this micro-batch that fit in `available` bytes, up to the base's positions, or 0."""

    def peak(length: int) -> int:
        scored = math.ceil(supervised_share * train.per_device_train_batch_size * length)
        asked = (architecture, model, adapter, train, environment)
        return plan_memory(*asked, length=length, supervised=scored, ranks=ranks).peak

    return largest_that_fits(peak, available, architecture.max_positions)
