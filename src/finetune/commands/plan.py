"""`finetune plan`: predict what a recipe does and needs, and find mistakes that need neither its data nor its base."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.config.recipes import read_recipe
from finetune.config.train import TrainParams
from finetune.config.validate import ValidateParams
from finetune.console import gigabytes, markdown_table, say, table
from finetune.errors import ConfigError
from finetune.plan.machines import MACHINES
from finetune.plan.outlook import RANKS, RunPlan
from finetune.plan.time import ASSUMED_SHARE, Range, cost, measured_time
from finetune.validate.findings import show_findings
from finetune.validate.preview import Preview, look_ahead

TABLE_ROWS = 15_000  # rows assumed in the table of recipes


def run(
    root: Path,
    recipe: str | None,
    examples: int | None,
    length: int | None,
    price: float | None,
    *,
    probe: bool,
    as_json: bool = False,
) -> int:
    """Print the plan of a recipe (or of params.yaml). Return 0, or 2 if a finding would stop the run."""
    preview = look_ahead(read_recipe(recipe, root), root, examples, length)
    outlook, config = preview.outlook, preview.config
    time = probed_time(config, outlook, root) if probe else outlook.time()
    paid = cost(time, price * config.train.distributed.devices) if time is not None and price is not None else None
    code = ConfigError.exit_code if any(finding.stops for finding in preview.findings) else 0
    if as_json:
        print(json.dumps(as_object(preview, time, paid), indent=1, ensure_ascii=False))
        return code
    say(f"plan of recipe {config.recipe}: {preview.source}")
    for line in outlook.lines():
        say(line)
    show_memory(outlook)
    say(format_time(outlook, time, probed=probe))
    if time is None and price is not None:
        say("cost: unknown, because the time is unknown")
    if paid is not None:
        say(f"cost at {price:g} per device and hour: {paid.least:.2f} to {paid.most:.2f}")
    if preview.findings:
        show_findings(preview.findings)
    else:
        say("no findings")
    return code


def as_object(preview: Preview, time: Range | None, paid: Range | None) -> dict[str, Any]:
    """Return the plan as JSON-compatible values: validate's report with time (seconds), cost and findings."""
    outlook = preview.outlook
    return {
        "recipe": preview.config.recipe,
        "source": preview.source,
        "schedule": outlook.schedule.to_json(),
        "plan": outlook.report().to_json(),
        "seconds": asdict(time) if time else None,
        "cost": asdict(paid) if paid else None,
        "findings": [finding.report().to_json() for finding in preview.findings],
    }


def recipe_table(root: Path) -> list[str]:
    """Return a Markdown table of the recipes, with predictions for TABLE_ROWS rows as long as max_length."""
    head = ["recipe", "base", "machine", "adapter", "length, batch", "schedule", "peak memory", "time"]
    names = sorted(path.stem for path in (root / "recipes").glob("*.yaml"))
    plans = [look_ahead(read_recipe(name, root), root, TABLE_ROWS).outlook for name in names]
    return markdown_table(head, map(table_cells, plans))


def table_cells(outlook: RunPlan) -> list[str]:
    """Return the cells of one recipe."""
    config, train, adapter = outlook.config, outlook.config.train, outlook.config.adapter
    held = config.model.number_format
    devices = f" x {train.distributed.devices}" if train.distributed.devices > 1 else ""
    batch = f"{train.per_device_train_batch_size} x {train.gradient_accumulation_steps}{devices}"
    time = outlook.time()
    names = adapter.target_modules
    modules = names if isinstance(names, str) else ", ".join(name.removesuffix("_proj") for name in names)
    many = outlook.architecture.parameters if outlook.architecture else 0
    size = f", {many / 1e9:.2f} billion" if many >= 1e9 else f", {many / 1e6:.0f} million"
    epochs = "1 epoch" if train.num_train_epochs == 1 else f"{train.num_train_epochs:g} epochs"
    return [
        f"`{config.recipe}`",
        config.model.base.rsplit("/", 1)[-1] + size,
        machine_title(config) + (f", {train.distributed.devices} devices" if devices else ""),
        f"{held}, r {adapter.r}, alpha {adapter.lora_alpha}, dropout {adapter.lora_dropout:g}; {modules}",
        f"{train.max_length}, {batch} = {train.effective_batch_size}",
        f"{epochs}, {train.learning_rate:.1e}, {train.lr_scheduler_type}",
        gigabytes(outlook.memory.peak) if outlook.memory else "unknown",
        time.to_text() if time else "measure with `--probe`",
    ]


def show_memory(outlook: RunPlan) -> None:
    """Print memory by part, memory on other numbers of devices, and settings that would fit."""
    if outlook.memory is None:
        return
    rows = [[part, gigabytes(size)] for part, size in outlook.memory.to_json().items()]
    say(f"memory per device ({machine_title(outlook.config)}):")
    table("", ["part", "predicted"], rows)
    if outlook.config.environment == "cuda":
        several = ", ".join(f"{ranks}: {gigabytes(outlook.by_ranks[ranks])}" for ranks in RANKS)
        say(f"peak by number of devices: {several}")
    batch, length = outlook.what_fits()
    if batch:
        train = outlook.config.train
        say(
            f"largest that fits: micro-batches of {batch} at this length ({outlook.workload.longest_row} "
            "tokens), or rows of "
            f"{length} tokens at micro-batch {train.per_device_train_batch_size}"
        )


def machine_title(config: ValidateParams) -> str:
    """Name the machine that the plan assumes."""
    return MACHINES[config.machine].title if config.machine in MACHINES else "this machine"


def format_time(outlook: RunPlan, time: Range | None, *, probed: bool) -> str:
    """Format the time of training steps and evaluations, with its basis."""
    if time is None:
        machine = machine_title(outlook.config)
        return f"time: unknown for {machine}; run ./finetune plan --probe there to measure it"
    rows = outlook.workload.rows * outlook.config.train.num_train_epochs
    rate = f"{rows / time.most * 60:,.0f} to {rows / time.least * 60:,.0f} rows/min"
    if probed:
        return f"time: {time.to_text()} ({rate}), measured by a probe on this machine"
    return (
        f"time: {time.to_text()} ({rate}), if {ASSUMED_SHARE[0]:.0%} to {ASSUMED_SHARE[1]:.0%} of the data sheet "
        "throughput is reached; short rows reach less (--probe measures it on that machine)"
    )


def probed_time(config: ValidateParams, outlook: RunPlan, root: Path) -> Range | None:
    """Estimate the time with a short probe of this machine: real layers of the architecture with random weights."""
    from finetune.plan.probe import measure_throughput

    if outlook.flops is None:
        return None
    length = round(outlook.workload.tokens / max(outlook.workload.rows, 1))
    measured = measure_throughput(TrainParams.select_from(config), root, length)
    return measured_time(outlook.flops + outlook.evaluation_flops, measured, config.train.distributed.devices)
