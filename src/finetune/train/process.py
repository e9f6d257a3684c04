"""One process of the run, the only one or one of several: it trains, and the first of them publishes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from finetune.artifacts import pipeline_lock, read_manifest
from finetune.config import Config
from finetune.config_model import Environment
from finetune.console import say
from finetune.errors import ConfigError, DataError, InterruptedRunError, MachineError
from finetune.machine import (
    TRACKERS,
    arithmetic,
    is_out_of_memory,
    peak_memory_bytes,
    require_device,
    versions,
)
from finetune.model.adapter import add_adapter, keep_float32
from finetune.model.base import attention_used, identify_base, load_base
from finetune.model.tokens import load_tokenizer
from finetune.paths import Paths
from finetune.train.checkpoints import DETERMINES

TIERS: dict[Environment, str] = {"cpu": "bitwise", "cuda": "same-device", "apple": "statistical"}


def find_run(config: Config, paths: Paths) -> tuple[Any, dict[str, Any]]:
    """Where the run's checkpoints lie, and what its adapter's manifest says of it; DataError where validate's data are
    not those of these params."""
    from finetune.train.checkpoints import Checkpoints, fingerprint

    validated, base = read_manifest(paths.validated), identify_base(config.model)
    if validated["max_length"] != config.train.max_length:
        raise DataError(f"{paths.validated}: was cut at another train.max_length; run validate again (dvc repro)")
    if validated["packing"] != config.train.packing:
        raise DataError(f"{paths.validated}: was packed as train.packing was then; run validate again (dvc repro)")
    if validated["base"] != base:
        raise DataError(f"{paths.validated}: was made for another base; run validate again (dvc repro -f validate)")
    attention = attention_used(config.model, config.environment)
    data_sha256 = {name: file["sha256"] for name, file in validated["files"].items()}
    identity = {
        "fingerprint": fingerprint(config, data_sha256, base, attention),
        "tier": TIERS[config.environment] if config.train.deterministic else "statistical",
        "attention": attention,
        "base": base,
        "data_sha256": data_sha256,
        "prepared_sha256": validated["prepared_sha256"],
        "params": config.model_dump(mode="json", include=DETERMINES),
        "versions": versions(),
    }
    store = Checkpoints(paths.checkpoints / identity["fingerprint"][:16], config.train.save_total_limit)
    return store, identity


def train(config: Config, paths: Paths, stop: Any, until: int | None = None) -> None:
    """One process of the run, the only one or one of several; the first of them publishes.

    With `until` it stops after that step as if the run ended there. InterruptedRunError when `stop` was asked.
    """
    from finetune.train.checkpoints import clear_others
    from finetune.train.publish import publish

    require_trackers(config)
    first = os.environ.get("RANK", "0") == "0"
    store, identity = find_run(config, paths)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(paths.work / "tensorboard" / store.folder.name))
    with pipeline_lock(paths.work / "train.lock", "train") if first else nullcontext():  # an orphan keeps it, too
        if first:
            clear_others(paths.checkpoints, store.folder.name)
            if config.model.attention == "auto":
                say(f"attention: {identity['attention']}")
        tokenizer = load_tokenizer(config.model)
        trainer, measured = fit(config, paths, store, tokenizer, stop, until)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.shards_state else None
        if first:
            publish(trainer, tokenizer, state, identity, measured, paths)
            store.finish()
    if first and stop.by:
        raise InterruptedRunError(
            f"train is done; {stop.by} stopped what comes after it, the same command goes on there"
        )


def require_trackers(config: Config) -> None:
    """ConfigError where a tracker that was asked for is not installed: a run of hours must not end in its import."""
    from importlib.util import find_spec

    asked = config.train.report_to
    missing = [name for name in asked if not any(find_spec(module) for module in TRACKERS[name])]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(
            f"params.yaml: train.report_to: {names} is not installed here; "
            f"pip install {' '.join(missing)}, or report_to: []"
        )


def process_device(config: Config) -> str:
    """The torch device that this process loads the base to: of several on CUDA, the one of its own number.

    Strategies that shard the base take it from the host's memory, where it is whole in every process.
    """
    device = require_device(config.environment)
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    shards = config.train.distributed.strategy in ("fsdp", "zero3")
    return "cpu" if shards else f"cuda:{os.environ['LOCAL_RANK']}"


def build_model(config: Config, device: str) -> Any:
    """The base with a fresh adapter, the same for the same seed."""
    import torch
    from transformers import set_seed

    set_seed(config.seed)
    # Metal has no deterministic form of some operations: there it is a warning, and the tier promises no bits.
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=config.environment == "apple")
    # Deterministic mode also overwrites fresh memory, which no operation here reads: a third of the time on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return add_adapter(load_base(config.model, device), config.adapter)


def fit(
    config: Config, paths: Paths, store: Any, tokenizer: Any, stop: Any, until: int | None
) -> tuple[Any, dict[str, Any]]:
    """Run the training loop; gives the trainer and what was measured: seconds, steps a second, peak memory.

    Where memory runs out it begins again from the newest checkpoint with a smaller micro-batch.
    """
    from finetune.train.guards import smaller_micro_batch, tell_of_smaller
    from finetune.train.probe import MemoryShortageError, forget_peak

    tokens = read_manifest(paths.validated)["tokens"]
    started, first, trainer = time.perf_counter(), None, None
    while True:
        config, resumed = choose_checkpoint(config, store)
        first = step_of(resumed) if first is None else first
        trainer = build_trainer(config, paths, build_model(config, process_device(config)), tokenizer, store, stop)
        begin(trainer, config, resumed, until, tokens)
        try:
            with telling(trainer):
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            break
        except MemoryShortageError:
            pass  # outside this clause nothing holds what it held
        trainer = None
        config = smaller_micro_batch(config)
        tell_of_smaller(config)
        forget_peak(config.environment)
    seconds = time.perf_counter() - started
    return trainer, {
        "wall_seconds": round(seconds, 3),
        "steps_per_second": round((trainer.state.global_step - first) / seconds, 4),
        "peak_memory_bytes": peak_memory_bytes(config.environment),
        "resumed_from_step": first,
    }


def choose_checkpoint(config: Config, store: Any) -> tuple[Config, Path | None]:
    """The checkpoint to go on from, or None; and the config with the micro-batch that memory allowed there.

    Of several processes the one that started them has set bad ones aside, and they agree on the newest that is left.
    """
    from finetune.train.checkpoints import read_progress
    from finetune.train.guards import smaller_micro_batch

    steps = store.steps()
    resumed = (store.newest() if "RANK" not in os.environ else store.path(steps[0])) if steps else None
    if resumed:
        say(f"goes on from {resumed}")
        warn_of_other_arithmetic(read_manifest(resumed), config.environment)
        while config.train.per_device_train_batch_size > read_progress(resumed).micro_batch:
            config = smaller_micro_batch(config)
    return config, resumed


def step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint was written at; 0 for none."""
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def begin(trainer: Any, config: Config, resumed: Path | None, until: int | None, tokens: dict[str, Any]) -> None:
    """What must be right before the trainer is let go: its rows, its random state, and one checkpoint for all."""
    from transformers import set_seed

    from finetune.train.trainer import Steps

    check_rows(trainer, tokens)
    trainer.saved = read_manifest(resumed)["saved"] if resumed else []
    trainer.add_callback(Steps(trainer, resumed, until=until))
    if trainer.args.process_index:  # each process drops out its own; the adapters began alike
        set_seed(config.seed + trainer.args.process_index)
    step = float(step_of(resumed))
    if float(trainer.sum_of_processes(torch_scalar(step))[0]) != step * trainer.args.world_size:
        raise MachineError(
            f"{trainer.store.folder}: the processes see different checkpoints (this one: step {step:.0f}); all "
            "nodes must see the same folder"
        )


