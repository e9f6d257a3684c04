"""Check the run's settings against its number of steps."""

import math

from finetune.config.train import TrainConfig
from finetune.reports.validation import Schedule
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CODES |= {
    "warmup-too-long": Code("error", "quality", "The learning rate never reaches its peak."),
    "warmup-long": Code("warning", "quality", "Most of the run is below the peak learning rate."),
    "warmup-ignored": Code("warning", "nothing", "The schedule has no warmup."),
    "logging-never": Code("error", "quality", "No training curve is recorded."),
    "eval-never": Code("error", "quality", "The validation loss is not monitored."),
    "save-never": Code("error", "run", "A killed run restarts from the beginning."),
    "best-checkpoint-unknown": Code(
        "error", "run", "Checkpoints are saved without an evaluation; the trainer refuses.", binding=True
    ),
    "early-stopping-keeps-last": Code("error", "quality", "The worse checkpoint is kept."),
    "early-stopping-never": Code("warning", "time", "The run ends before the patience can be used up."),
    "last-batch-partial": Code("note", "nothing", "The last step of an epoch averages over fewer examples."),
}


def check_run(train: TrainConfig, schedule: Schedule) -> list[Finding]:
    """Return all findings about warmup, logs, evaluations, saves, best checkpoint and early stopping."""
    return [
        *check_warmup(train, schedule),
        *check_events(train, schedule),
        *check_best_checkpoint(train),
        *check_early_stopping(train, schedule),
        *check_last_accumulation(schedule),
    ]


def check_warmup(train: TrainConfig, schedule: Schedule) -> list[Finding]:
    """Find a warmup that is as long as the run (the learning rate is never reached) or takes a large part of it."""
    where, warmup, steps = "params.yaml: train.warmup_steps", schedule.warmup_steps, schedule.steps
    advice = f"use {math.ceil(steps / 10)} or train longer"
    if train.lr_scheduler_type == "constant":
        what = f"{warmup} has no effect: the constant schedule has no warmup"
        fix = "use lr_scheduler_type: constant_with_warmup, or 0"
        return [Finding("warmup-ignored", where, what, fix)] if warmup else []
    if warmup >= steps:
        than = "more than" if warmup > steps else "as many as"
        what = f"{warmup} is {than} the run's {steps} steps; the learning rate never reaches its peak"
        return [Finding("warmup-too-long", where, what, advice)]
    if warmup > steps / 3:
        what = f"{warmup} of the run's {steps} steps are warmup"
        return [Finding("warmup-long", where, what, advice)]
    return []


def check_events(train: TrainConfig, schedule: Schedule) -> list[Finding]:
    """Find logs, evaluations and saves that never happen because their interval exceeds the run."""
    findings = []
    for code, key, interval, lost in (
        ("logging-never", "logging_steps", train.logging_steps, "no training curve is recorded"),
        ("eval-never", "eval_steps", train.eval_steps, "the validation loss is measured at the end only"),
        ("save-never", "save_steps", train.save_steps, "a killed run restarts from the beginning"),
    ):
        if interval > schedule.steps:
            what = f"{interval} is more than the run's {schedule.steps} steps; {lost}"
            fix = f"use {max(schedule.steps // 5, 1)}"
            findings.append(Finding(code, f"params.yaml: train.{key}", what, fix))
    return findings


def check_best_checkpoint(train: TrainConfig) -> list[Finding]:
    """Check that every save coincides with an evaluation, as the best checkpoint requires."""
    if train.load_best_model_at_end and train.save_steps % train.eval_steps:
        what = (
            f"{train.save_steps} is not a multiple of eval_steps {train.eval_steps}; the best checkpoint "
            "can't be determined"
        )
        fix = f"use {train.eval_steps * max(round(train.save_steps / train.eval_steps), 1)}"
        return [Finding("best-checkpoint-unknown", "params.yaml: train.save_steps", what, fix)]
    return []


def check_early_stopping(train: TrainConfig, schedule: Schedule) -> list[Finding]:
    """Check that early stopping has more evaluations than its patience, and a best checkpoint to return to."""
    patience = train.early_stopping_patience
    if patience is None:
        return []
    where = "params.yaml: train.early_stopping_patience"
    if not train.load_best_model_at_end:
        what = "early stopping without load_best_model_at_end keeps the worse, last checkpoint"
        return [Finding("early-stopping-keeps-last", where, what, "set train.load_best_model_at_end: true")]
    if schedule.evaluations <= patience + 1:  # the last one is the end of the run
        what = f"{patience} can't be used up by the {schedule.evaluations} evaluations of the run"
        fix = f"use a smaller patience, null, or eval_steps {max(schedule.steps // (patience * 4), 1)}"
        return [Finding("early-stopping-never", where, what, fix)]
    return []


def check_last_accumulation(schedule: Schedule) -> list[Finding]:
    """Note if the last step of an epoch averages over less than a full batch."""
    rest = schedule.examples % schedule.effective_batch_size
    if rest == 0 or schedule.examples < schedule.effective_batch_size:
        return []
    what = f"the last step of each epoch takes {rest} instead of {schedule.effective_batch_size} examples"
    return [Finding("last-batch-partial", "params.yaml: train", what, "nothing to do; the loss is per token")]
