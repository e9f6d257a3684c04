"""Predict a run: steps, parameters, memory by part, settings that would fit, and the amount of computation.

Everything follows from params.yaml, the architecture and the workload (number and length of rows), without loading
weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.config.train import TrainConfig
from finetune.config.validate import ValidateParams
from finetune.console import gigabytes
from finetune.hardware.devices import find_missing_device, memory_bytes
from finetune.model.architecture import Architecture
from finetune.model.targets import trainable_parameters
from finetune.plan.machines import MACHINES
from finetune.plan.memory import MemoryPlan, largest_length, largest_micro_batch, plan_memory
from finetune.plan.schedule import plan_schedule
from finetune.plan.time import Range, assumed_time, evaluation_flops, run_flops
from finetune.reports.validation import ParameterCounts, PlanReport, Schedule

CHECKPOINT_BYTES = 12  # per trainable parameter: itself and two moments of Adam, in float32
RANKS = (1, 2, 4, 8)
FITTING = 0.9  # of the available memory: the prediction is accurate to 10%


@dataclass(frozen=True)
class Workload:
    """The rows of a run: their tokens and computed positions per epoch, and the largest micro-batch."""

    rows: int
    tokens: int
    positions: int
    longest_row: int
    supervised: int  # supervised tokens per micro-batch
    validation: int = 0  # positions of the validation split
    counted: bool = True  # False if it is an upper bound for this number of rows

    @classmethod
    def at_most(cls, train: TrainConfig, rows: int, validation: int = 0, length: int | None = None) -> "Workload":
        """Return an upper bound for this number of rows: each has `length` tokens (or max_length), half in answers."""
        each = min(length or train.max_length, train.max_length)
        supervised = train.per_device_train_batch_size * each // 2
        return cls(rows, rows * each, rows * each, each, supervised, validation * each, counted=False)


@dataclass(frozen=True)
class RunPlan:
    """The plan of one run; memory and work are None if the architecture is unknown."""

    config: ValidateParams
    workload: Workload
    schedule: Schedule
    architecture: Architecture | None = None
    trainable: int = 0
    memory: MemoryPlan | None = None
    by_ranks: Mapping[int, int] = field(default_factory=dict)  # peak bytes per device
    available: int | None = None  # bytes of a device; None if this is not the recipe's machine
    flops: float | None = None  # of the training steps
    evaluation_flops: float = 0.0  # of all evaluations during training

    @property
    def disk_bytes(self) -> int:
        """The bytes of all kept checkpoints, the one being written, the adapter and the tokens."""
        kept = self.config.train.save_total_limit + 1
        rows = self.workload.tokens * 2 * 4
        return self.trainable * (CHECKPOINT_BYTES * kept + 4) + rows + 100_000_000

    def time(self) -> Range | None:
        """The seconds according to the machine's data sheet; None if it has none."""
        peak = MACHINES[self.config.machine].peak_flops if self.config.machine in MACHINES else None
        if self.flops is None or peak is None:
            return None
        return assumed_time(self.flops + self.evaluation_flops, peak, self.config.train.distributed.devices)

    def what_fits(self) -> tuple[int, int]:
        """The largest micro-batch at this length, and the longest rows at this micro-batch; 0 if none fits."""
        if self.architecture is None or self.available is None:
            return 0, 0
        config, work, room = self.config, self.workload, int(FITTING * self.available)
        settings = (self.architecture, config.model, config.adapter, config.train, config.environment)
        share = work.supervised / max(config.train.per_device_train_batch_size * work.longest_row, 1)
        ranks = config.train.distributed.devices
        batch = largest_micro_batch(
            *settings, available=room, length=work.longest_row, supervised_share=share, ranks=ranks
        )
        return batch, largest_length(*settings, available=room, supervised_share=share, ranks=ranks)

    def report(self) -> PlanReport:
        """Return the report, with only what is equal on every machine."""
        known = self.architecture
        return PlanReport(
            machine=self.config.machine,
            parameters=ParameterCounts(trainable=self.trainable, total=known.parameters) if known else None,
            memory_bytes=self.memory.to_json() if self.memory else None,
            peak_bytes_by_ranks={str(ranks): peak for ranks, peak in self.by_ranks.items()},
            flops=self.flops,
            evaluation_flops=self.evaluation_flops,
            workload_counted=self.workload.counted,
        )

    def table(self) -> dict[str, Any]:
        """Return the readable entries of the report, by name."""
        rows: dict[str, Any] = {"rows per epoch": self.workload.rows, "tokens per epoch": self.workload.tokens}
        if self.architecture and self.memory:
            rows |= {"trainable parameters": self.trainable, "all parameters": self.architecture.parameters}
            rows |= {f"memory: {part}": gigabytes(size) for part, size in self.memory.to_json().items() if size}
        return rows

    def lines(self) -> list[str]:
        """Describe the plan in a few sentences."""
        schedule, work = self.schedule, self.workload
        counted = "" if work.counted else " at most"
        sentences = [
            f"{schedule.steps} steps of {schedule.effective_batch_size} rows, {schedule.warmup_steps} of them warmup, "
            f"{schedule.evaluations} evaluations, {schedule.saves} saves; {work.tokens:,} tokens per epoch{counted}"
        ]
        if self.architecture and self.memory:
            total = self.architecture.parameters + self.trainable
            sentences.append(
                f"{self.trainable:,} of {total:,} parameters are trained ({self.trainable / total:.2%}); "
                f"predicted peak memory {gigabytes(self.memory.peak)}{self._fits()}"
            )
        return sentences

    def _fits(self) -> str:
        return "" if self.available is None else f" of {gigabytes(self.available)}"


