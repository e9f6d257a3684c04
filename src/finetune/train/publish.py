"""Publish a finished run: the adapter's folder, two reports, and a short summary on the terminal."""

from typing import TYPE_CHECKING, Any

from finetune.console import say
from finetune.files.atomic import publish_directory, write_json
from finetune.files.manifests import write_manifest
from finetune.hardware.devices import describe_machine
from finetune.model.adapter import count_parameters, save_adapter
from finetune.paths import Paths
from finetune.reports.train import TrainCostReport, TrainReport

if TYPE_CHECKING:
    from finetune.train.trainer import Trainer


def publish(
    trainer: "Trainer", tokenizer: Any, state: Any, identity: dict[str, Any], measured: dict[str, Any], paths: Paths
) -> None:
    """Write the adapter's folder and the reports, each atomically."""
    results = summarize(trainer)
    batch = {
        "micro_batch": trainer.args.per_device_train_batch_size,
        "accumulation": trainer.args.gradient_accumulation_steps,
    }
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    with publish_directory(paths.adapter) as folder:
        sha256 = save_adapter(model, identity["base"]["name"], folder, state)
        tokenizer.save_pretrained(folder)
        write_manifest(folder, {"adapter_sha256": sha256, **identity, **batch, "checkpoints": trainer.saved})
    cost = TrainCostReport(**measured, machine=describe_machine(identity["params"]["environment"]))
    write_json(paths.reports / "train_cost.json", cost.to_json())
    known = {name: identity[name] for name in ("fingerprint", "tier", "attention", "start")}
    report = TrainReport(adapter_sha256=sha256, **known, **batch, **results)
    write_json(paths.reports / "train.json", report.to_json())
    show(report, cost, paths)


def summarize(trainer: "Trainer") -> dict[str, Any]:
    """Return the reproducible results: steps, losses, the kept checkpoint, and warnings."""
    from finetune.train.curves import TRAINING, VALIDATION, curve_rows
    from finetune.train.health import describe_health

    state = trainer.state
    training, validation = (curve_rows(state.log_history, columns) for columns in (TRAINING, VALIDATION))
    last = validation[-1]["validation_loss"]
    first = validation[0]["validation_loss"] if validation[0]["step"] == 0 else None
    best = state.best_metric if trainer.args.load_best_model_at_end else last
    warnings = describe_health([(int(row["step"]), row["loss"]) for row in training], first, best)
    return {
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "kept_step": (state.best_global_step if trainer.args.load_best_model_at_end else None) or state.global_step,
        "first_validation_loss": first,
        "validation_loss": best,
        "last_validation_loss": last,
        "train_loss": training[-1]["loss"] if training else None,
        "parameters": count_parameters(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)),
        "warnings": warnings,
    }


def show(report: TrainReport, cost: TrainCostReport, paths: Paths) -> None:
    """Print a short summary."""
    trainable, total = report.parameters.trainable or 0, report.parameters.total
    say(
        f"{report.steps} steps in {cost.wall_seconds:.0f} s; {trainable:,} of {total:,} parameters trained "
        f"({trainable / total:.2%}); validation loss {report.first_validation_loss:.4f} before the first step, "
        f"{report.validation_loss:.4f} at step {report.kept_step} (published)"
    )
    for warning in report.warnings:
        say(f"warning: {warning}")
    say(f"adapter {report.adapter_sha256[:16]} in {paths.adapter}; curves in {paths.reports}/*.tsv (dvc plots show)")
