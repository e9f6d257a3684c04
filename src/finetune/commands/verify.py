"""`finetune verify`: repeat the finished run in a fresh folder and check that the results are bit-identical.

Reads `out/adapter/manifest.json`, which records the inputs of the run and the hashes of adapter and optimizer at each
checkpoint. The finished run is not modified.
"""

import shutil
from pathlib import Path
from typing import Any

from finetune.config.loading import parse_section
from finetune.config.model import Environment
from finetune.config.train import TrainParams
from finetune.console import say, table
from finetune.errors import ConfigError, DataError, InterruptedRunError
from finetune.files.manifests import read_manifest
from finetune.files.run_lock import pipeline_lock
from finetune.hardware.devices import arithmetic, require_device, set_device_environment
from finetune.paths import Paths
from finetune.reports.base import read_report
from finetune.reports.train import TrainCostReport, TrainReport

HASHES = ("adapter_sha256", "optimizer_sha256")


def run(root: Path, steps: int | None, repeats: int) -> dict[str, Any]:
    """Repeat the run, completely or up to the first checkpoint at or after `steps`. Raise DataError if the bits differ.

    On the tier `statistical` a difference is not an error: the spread of the repetitions is reported. Returns the
    result.
    """
    paths = Paths(root)
    manifest = read_manifest(paths.adapter)
    params = parse_section(manifest["params"], TrainParams, "out/adapter/manifest.json")  # not of params.yaml
    if params.train.distributed.strategy != "none":
        raise ConfigError(
            "verify",
            "supports runs on one device only",
            "for several devices, compare train.json of two runs (dvc metrics diff)",
        )
    set_device_environment(params.environment, 1, deterministic=params.train.deterministic)
    require_device(params.environment)
    require_same_inputs(params, paths, manifest)
    other = other_arithmetic(paths, params.environment)
    if other:
        say(f"warning: rounding may differ from the machine of the original run: {other}")
    until = last_step(manifest["checkpoints"], steps)
    fresh = Paths(paths.work / "verify")
    runs = []
    with pipeline_lock(paths.work / "pipeline.lock", "verify"):
        try:
            for number in range(repeats):
                say(f"repetition {number + 1} of {repeats}")
                runs.append(repeat_and_compare(params, paths, fresh, manifest, until))
        finally:
            shutil.rmtree(fresh.root, ignore_errors=True)
    losses, same = [loss for _, loss in runs if loss is not None], all(equal for equal, _ in runs)
    conclude(manifest["tier"], until, losses, read_report(paths.reports / "train.json", TrainReport), other, same=same)
    return {"same": same, "tier": manifest["tier"], "until_step": until, "validation_losses": losses}


def repeat_and_compare(
    params: TrainParams, paths: Paths, fresh: Paths, manifest: dict[str, Any], until: int | None
) -> tuple[bool, float | None]:
    """Repeat the run once and print its table; return whether it is identical, and a complete run's validation loss."""
    repeated = repeat(params, paths, fresh, until)
    if repeated["micro_batch"] != manifest["micro_batch"]:
        say(
            f"warning: {repeated['micro_batch']} rows fit into memory at once; {manifest['micro_batch']} did in "
            "the original run"
        )
    expected = [saved for saved in manifest["checkpoints"] if until is None or saved["step"] <= until]
    rows, same = compare(expected, repeated["checkpoints"])
    loss = None
    if until is None:
        same &= repeated["adapter_sha256"] == manifest["adapter_sha256"]
        loss = read_report(fresh.reports / "train.json", TrainReport).validation_loss
    table("verify: repeated run against the original", ["step", "adapter", "optimizer"], rows)
    return same, loss


def require_same_inputs(params: TrainParams, paths: Paths, manifest: dict[str, Any]) -> None:
    """Raise DataError, naming the differences, unless data, base, versions and code match the finished run."""
    from finetune.train.fingerprint import find_run

    _, identity = find_run(params, paths)
    if identity["fingerprint"] == manifest["fingerprint"]:
        return
    parts = [name for name in ("data_sha256", "base", "attention", "versions") if identity[name] != manifest[name]]
    detail = "; ".join(f"{name}: {difference(manifest[name], identity[name])}" for name in parts)
    raise DataError(
        paths.adapter,
        f"can't be repeated: its inputs have changed since: {detail or 'the code'}",
        "restore them (git checkout, dvc checkout), or train again",
    )


def difference(before: Any, now: Any) -> str:
    """Describe a difference; mappings are compared entry by entry."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return ", ".join(f"{name} was {str(before.get(name))[:20]}, is {str(now.get(name))[:20]}" for name in names)
    return f"was {before}, is {now}"


def other_arithmetic(paths: Paths, environment: Environment) -> str:
    """Return what may round differently here than in the run; empty if nothing does or nothing was recorded."""
    report = paths.reports / "train_cost.json"
    then = read_report(report, TrainCostReport).machine.arithmetic if report.exists() else None
    return difference(then, arithmetic(environment)) if then else ""


def last_step(checkpoints: list[dict[str, Any]], steps: int | None) -> int | None:
    """Return the step of the first checkpoint at or after `steps`; None for the complete run."""
    known = [saved["step"] for saved in checkpoints]
    if steps is None or not known or steps > known[-2 if len(known) > 1 else -1]:
        return None
    return int(next(step for step in known if step >= steps))


def repeat(params: TrainParams, paths: Paths, fresh: Paths, until: int | None) -> dict[str, Any]:
    """Train in a folder that holds only the validated data; return the new adapter's manifest."""
    from finetune.processes.signals import stop_on_signals
    from finetune.train.run import train

    shutil.rmtree(fresh.root, ignore_errors=True)
    fresh.validated.parent.mkdir(parents=True)
    fresh.validated.symlink_to(paths.validated.resolve())
    with stop_on_signals() as stop:
        try:
            train(params, fresh, stop, until)
        except InterruptedRunError:
            remedy = "the finished run is unchanged; run the same command again to restart"
            raise InterruptedRunError("", f"verify was stopped by {stop.by}", remedy) from None
    return read_manifest(fresh.adapter)


def compare(expected: list[dict[str, Any]], repeated: list[dict[str, Any]]) -> tuple[list[tuple[str, ...]], bool]:
    """Return one row per checkpoint with what is identical in it, and whether all of it is."""
    by_step = {saved["step"]: saved for saved in repeated}
    rows, same = [], True
    for saved in expected:
        again = by_step.get(saved["step"], {})
        equal = [saved[name] == again.get(name) for name in HASHES]
        same &= all(equal)
        rows.append((str(saved["step"]), *("same" if held else "differs" for held in equal)))
    return rows, same


def conclude(tier: str, until: int | None, losses: list[float], report: TrainReport, other: str, *, same: bool) -> None:
    """Print the conclusion. Raise DataError if bits differ that should not. `other` names differences in rounding."""
    scope = "the whole run" if until is None else f"the first {until} steps"
    if same:
        say(f"{scope}: identical bit for bit (tier {tier})")
        return
    spread = [*losses, report.validation_loss] if losses else []
    detail = f"; validation losses range from {min(spread):.6f} to {max(spread):.6f}" if spread else ""
    if tier == "statistical":
        say(f"{scope}: different, as the tier {tier} allows{detail}")
        return
    why = f"the likely cause: {other}" if other else "was the run made on another machine?"
    raise DataError(
        "out/adapter",
        f"{scope}: different, although its tier is {tier}{detail}",
        f"{why} (other GPUs, CPU instructions or thread counts round differently)",
    )