def torch_scalar(value: float) -> Any:
    """A tensor of one number, shape (1,)."""
    import torch

    return torch.tensor([value])


def warn_of_other_arithmetic(checkpoint: dict[str, Any], environment: Environment) -> None:
    """Say that a checkpoint comes from where the same operations round otherwise: the run goes on, its bits do not."""
    then, now = checkpoint["arithmetic"], arithmetic(environment)
    other = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if now[name] != then.get(name)]
    if other:
        say(f"warning: the run goes on where numbers round otherwise ({'; '.join(other)}); the last bits will differ")


@contextmanager
def telling(trainer: Any) -> Iterator[None]:
    """Close the curves and tell `make status` how the run ended; a stop without a checkpoint of its own says so."""
    from finetune.train.probe import MemoryShortageError
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
        raise InterruptedRunError(f"train was stopped by {trainer.stop.by}; {kept}, the same command goes on") from None
    except InterruptedRunError:
        ended = "interrupted"
        raise
    finally:
        if trainer.curves:
            trainer.curves.close(trainer.state, ended)


def build_trainer(
    config: Config,
    paths: Paths,
    model: Any,
    tokenizer: Any,
    store: Any,
    stop: Any,
) -> Any:
    """The trainer over the validated data, with curves, checkpoints and early stopping where asked."""
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback

    from finetune.train.arguments import sft_config
    from finetune.train.batches import with_blank
    from finetune.train.curves import CurvesCallback
    from finetune.train.trainer import Trainer, score_supervised_positions

    score_supervised_positions()
    arguments = sft_config(config, store.folder)
    rows = [Dataset.from_file(str(paths.validated / f"{split}.arrow")) for split in ("train", "validation")]
    if arguments.world_size > 1:
        rows = [with_blank(split) for split in rows]
    trainer = Trainer(
        store=store,
        stop=stop,
        model=model,
        args=arguments,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.curves = CurvesCallback(paths)
        trainer.add_callback(trainer.curves)
    if config.train.early_stopping_patience is not None:
        patience, threshold = config.train.early_stopping_patience, config.train.early_stopping_threshold
        trainer.early_stopping = EarlyStoppingCallback(patience, threshold)
        trainer.add_callback(trainer.early_stopping)
    keep_float32(model)  # TRL has just cast the adapter of a quantized base to bfloat16
    return trainer


def check_rows(trainer: Any, tokens: dict[str, dict[str, int]]) -> None:
    """DataError unless the trainer holds exactly the tokens that validate counted."""
    from finetune.train.batches import count_supervised

    blanks = int(trainer.args.world_size > 1)
    for name, dataset in (("train", trainer.train_dataset), ("validation", trainer.eval_dataset)):
        supervised, rows = int(count_supervised(dataset).sum()), len(dataset) - blanks
        if supervised != tokens[name]["supervised_tokens"] or rows != tokens[name]["rows"]:
            raise DataError(
                f"data/validated/{name}.arrow: holds {supervised} supervised tokens in {rows} rows, but validate "
                f"counted {tokens[name]['supervised_tokens']} in {tokens[name]['rows']}; run validate again"
            )