def make_plan(params: ValidateParams, architecture: Architecture | None, workload: Workload) -> RunPlan:
    """Predict a run over this workload."""
    schedule = plan_schedule(params.train, workload.rows, params.train.distributed.devices)
    if architecture is None:
        return RunPlan(params, workload, schedule)
    devices = params.train.distributed.devices
    share = workload.supervised / max(params.train.per_device_train_batch_size * workload.longest_row, 1)
    length = workload.tokens / max(workload.rows, 1)
    usual = {"length": length, "supervised_share": min(share, 1.0)}
    flops = run_flops(architecture, params.train, positions=workload.positions, **usual)
    a_pass = evaluation_flops(architecture, positions=workload.validation, **usual)
    return RunPlan(
        params,
        workload,
        schedule,
        architecture,
        trainable_parameters(architecture, params.adapter, len(params.model.add_tokens)),
        peak_memory(params, architecture, workload, devices),
        {ranks: peak_memory(params, architecture, workload, ranks).peak for ranks in RANKS},
        available_bytes(params),
        flops,
        (schedule.evaluations + 1) * a_pass,  # including one before the first step
    )


def peak_memory(params: ValidateParams, architecture: Architecture, workload: Workload, ranks: int) -> MemoryPlan:
    """Predict the memory of one of `ranks` devices (several without a strategy are treated as ddp)."""
    train, distributed = params.train, params.train.distributed
    if ranks > 1 and distributed.strategy == "none":
        several = distributed.model_copy(update={"devices": ranks, "strategy": "ddp"})
        train = train.model_copy(update={"distributed": several})
    model = params.model
    if model.attention == "auto":  # sdpa needs more, and auto may select it
        model = model.model_copy(update={"attention": "sdpa"})
    return plan_memory(
        architecture,
        model,
        params.adapter,
        train,
        params.environment,
        length=workload.longest_row,
        supervised=workload.supervised,
        ranks=ranks,
    )


def available_bytes(params: ValidateParams) -> int | None:
    """Return the bytes of one device of the machine that the recipe names, or of this machine if that is the target."""
    if params.machine in MACHINES:
        return MACHINES[params.machine].memory_bytes
    return None if find_missing_device(params.environment) else memory_bytes(params.environment)
