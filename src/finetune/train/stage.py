"""The train stage: `data/validated` and the base -> `out/adapter`, `reports/train.json` and the curves."""

import shutil
import time
from pathlib import Path
from typing import Any

from finetune.artifacts import publish_directory, read_manifest, write_json, write_manifest
from finetune.config import Config, Environment
from finetune.console import say
from finetune.errors import DataError, MachineError
from finetune.machine import describe_machine, peak_memory_bytes, require_device, versions
from finetune.model.adapter import add_adapter, count_parameters, keep_float32, save_adapter
from finetune.model.base import identify_base, load_base
from finetune.model.tokens import IGNORED, load_tokenizer
from finetune.paths import Paths

DETERMINES_ADAPTER = {"environment", "seed", "model", "adapter", "train"}
TIERS: dict[Environment, str] = {"cpu": "bitwise", "cuda": "same-device", "apple": "statistical"}


def run(config: Config, paths: Paths) -> None:
    """Train on what validate wrote, from the newest good checkpoint if there is one, and publish the best adapter."""
    device = require_device(config.environment)
    require_one_device(config)
    validated = read_manifest(paths.validated)
    base = identify_base(config.model)
    if validated["max_length"] != config.train.max_length:
        raise DataError(f"{paths.validated}: was cut at another train.max_length; run validate again (dvc repro)")
    if validated["packing"] != config.train.packing:
        raise DataError(f"{paths.validated}: was packed as train.packing was then; run validate again (dvc repro)")
    if validated["base"] != base:
        raise DataError(f"{paths.validated}: was made for another base; run validate again (dvc repro -f validate)")

    from finetune.train.checkpoints import fingerprint

    data_sha256 = {name: file["sha256"] for name, file in validated["files"].items()}
    run_id = fingerprint(config, data_sha256, base)
    checkpoints = paths.work / "checkpoints" / run_id[:16]
    tokenizer = load_tokenizer(config.model)
    model = build_model(config, device)
    trainer = build_trainer(config, paths, model, tokenizer, checkpoints)
    check_rows(trainer, validated["tokens"])

    measured = fit(trainer, config, checkpoints)
    results = summarize(trainer, model)
    with publish_directory(paths.adapter) as folder:
        adapter_sha256 = save_adapter(model, base["name"], folder)
        tokenizer.save_pretrained(folder)
        write_manifest(
            folder,
            {
                "adapter_sha256": adapter_sha256,
                "fingerprint": run_id,
                "tier": TIERS[config.environment],
                "base": base,
                "data_sha256": data_sha256,
                "prepared_sha256": validated["prepared_sha256"],
                "params": config.model_dump(mode="json", include=DETERMINES_ADAPTER),
                "versions": versions(),
            },
        )
    write_json(paths.reports / "train_cost.json", {**measured, "machine": describe_machine(config.environment)})
    write_json(
        paths.reports / "train.json",
        {"adapter_sha256": adapter_sha256, "fingerprint": run_id, "tier": TIERS[config.environment], **results},
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    show(results, measured, adapter_sha256)


def require_one_device(config: Config) -> None:
    """MachineError where the recipe is for several devices or a strategy, which would be ignored here."""
    devices, strategy = config.train.distributed.devices, config.train.distributed.strategy
    if devices > 1 or strategy != "none":
        accumulation = config.train.gradient_accumulation_steps * devices
        raise MachineError(
            f"params.yaml: train.distributed: {strategy} on {devices} devices is planned and rehearsed, but this "
            "version trains on one device without a strategy; set devices: 1, strategy: none and "
            f"train.gradient_accumulation_steps: {accumulation}, which keeps the effective batch size"
        )


def build_model(config: Config, device: str) -> Any:
    """The base with a fresh adapter, the same for the same seed."""
    import torch
    from transformers import set_seed

    set_seed(config.seed, deterministic=config.train.deterministic)
    # Deterministic mode also overwrites fresh memory, which no operation here reads: a third of the time on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return add_adapter(load_base(config.model, device), config.adapter)


def build_trainer(config: Config, paths: Paths, model: Any, tokenizer: Any, checkpoints: Path) -> Any:
    """The trainer over the validated data, with curves, sealed checkpoints and early stopping where asked."""
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback

    from finetune.train.checkpoints import SealCheckpoints
    from finetune.train.curves import CurvesCallback
    from finetune.train.trainer import Trainer, WatchSupervision, score_supervised_positions, sft_config

    score_supervised_positions()
    callbacks: list[Any] = [SealCheckpoints(), CurvesCallback(paths.reports)]
    if config.train.early_stopping_patience is not None:
        callbacks.append(
            EarlyStoppingCallback(config.train.early_stopping_patience, config.train.early_stopping_threshold)
        )
    trainer = Trainer(
        model=model,
        args=sft_config(config, checkpoints),
        train_dataset=Dataset.from_file(str(paths.validated / "train.arrow")),
        eval_dataset=Dataset.from_file(str(paths.validated / "validation.arrow")),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(WatchSupervision(trainer))
    keep_float32(model)  # TRL has just cast the adapter of a quantized base to bfloat16
    return trainer


def check_rows(trainer: Any, tokens: dict[str, dict[str, int]]) -> None:
    """DataError unless the trainer holds exactly the tokens that validate counted."""
    for name, dataset in (("train", trainer.train_dataset), ("validation", trainer.eval_dataset)):
        supervised = sum(label != IGNORED for labels in dataset["labels"] for label in labels)
        counted = tokens[name]["supervised_tokens"]
        if supervised != counted or len(dataset) != tokens[name]["rows"]:
            raise DataError(
                f"data/validated/{name}.arrow: holds {supervised} supervised tokens in {len(dataset)} rows, but "
                f"validate counted {counted} in {tokens[name]['rows']}; run validate again"
            )


def fit(trainer: Any, config: Config, checkpoints: Path) -> dict[str, Any]:
    """Run the training loop; gives what was measured: seconds, tokens a second, peak memory."""
    from finetune.train.checkpoints import newest_checkpoint

    resume = newest_checkpoint(checkpoints)
    if resume:
        say(f"goes on from {resume}")
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.perf_counter() - started
    first = int(resume.name.rsplit("-", 1)[1]) if resume else 0
    return {
        "wall_seconds": round(seconds, 3),
        "steps_per_second": round((trainer.state.global_step - first) / seconds, 4),
        "peak_memory_bytes": peak_memory_bytes(config.environment),
        "resumed_from_step": first,
    }


def summarize(trainer: Any, model: Any) -> dict[str, Any]:
    """What came out, the same for every repetition: steps, losses, the checkpoint that was kept."""
    from finetune.train.curves import TRAINING, VALIDATION, curve_rows

    state = trainer.state
    training, validation = (curve_rows(state.log_history, columns) for columns in (TRAINING, VALIDATION))
    last = validation[-1]["validation_loss"]
    best = state.best_metric if trainer.args.load_best_model_at_end else last
    return {
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "kept_step": (state.best_global_step if trainer.args.load_best_model_at_end else None) or state.global_step,
        "validation_loss": best,
        "last_validation_loss": last,
        "train_loss": training[-1]["loss"],
        "parameters": count_parameters(model),
    }


def show(results: dict[str, Any], measured: dict[str, Any], adapter_sha256: str) -> None:
    """A few lines for the person who watches."""
    trainable, total = results["parameters"]["trainable"], results["parameters"]["total"]
    seconds, kept = measured["wall_seconds"], results["kept_step"]
    say(
        f"{results['steps']} steps of {trainable:,} parameters ({trainable / total:.1%}) in {seconds:.0f} s; "
        f"validation loss {results['validation_loss']:.4f} at step {kept}, which was kept"
    )
    say(f"adapter {adapter_sha256[:16]} in out/adapter; curves in reports/*.tsv (dvc plots show)")
