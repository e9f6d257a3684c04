"""Build what trains from params and validated rows: the device, the base with its adapter, and the trainer."""

import os
from typing import TYPE_CHECKING, Any

import torch

from finetune.config.train import TrainParams
from finetune.errors import DataError
from finetune.hardware.devices import require_device
from finetune.model.adapter import add_adapter, keep_float32
from finetune.model.base import load_base
from finetune.model.start import FILE, load_start
from finetune.paths import Paths
from finetune.processes.signals import StopRequest
from finetune.train.checkpoints import Checkpoints

if TYPE_CHECKING:
    from finetune.train.trainer import Trainer


def process_device(params: TrainParams) -> str:
    """Return the torch device of this process; with several on CUDA, the one with its own index.

    Strategies that shard the base load it from host memory, which holds a complete copy in every process.
    """
    device = require_device(params.environment)
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return "cpu" if params.train.distributed.shards_base else f"cuda:{os.environ['LOCAL_RANK']}"


def build_model(params: TrainParams, device: str, paths: Paths) -> Any:
    """Build the base with a new adapter, which is the same for the same seed, or with the one to continue from."""
    from transformers import set_seed

    set_seed(params.seed)
    # Some operations have no deterministic form on Metal: there it is a warning, and the tier does not promise equal
    # bits.
    torch.use_deterministic_algorithms(params.train.deterministic, warn_only=params.environment == "apple")
    # Deterministic mode also overwrites fresh memory, which no operation here reads; this costs a third of the time on
    # a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = add_adapter(load_base(params.model, device), params.adapter)
    if params.adapter.start is not None:
        load_start(model, paths.validated / FILE)
    return model


def build_trainer(
    params: TrainParams, paths: Paths, model: Any, tokenizer: Any, store: Checkpoints, stop: StopRequest
) -> "Trainer":
    """Build the trainer over the validated data, with curves, checkpoints and early stopping if configured."""
    from datasets import Dataset

    from finetune.train.batches import with_blank
    from finetune.train.sft_config import sft_config
    from finetune.train.trainer import Trainer

    score_supervised_positions()
    arguments = sft_config(params, store.folder)
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
    add_callbacks(trainer, params, paths)
    keep_float32(model)  # TRL has just cast the adapter of a quantized base to bfloat16
    return trainer


def score_supervised_positions() -> None:
    """Make TRL's loss head skip unsupervised positions on every device.

    TRL does so on Triton devices only; elsewhere it projects every position onto the vocabulary, because compilers need
    constant shapes. On a CPU that takes 30% of the time if 5% of the tokens are supervised.
    """
    from trl.trainer import utils

    assert hasattr(utils, "_use_triton"), "this TRL version names its switch differently"
    utils._use_triton = lambda _: True  # in that module this controls nothing else


def add_callbacks(trainer: "Trainer", params: TrainParams, paths: Paths) -> None:
    """Add curves in place of printed logs, in the process that prints, and early stopping if configured."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    from finetune.train.curves import CurvesCallback

    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.curves = CurvesCallback(paths)
        trainer.add_callback(trainer.curves)
    if params.train.early_stopping_patience is not None:
        patience, threshold = params.train.early_stopping_patience, params.train.early_stopping_threshold
        trainer.early_stopping = EarlyStoppingCallback(patience, threshold)
        trainer.add_callback(trainer.early_stopping)


def check_rows(trainer: "Trainer", tokens: dict[str, dict[str, int]]) -> None:
    """Raise DataError unless the trainer holds exactly the tokens that validate counted."""
    from finetune.train.batches import count_supervised

    blanks = int(trainer.args.world_size > 1)
    counted = {"train": trainer.supervised, "validation": count_supervised(trainer.eval_dataset)}
    for name, by_row in counted.items():
        supervised, rows = int(by_row.sum()), len(by_row) - blanks
        if supervised != tokens[name]["supervised_tokens"] or rows != tokens[name]["rows"]:
            raise DataError(
                f"data/validated/{name}.arrow",
                f"has {supervised} supervised tokens in {rows} rows, but validate counted "
                f"{tokens[name]['supervised_tokens']} in {tokens[name]['rows']}",
                "run validate again",
            )
