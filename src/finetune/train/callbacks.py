"""Actions between the trainer's steps: start or resume a run, and stop it on request."""

import math
from pathlib import Path
from time import perf_counter
from typing import Any

from transformers import TrainerCallback

from finetune.train.checkpoints import read_progress
from finetune.train.memory_check import require_memory
from finetune.train.trainer import Trainer


class Steps(TrainerCallback):  # type: ignore[misc]
    """The trainer's callback; on a resume it restores the state that the library does not save."""

    def __init__(self, trainer: Trainer, resumed: Path | None, *, until: int | None) -> None:
        self.trainer, self.resumed, self.until = trainer, resumed, until
        self.stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check memory; then restore the state of a resumed run, or compute the loss before the first step."""
        trainer = self.trainer
        # A sharded process does not hold its later state yet, and a CPU's system overcommits memory.
        if args.device.type != "cpu" and not trainer.shards_state:
            require_memory(trainer)
        if self.resumed is None:
            trainer.evaluate()
            control.should_training_stop = False  # the untrained model's loss must not affect early stopping
        else:
            progress = read_progress(self.resumed)
            trainer._tr_loss += progress.unlogged_loss
            trainer._globalstep_last_logged = progress.logged_step
            if trainer.early_stopping:
                trainer.early_stopping.early_stopping_patience_counter = progress.patience_used
                control.should_training_stop = progress.patience_used >= trainer.early_stopping.early_stopping_patience
            if progress.evaluation_pending:
                trainer._determine_best_metric(trainer.evaluate(), None)
            if state.best_global_step:
                state.best_model_checkpoint = str(trainer.store.path(state.best_global_step))
        trainer.tokens, trainer.since, trainer.paused = 0, perf_counter(), 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called before the first micro-batch of an epoch, and before the first one after a resume."""
        sampler = kwargs["train_dataloader"].batch_sampler
        steps_an_epoch = math.ceil(len(sampler) / args.gradient_accumulation_steps)
        epoch, steps_done = divmod(state.global_step, steps_an_epoch)
        self.trainer.begin_epoch(sampler, epoch, steps_done * args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Save and stop if a signal arrived, or if a repetition has reached its last step."""
        self.stopping = self.trainer.asked_to_stop()
        if self.stopping or state.global_step == self.until:
            control.should_save = True
        if state.global_step == self.until:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called when a checkpoint is complete and in place."""
        if self.stopping:
            self.trainer.print_ending()
