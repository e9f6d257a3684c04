"""One process of the run, the only one or one of several: it trains, and the first of them publishes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.config.model import Environment
from finetune.config.train import TrainParams
from finetune.console import say
from finetune.errors import ConfigError, InterruptedRunError, MachineError
from finetune.files.manifests import read_manifest
from finetune.files.run_lock import pipeline_lock
from finetune.hardware.devices import arithmetic, peak_memory_bytes
from finetune.hardware.failures import is_out_of_memory
from finetune.hardware.preflight import find_tracker_problems
from finetune.model.tokens import load_tokenizer
from finetune.paths import Paths
from finetune.processes.signals import StopRequest
from finetune.train.checkpoints import Checkpoints, clear_others, read_progress
from finetune.train.fingerprint import find_run
from finetune.train.health import smaller_micro_batch, warn_of_smaller_batch
from finetune.train.memory_check import MemoryShortageError, forget_peak
from finetune.train.publish import publish
from finetune.train.setup import build_model, build_trainer, check_rows, process_device

if TYPE_CHECKING:
    from finetune.train.trainer import Trainer


def train(params: TrainParams, paths: Paths, stop: StopRequest, until: int | None = None) -> None:
    """Run one process, the only one or one of several; the first of them publishes.

    With `until`, it stops after that step as if the run ended there. Raises InterruptedRunError if `stop` was
    requested.
    """
    require_trackers(params)
    first = os.environ.get("RANK", "0") == "0"
    store, identity = find_run(params, paths)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(paths.work / "tensorboard" / store.folder.name))
    with pipeline_lock(paths.work / "train.lock", "train") if first else nullcontext():  # an orphan keeps it too
        if first:
            clear_others(paths.checkpoints, store.folder.name)
            if params.model.attention == "auto":
                say(f"attention: {identity['attention']}")
        tokenizer = load_tokenizer(params.model)
        trainer, measured = fit(params, paths, store, tokenizer, stop, until)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.shards_state else None
        if first:
            publish(trainer, tokenizer, state, identity, measured, paths)
            store.finish()
    if first and stop.by:
        raise InterruptedRunError(
            "", "train is done", f"{stop.by} stopped the following steps; run the same command again to resume there"
        )


def require_trackers(params: TrainParams) -> None:
    """Raise ConfigError if a configured tracker is not installed, before hours of training."""
    missing = list(find_tracker_problems(params.train))
    if missing:
        raise ConfigError.of(missing)


def fit(
    params: TrainParams, paths: Paths, store: Checkpoints, tokenizer: Any, stop: StopRequest, until: int | None
) -> "tuple[Trainer, dict[str, Any]]":
    """Run the training loop; return the trainer and the measurements: seconds, steps/s, peak memory.

    If memory runs out, it restarts from the newest checkpoint with a smaller micro-batch.
    """
    tokens = read_manifest(paths.validated)["tokens"]
    started, first, trainer = time.perf_counter(), None, None
    while True:
        params, resumed = choose_checkpoint(params, store)
        first = step_of(resumed) if first is None else first
        trainer = build_trainer(
            params, paths, build_model(params, process_device(params), paths), tokenizer, store, stop
        )
        begin(trainer, params, resumed, until, tokens)
        try:
            with telling(trainer):
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            break
        except MemoryShortageError:
            pass  # outside this clause, its memory is released
        trainer = None
        params = smaller_micro_batch(params)
        warn_of_smaller_batch(params)
        forget_peak(params.environment)
    seconds = time.perf_counter() - started
    return trainer, {
        "wall_seconds": round(seconds, 3),
        "steps_per_second": round((trainer.state.global_step - first) / seconds, 4),
        "peak_memory_bytes": peak_memory_bytes(params.environment),
        "resumed_from_step": first,
    }


def choose_checkpoint(params: TrainParams, store: Checkpoints) -> tuple[TrainParams, Path | None]:
    """Return the checkpoint to resume from, or None, and the config with the micro-batch that fitted there.

    With several processes, the parent has set bad checkpoints aside, and all agree on the newest remaining one.
    """
    steps = store.steps()
    resumed = (store.newest() if "RANK" not in os.environ else store.path(steps[0])) if steps else None
    if resumed:
        say(f"resumes from {resumed}")
        warn_of_other_arithmetic(read_manifest(resumed), params.environment)
        while params.train.per_device_train_batch_size > read_progress(resumed).micro_batch:
            params = smaller_micro_batch(params)
    return params, resumed


def step_of(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint; 0 for None."""
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def begin(
    trainer: "Trainer", params: TrainParams, resumed: Path | None, until: int | None, tokens: dict[str, Any]
) -> None:
    """Prepare the trainer to start: verify its rows, set its random state, and load the same checkpoint everywhere."""
    from transformers import set_seed

    from finetune.train.callbacks import Steps

    check_rows(trainer, tokens)
    trainer.saved = read_manifest(resumed)["saved"] if resumed else []
    trainer.add_callback(Steps(trainer, resumed, until=until))
    if trainer.args.process_index:  # each process has its own dropout; the adapters start equal
        set_seed(params.seed + trainer.args.process_index)
    step = float(step_of(resumed))
    if float(trainer.sum_of_processes(torch.tensor([step]))[0]) != step * trainer.args.world_size:
        raise MachineError(
            trainer.store.folder,
            f"the processes see different checkpoints (this process: step {step:.0f})",
            "all nodes must see the same folder",
        )


def warn_of_other_arithmetic(checkpoint: dict[str, Any], environment: Environment) -> None:
    """Warn that a checkpoint was written where operations round differently: the run resumes, but not bit for bit."""
    then, now = checkpoint["arithmetic"], arithmetic(environment)
    other = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if now[name] != then.get(name)]
    if other:
        say(
            f"warning: the run resumes on hardware that rounds differently ({'; '.join(other)}); results will "
            "differ in the last bits"
        )


@contextmanager
def telling(trainer: "Trainer") -> Iterator[None]:
    """Close the curves and record for `finetune status` how the run ended, also if it stopped without a checkpoint."""
    from finetune.train.trainer import StoppedInEvaluationError

    ended = "failed"
    try:
        yield
        ended = "finished"
    except (RuntimeError, MemoryError) as error:
        if trainer.args.world_size > 1 or not is_out_of_memory(error):
            raise
        raise MemoryShortageError from None
    except StoppedInEvaluationError:
        ended = "interrupted"
        kept = trainer.store.what_is_kept()
        raise InterruptedRunError(
            "", f"train was stopped by {trainer.stop.by}", f"{kept}; run the same command again to resume"
        ) from None
    except InterruptedRunError:
        ended = "interrupted"
        raise
    finally:
        if trainer.curves:
            trainer.curves.close(trainer.state, ended)
