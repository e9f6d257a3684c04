"""TRL's SFTTrainer with micro-batches, checkpoints and stops that make a resumed run equal to an uninterrupted one."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from trl import SFTTrainer

from finetune.errors import DataError, InterruptedRunError, MachineError
from finetune.files.atomic import write_json
from finetune.files.manifests import read_manifest
from finetune.hardware.devices import arithmetic, used_memory_bytes
from finetune.model.base import environment_of
from finetune.model.tokens import IGNORED
from finetune.processes.signals import StopRequest, leave_signals_to_the_run
from finetune.train.batches import EpochBatches, count_supervised, longest_first, share
from finetune.train.checkpoints import PROGRESS, Checkpoints, Progress, hash_state, wait_for_files
from finetune.train.health import require_finite

if TYPE_CHECKING:
    from finetune.train.curves import CurvesCallback


MOST_SKIPPED = 50  # consecutive steps that fp16's scaler may skip: it halves its scale each time, from 2^16


class StoppedInEvaluationError(Exception):
    """A signal arrived while the validation loss was computed."""


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with a deterministic order of examples, token counts checked against validate's, a stop before a step
    that is not finite, atomic checkpoints, and a validation loss by token.
    """

    aux_loss_enabled: bool  # whether the loss of a mixture's routers is added

    def __init__(self, *, store: Checkpoints, stop: StopRequest, **kwargs: Any) -> None:
        self.store, self.stop = store, stop
        self.saved: list[dict[str, Any]] = []  # hashes of the state at each checkpoint
        self.lengths: list[int] = list(kwargs["train_dataset"]["length"])
        self.expected: Iterator[list[int]] = iter(())  # the rows of the remaining micro-batches of this epoch
        self.rows: list[int] = []  # of the step's micro-batches so far
        self.early_stopping: Any = None  # the callback, if the run has one
        self.curves: CurvesCallback | None = None  # the callback, in the process that prints
        self.evaluation_pending, self.skipped = False, 0
        self.control: Any = None
        self.tokens, self.since, self.paused = 0, perf_counter(), 0.0
        super().__init__(**kwargs)
        self.supervised = count_supervised(self.train_dataset)  # of each row, as the library holds it

    # ------------------------------------------------------------------------------------------------------- data

    def batches(self) -> EpochBatches:
        """The micro-batches of this process; a blank row after the last row is not among them."""
        args = self.args
        return EpochBatches(
            self.lengths[: len(self.lengths) - (args.world_size > 1)],
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.seed,
            args.train_sampling_strategy,
            args.process_index,
            args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return our own loader: accelerate's would distribute batches differently and use the global random state."""
        return self._loader(self.train_dataset, self.batches(), self.args.dataloader_num_workers)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:  # noqa: ARG002
        """Return the validation rows of this process, with rows of similar length together."""
        args, rows = self.args, self.eval_dataset
        order = longest_first(rows["length"][: len(rows) - (args.world_size > 1)])
        mine = share(order, args.per_device_eval_batch_size, args.process_index, args.world_size)
        return self._loader(rows, mine, 0)

    def _loader(self, rows: Any, batches: Any, workers: int) -> DataLoader[Any]:
        return DataLoader(
            self._remove_unused_columns(rows),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    @property
    def shards_state(self) -> bool:
        """Whether model and optimizer are sharded, so that no process holds all of them (FSDP, ZeRO)."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def begin_epoch(self, sampler: EpochBatches, epoch: int, done: int) -> None:
        """Set the sampler to an epoch and look up its rows, after the first `done` micro-batches."""
        sampler.set_epoch(epoch)
        self.expected = iter(sampler.batches(epoch)[done:])

    # ------------------------------------------------------------------------------------------------------ steps

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one micro-batch. Raise DataError unless its rows hold the supervised tokens that validate counted,
        ConfigError if its loss is not finite.
        """
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        rows = next(self.expected)
        self.rows.extend(rows)
        actual, counted = int((inputs["labels"] != IGNORED).sum()), int(self.supervised[rows].sum())
        if actual != counted:
            raise DataError(
                "data/validated/train.arrow",
                f"a micro-batch after step {self.state.global_step} has {actual} supervised tokens, "
                f"but validate counted {counted} in its rows",
                "rows and collator disagree: run validate again (dvc repro -f -s validate)",
            )
        self.tokens += sum(self.lengths[row] for row in rows)
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._require_finite("loss", float(loss), rows)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called between the last backward pass and the optimizer step.

        With fp16, an infinite norm is part of finding the loss scale: the scaler skips that step by itself.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.skipped = 0 if math.isfinite(float(norm)) else self.skipped + 1
        if getattr(self.accelerator, "scaler", None) is None or self.skipped > MOST_SKIPPED:
            self._require_finite("gradient norm", float(norm), self.rows)
        self.rows = []
        return norm

    def _require_finite(self, what: str, value: float, rows: list[int]) -> None:
        if not math.isfinite(value):
            ids = [name for row in rows for name in self.train_dataset[row]["ids"]]
            require_finite(what, value, self.state.global_step, self.args.learning_rate, ids)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002
        """Compute the validation loss in nats per supervised token, with equal weights whatever the batches."""
        started = perf_counter()
        sums = torch.zeros(2, dtype=torch.float64)
        model = self.model_wrapped if self.shards_state else self.model
        model.eval()
        balancing, self.aux_loss_enabled = self.aux_loss_enabled, False  # the validation loss is that of the answers
        one = torch.tensor(1, device=self.args.device)
        for inputs in self.get_eval_dataloader():
            if self.is_in_train and self.asked_to_stop():
                raise StoppedInEvaluationError
            supervised = int((inputs["labels"][..., 1:] != IGNORED).sum())
            with torch.no_grad():
                loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=one)
            sums += torch.tensor([float(loss) / self.args.world_size, supervised], dtype=torch.float64)
        self.aux_loss_enabled = balancing
        total, count = self.sum_of_processes(sums).tolist()
        metrics = {"eval_loss": total / max(count, 1)}
        require_finite("validation loss", metrics["eval_loss"], self.state.global_step, self.args.learning_rate, [])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.paused += perf_counter() - started
        return metrics

    def sum_of_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of these values over all processes, on the CPU."""
        if self.args.world_size > 1:
            values = values.to(self.args.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def asked_to_stop(self) -> bool:
        """Return whether a signal reached any of the processes."""
        stopping = self.stop.by is not None
        return bool(self.sum_of_processes(torch.tensor([float(stopping)]))[0]) if self.args.world_size > 1 else stopping

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens per second (all but padding) and memory to the training log."""
        if "loss" in logs:
            seconds = perf_counter() - self.since - self.paused
            tokens = float(self.sum_of_processes(torch.tensor([float(self.tokens)]))[0])
            logs["tokens_per_second"] = tokens / max(seconds, 1e-9)
            logs["memory_gigabytes"] = used_memory_bytes(self.args.device.type) / 1e9
            self.tokens, self.since, self.paused = 0, perf_counter(), 0.0
        super().log(logs, start_time)

    # ------------------------------------------------------------------------------------------------------- resuming

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # a run that had stopped early before it was killed stays stopped
            super()._run_epoch(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Save a better checkpoint at once if the best is published: it may fall between two regular saves."""
        better: bool = super()._determine_best_metric(*args, **kwargs)
        self.control.should_save |= better and self.args.load_best_model_at_end
        return better

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except StoppedInEvaluationError:
            self.evaluation_pending = True
            self._save_checkpoint(self.model, None)
            self.print_ending()

    def print_ending(self) -> None:
        """Raise InterruptedRunError: the state of this step is saved."""
        raise InterruptedRunError(
            "",
            f"train was stopped{f' by {self.stop.by}' if self.stop.by else ''} and saved at step "
            f"{self.state.global_step} of {self.state.max_steps}",
            "run the same command again to resume",
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        """Write one checkpoint atomically: adapter, optimizer, scheduler, random states, and our own progress."""
        started, step, first = perf_counter(), self.state.global_step, self.is_world_process_zero()
        if first:
            trainable = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
            self.store.begin(trainable * 12)  # bytes: float32 weights and AdamW's two moments
        self.accelerator.wait_for_everyone()
        partial = str(self.store.partial)
        self.save_model(partial, _internal_call=True)
        self._save_optimizer_and_scheduler(partial)
        self._save_scaler(partial)
        self._save_rng_state(partial)
        unlogged = (
            float(self.sum_of_processes(self._tr_loss.detach().cpu().double().reshape(1))[0]) / self.args.world_size
        )
        self.accelerator.wait_for_everyone()
        if first:
            wait_for_files(self._rng_files())
            self._seal(step, unlogged)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self.store.path(self.state.best_global_step))
        self.paused += perf_counter() - started

    def _rng_files(self) -> list[Path]:
        """Return the random states of all processes, whose absence the library would ignore silently."""
        several = [f"rng_state_{rank}.pth" for rank in range(self.args.world_size)]
        return [self.store.partial / name for name in (several if len(several) > 1 else ["rng_state.pth"])]

    def _seal(self, step: int, unlogged: float) -> None:
        """Write the additional files of a checkpoint, and publish it."""
        partial = self.store.partial
        self.state.save_to_json(str(partial / "trainer_state.json"))
        used = self.early_stopping.early_stopping_patience_counter if self.early_stopping else 0
        progress = Progress(
            unlogged, self._globalstep_last_logged, used, self.evaluation_pending, self.args.per_device_train_batch_size
        )
        write_json(partial / PROGRESS, asdict(progress))
        scheduled = step % self.args.save_steps == 0 or step == self.state.max_steps  # not after a signal
        if scheduled and not self.shards_state:
            self.saved.append(hash_state(step, partial, self.optimizer))
        environment = environment_of(self.args.device.type)
        best = self.state.best_global_step if self.args.load_best_model_at_end else None  # otherwise it is not needed
        self.store.publish(step, best, {"saved": self.saved, "arithmetic": arithmetic(environment)})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save only the adapter: no pickled arguments, tokenizer or card, and no request to the Hub."""
        if not self.args.should_save:  # one process writes for all
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        try:
            model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)
        except SafetensorError as error:  # raised for a full disk, but not an OSError here
            message = f"{error} (free disk space: dvc gc -w)"
            raise MachineError(str(output_dir), message, self.store.what_is_kept()) from None

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.device.type == "mps":  # which the library omits
            torch.save(torch.mps.get_rng_state(), Path(output_dir) / "rng_state_mps.pth")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.args.device.type == "mps":
            torch.mps.set_rng_state(torch.load(Path(checkpoint) / "rng_state_mps.pth", weights_only=True))

    def _load_best_model(self) -> None:
        """Load the best checkpoint; raise DataError if it is gone, where the library only warns."""
        self.accelerator.wait_for_everyone()
        read_manifest(Path(self.state.best_model_checkpoint))
        super()._load_best_model()
