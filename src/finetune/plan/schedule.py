"""Compute the schedule of a run (steps, warmup, saves, evaluations) in the same way as transformers' Trainer."""

import math

from finetune.config.train import TrainConfig
from finetune.reports.validation import Schedule


def plan_schedule(train: TrainConfig, examples: int, devices: int = 1) -> Schedule:
    """Return the schedule of a run over `examples` rows on `devices` devices.

    A last partial accumulation is a separate step (transformers.Trainer.set_initial_training_values); a warmup below 1
    is a fraction of the steps, rounded up (TrainingArguments.get_warmup_steps).
    """
    batches = math.ceil(examples / (train.per_device_train_batch_size * devices))
    per_epoch = max(math.ceil(batches / train.gradient_accumulation_steps), 1)
    steps = math.ceil(train.num_train_epochs * per_epoch)
    share = train.warmup_steps
    return Schedule(
        examples=examples,
        effective_batch_size=train.per_device_train_batch_size * train.gradient_accumulation_steps * devices,
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=int(share) if share >= 1 else math.ceil(steps * share),
        evaluations=math.ceil(steps / train.eval_steps),  # the last step is always evaluated and saved
        saves=math.ceil(steps / train.save_steps),
        logs=steps // train.logging_steps,
    )
