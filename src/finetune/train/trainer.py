"""Params to library objects: the training arguments, the order of the examples, the trainer with its guards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from finetune.config import Config
from finetune.errors import ConfigError, DataError
from finetune.model.tokens import IGNORED
from finetune.plan.order import epoch_order


def sft_config(config: Config, output_dir: Path) -> SFTConfig:
    """TRL's SFTConfig. What params.yaml does not say is switched off here, never left to a library's default."""
    train = config.train
    return SFTConfig(
        output_dir=str(output_dir),
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=config.environment == "cpu",
        # the data come tokenized, masked and cut from validate
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=train.packing,  # validate has packed the rows; this chooses the collator that keeps them apart
        assistant_only_loss=False,
        remove_unused_columns=True,
        train_sampling_strategy=train.train_sampling_strategy,  # EpochSampler reads it
        dataloader_num_workers=train.dataloader_num_workers,
        dataloader_pin_memory=config.environment == "cuda",
        num_train_epochs=train.num_train_epochs,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        optim=train.optim,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        fp16=train.fp16,
        tf32=train.tf32 if config.environment == "cuda" else None,
        gradient_checkpointing=train.activation_checkpointing,  # the old name, which TRL 1.16 still reads
        logging_strategy="steps",
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of the losses before
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        prediction_loss_only=True,  # no logits are kept, which TRL would need a second forward pass for
        save_strategy="steps",
        save_steps=train.save_steps,
        save_total_limit=train.save_total_limit,
        load_best_model_at_end=train.load_best_model_at_end,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        disable_tqdm=True,
        report_to="none",
        push_to_hub=False,
    )


def score_supervised_positions() -> None:
    """Make TRL's loss head skip the positions that no loss is taken on, on every device.

    TRL does so on Triton devices only; elsewhere it projects every position onto the vocabulary, for the sake of
    compilers that want constant shapes. On a CPU that is 30% of the time where 5% of the tokens are supervised.
    """
    from trl.trainer import utils

    assert hasattr(utils, "_use_triton"), "this TRL names its switch otherwise"
    utils._use_triton = lambda _: True  # in that module it decides this and nothing else


class EpochSampler(Sampler[int]):
    """The rows in the order that validate counted with (plan/order.py)."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int, strategy: str) -> None:
        self.lengths, self.batch_size, self.seed, self.strategy = lengths, batch_size, seed, strategy
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.lengths, self.batch_size, self.seed, self.strategy, self.epoch))


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with an order of examples that survives a resume, a stop before a step that is not finite, and a count
    of the supervised tokens that were really trained on."""

    expected: Iterator[int] = iter(())  # supervised tokens of the micro-batches to come in this epoch

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:  # noqa: ARG002
        lengths = list(self.train_dataset["length"])  # the argument has lost this column, which no model takes
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(lengths, batch_size, self.args.seed, self.args.train_sampling_strategy)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; ConfigError where its loss is not finite."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        self._check_supervision(int((inputs["labels"] != IGNORED).sum()))
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._stop_unless_finite("loss", float(loss))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called between the last backward pass and the optimizer step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._stop_unless_finite("gradient norm", float(norm))
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation loss; ConfigError where it is not finite, for no checkpoint could be the best one then."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self._stop_unless_finite("validation loss", metrics["eval_loss"])
        return metrics

    def expect_epoch(self, epoch: int, done: int) -> None:
        """Look up what the micro-batches of an epoch hold by validate's count, from the one after `done` on."""
        micro = self.args.train_batch_size
        supervised = [sum(label != IGNORED for label in labels) for labels in self.train_dataset["labels"]]
        sampler = self._get_train_sampler()
        sampler.set_epoch(epoch)
        order = list(sampler)
        batches = [order[start : start + micro] for start in range(0, len(order), micro)]
        self.expected = iter([sum(supervised[at] for at in batch) for batch in batches[done:]])

    def _check_supervision(self, found: int) -> None:
        """DataError unless a micro-batch has the supervised tokens that validate counted in its rows."""
        counted = next(self.expected, None)
        if counted is not None and found != counted:
            raise DataError(
                f"data/validated/train.arrow: a micro-batch after step {self.state.global_step} has {found} supervised "
                f"tokens, but validate counted {counted} in its rows; the rows and the collator disagree: run validate "
                "again (dvc repro -f validate)"
            )

    def _stop_unless_finite(self, what: str, value: float) -> None:
        if not torch.isfinite(torch.tensor(value)):
            step = self.state.global_step
            raise ConfigError(
                f"params.yaml: train.learning_rate: the {what} after step {step} is {value}; no step was taken on it, "
                f"and the checkpoints before it are kept; use less than {self.args.learning_rate:g}, or mend the data"
            )


class WatchSupervision(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer, when an epoch begins or a resumed one goes on, what its micro-batches must hold."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called before the first micro-batch of an epoch, and before the first one after a resume."""
        accumulation = args.gradient_accumulation_steps
        micro_batches = -(-len(self.trainer.train_dataset) // args.train_batch_size)
        steps_an_epoch = -(-micro_batches // accumulation)
        epoch, steps_done = divmod(state.global_step, steps_an_epoch)
        self.trainer.expect_epoch(epoch, steps_done * accumulation)
