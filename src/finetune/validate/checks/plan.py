"""Check the plan against the available memory: whether the run fits, and whether it saves memory needlessly."""

import math

from finetune.config.validate import ValidateParams
from finetune.console import gigabytes
from finetune.hardware.devices import find_missing_device, memory_bytes
from finetune.plan.machines import MACHINES
from finetune.plan.outlook import FITTING, RunPlan, peak_memory
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

COSTLY = 0.25  # evaluations, relative to the work of the training steps
ROOMY = 0.7  # of the memory that another setting may need at most to be suggested
ADVICE = (
    "use a smaller micro-batch (with more accumulation), a smaller max_length or nf4; ./finetune plan shows what fits"
)

CODES |= {
    "memory-short": Code("error", "run", "The predicted peak exceeds the memory of this machine."),
    "memory-tight": Code("warning", "run", "The predicted peak is within 10% of the memory of this machine."),
    "this-machine-short": Code("warning", "time", "This machine has less memory than the recipe's target machine."),
    "quantization-needless": Code("note", "time", "16-bit weights would fit and need no dequantization."),
    "checkpointing-needless": Code("warning", "time", "Activations are recomputed although they would fit in memory."),
    "evaluations-costly": Code("warning", "time", "Evaluations take a large share of the run."),
}


def check_plan(params: ValidateParams, outlook: RunPlan) -> list[Finding]:
    """Return all findings about memory; none if the architecture is unknown."""
    if outlook.memory is None:
        return []
    here = [*check_fit(outlook), *check_this_machine(params, outlook)]
    return [*here, *check_room(params, outlook), *check_evaluations(outlook)]


def check_evaluations(outlook: RunPlan) -> list[Finding]:
    """Find evaluations during training that cost a large part of the training itself."""
    work, evaluations = outlook.evaluation_flops, outlook.schedule.evaluations
    if not outlook.flops or work <= COSTLY * outlook.flops:
        return []
    share, first = work / outlook.flops, 1  # the evaluation before the first step
    enough = max(math.floor((evaluations + first) * COSTLY * outlook.flops / work) - first, 1)
    what = f"{evaluations} evaluations and the one before the first step take {share:.0%} of the training compute"
    fix = f"use {math.ceil(outlook.schedule.steps / enough)} (and save_steps a multiple of it), or less validation data"
    return [Finding("evaluations-costly", "params.yaml: train.eval_steps", what, fix)]


def check_fit(outlook: RunPlan) -> list[Finding]:
    """Compare the predicted peak with the machine that the recipe is for."""
    assert outlook.memory is not None
    peak, available, where = outlook.memory.peak, outlook.available, "params.yaml: train"
    if available is None or peak <= FITTING * available:
        return []
    names = ("per_device_train_batch_size", "max_length")
    fitting = [f"{name} {size}" for name, size in zip(names, outlook.what_fits(), strict=True) if size]
    advice = f"use {' or '.join(fitting)}" if fitting else ADVICE
    what = f"predicted peak {gigabytes(peak)}, available {gigabytes(available)}"
    return [Finding("memory-short" if peak > available else "memory-tight", where, what, advice)]


def check_this_machine(params: ValidateParams, outlook: RunPlan) -> list[Finding]:
    """Compare the predicted peak with this machine if the recipe is for another one of its kind."""
    assert outlook.memory is not None
    if params.machine not in MACHINES or find_missing_device(params.environment):
        return []
    here = memory_bytes(params.environment)
    if outlook.memory.peak <= here:
        return []
    what = f"predicted peak {gigabytes(outlook.memory.peak)}, but this machine has {gigabytes(here)}"
    fix = f"train on {MACHINES[params.machine].title}; on this machine, use ./finetune rehearse and ./finetune plan"
    return [Finding("this-machine-short", "params.yaml: machine", what, fix)]


def check_room(params: ValidateParams, outlook: RunPlan) -> list[Finding]:
    """Find checkpointing or 4-bit weights in runs that would easily fit without them."""
    findings: list[Finding] = []
    if outlook.available is None or outlook.architecture is None:
        return findings
    room, ranks = ROOMY * outlook.available, params.train.distributed.devices

    def peak(changed: ValidateParams) -> int:
        assert outlook.architecture is not None
        return peak_memory(changed, outlook.architecture, outlook.workload, ranks).peak

    if params.train.activation_checkpointing:
        plain = params.model_copy(update={"train": params.train.model_copy(update={"activation_checkpointing": False})})
        if peak(plain) <= room:
            what = f"without it the peak would be {gigabytes(peak(plain))} of {gigabytes(outlook.available)}"
            where, fix = (
                "params.yaml: train.activation_checkpointing",
                "set it to false: checkpointing adds a third to the compute",
            )
            findings.append(Finding("checkpointing-needless", where, what, fix))
    if params.model.quantization == "nf4":
        plain = params.model_copy(update={"model": params.model.model_copy(update={"quantization": "none"})})
        if peak(plain) <= room:
            dtype, size = params.model.dtype, gigabytes(peak(plain))
            what = f"with {dtype} weights the peak would be {size} of {gigabytes(outlook.available)}"
            fix = "use none: without dequantizing weights in each pass, training is faster and exact"
            findings.append(Finding("quantization-needless", "params.yaml: model.quantization", what, fix))
    return findings
