"""`finetune rehearse`: run every stage of the recipe on a shrunken base model and report what that proved."""

import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetune.commands.rehearse import proofs
from finetune.commands.rehearse.processes import Processes, Proof
from finetune.commands.rehearse.workspace import EVENT_STEPS, KILLED_AT, prepare_folder
from finetune.config.data import PrepareParams
from finetune.config.params import Config
from finetune.config.recipes import read_recipe
from finetune.config.types import SPLITS
from finetune.console import markdown_table, say, table
from finetune.errors import ConfigError
from finetune.files.atomic import write_lines
from finetune.files.run_lock import pipeline_lock
from finetune.paths import Paths
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport
from finetune.reports.train import TrainCostReport, TrainReport
from finetune.validate.findings import format_finding
from finetune.validate.preview import Preview, find_stale_rows, look_ahead

NOT_HERE = {
    "cuda": "speed and memory on the GPU, and its kernels (flash attention, 8-bit and fused optimizers)",
    "apple": "speed and memory on the Mac, and whether MPS supports every operation",
    "cpu": "speed and memory at full size",
}


def run(root: Path, recipe: str | None) -> list[dict[str, Any]]:
    """Rehearse a recipe (or params.yaml); return the proofs. Raise ConfigError if one did not hold."""
    started = time.perf_counter()
    real = read_recipe(recipe, root)
    folder = root / "work/rehearsal" / real.recipe
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    processes = Processes(folder)  # imports the libraries of the stages in the background
    say(f"rehearsing {real.recipe} in {folder}")
    prepare_rows(real, root)
    preview = look_ahead(real, root)
    changes, own_tokenizer = fill_folder(real, root, Paths(folder))
    held = prove_all(real, preview, Paths(folder), processes)
    report(real, preview, changes, held, own_tokenizer, folder, time.perf_counter() - started)
    failed = [proof for proof in held if not proof.held]
    if failed:
        lines = "\n".join(f"{proof.what}: {proof.seen}" for proof in failed)
        raise ConfigError(f"rehearsal of {real.recipe}", f"{len(failed)} of {len(held)} checks failed\n{lines}")
    return [asdict(proof) for proof in held]


def prepare_rows(real: Config, root: Path) -> None:
    """Prepare the recipe's own rows, or reuse the prepared ones if nothing has changed since.

    Raises ConfigError if a stage is running in this folder, which may be writing these rows.
    """
    paths = Paths(root)
    files = [paths.reports / "prepare.json", *(paths.prepared / f"{name}.jsonl" for name in SPLITS)]
    if all(path.is_file() for path in files):
        other = find_stale_rows(real, root)
        if other is None:
            return
        say(f"data/prepared was made {other}: it is rebuilt, as dvc repro prepare would")
    from finetune.prepare import stage

    with pipeline_lock(paths.work / "pipeline.lock", "prepare"):
        stage.run(PrepareParams.select_from(real), paths)


def fill_folder(real: Config, root: Path, paths: Paths) -> tuple[list[str], bool]:
    """Write the small base model and the sample into the rehearsal's folder.

    Returns the list of changes, and whether the base model's own tokenizer was available.
    """
    from finetune.model.base_config import find_base_config
    from finetune.model.shrink import build_small_base, rehearsal_tokenizer

    tokenizer, own = rehearsal_tokenizer(real.model, root)
    build_small_base(find_base_config(real.model, root), tokenizer, paths.root / "base", real.seed)
    return prepare_folder(real, root, paths, tokenizer), own


def prove_all(real: Config, preview: Preview, paths: Paths, processes: Processes) -> list[Proof]:
    """Run all proofs in the order of the stages. A failing stage ends the list, because the later ones depend on it."""
    held = [prove_schedule(real, preview), prove_stages(processes, "validate")]
    if not held[-1].held:
        return held
    held.append(processes.prove("the loss mask covers the answers and their end tokens", proofs.decode_mask))
    if real.train.packing:
        held.append(processes.prove("packed rows are isolated", proofs.check_packing))
    held.append(prove_resume(paths, processes))
    if not held[-1].held:
        return held
    held.append(processes.prove("every target module is found and trained", proofs.check_adapter))
    held.append(processes.prove("the adapter loads in plain PEFT", proofs.load_in_plain_peft))
    ended = prove_stages(processes, "evaluate", "decide")
    if ended.held:
        verdict = read_report(paths.reports / "decision.json", DecisionReport).verdict
        ended = replace(ended, seen=f"verdict {verdict} (for a random base, so it does not predict the real one)")
    return [*held, ended]


def prove_stages(processes: Processes, *names: str) -> Proof:
    """Run stages to their end."""
    code = processes.stages(names)
    what = f"{' and '.join(names)} complete{'s' if len(names) == 1 else ''}"
    return Proof(what, "done" if code == 0 else processes.last_words(), held=code == 0)


def prove_schedule(real: Config, preview: Preview) -> Proof:
    """Simulate the complete real schedule step by step."""
    plan = preview.outlook.schedule
    seen = proofs.replay_schedule(real.train, plan)
    counts = [seen[name] for name in ("logs", "evaluations", "saves")]
    as_planned = counts == [plan.logs, plan.evaluations, plan.saves] and min(counts) > 0
    reached = math.isclose(seen["peak_learning_rate"], real.train.learning_rate, rel_tol=1e-6)
    text = (
        f"{seen['steps']} steps replayed: the learning rate peaks at {seen['peak_learning_rate']:g}, "
        f"{seen['logs']} logs, {seen['evaluations']} evaluations, {seen['saves']} saves"
    )
    what = "the learning rate reaches its peak; logs, evaluations and saves happen as planned"
    return Proof(what, text, held=as_planned and reached)


def prove_resume(paths: Paths, processes: Processes) -> Proof:
    """Train without interruption, then train again with a kill and a restart; compare the adapters."""
    what = "a killed and resumed run gives the same adapter"
    if processes.stages(["train"]):
        return Proof("train completes", processes.last_words(), held=False)
    whole = read_report(paths.reports / "train.json", TrainReport).adapter_sha256
    paths.adapter.rename(paths.root / "out/whole")
    shutil.rmtree(paths.checkpoints)  # of the finished run; otherwise the next one would only publish
    killed = processes.stages(["train"], kill_at=KILLED_AT)
    if killed >= 0:
        return Proof(what, f"the run ended with code {killed} before step {KILLED_AT}", held=False)
    if processes.stages(["train"]):
        return Proof(what, processes.last_words(), held=False)
    resumed = read_report(paths.reports / "train.json", TrainReport).adapter_sha256
    start = read_report(paths.reports / "train_cost.json", TrainCostReport).resumed_from_step
    text = f"killed at step {KILLED_AT}, resumed from {start}: {whole[:12]} and {resumed[:12]}"
    return Proof(what, text, held=whole == resumed and start == EVENT_STEPS)


def report(
    real: Config,
    preview: Preview,
    changes: list[str],
    held: list[Proof],
    own_tokenizer: bool,
    folder: Path,
    seconds: float,
) -> None:
    """Print what held, what was changed and what only the real machine can show; write the same as Markdown."""
    unproven = [NOT_HERE[real.environment], "the quality of the real base"]
    if not own_tokenizer:
        unproven.append("the tokenizer of the base: lengths and special tokens are those of the embedded tokenizer")
    if real.train.distributed.devices > 1:
        unproven.append(f"that {real.train.distributed.devices} devices together take the same step as one")
    rows = [["held" if proof.held else "failed", proof.what, proof.seen] for proof in held]
    table(f"rehearsal of {real.recipe} ({seconds:.0f} s)", ["", "proof", "seen"], rows)
    for line in unproven:
        say(f"  not covered: {line}")
    ahead = [finding for finding in preview.findings if finding.severity != "note"]
    for finding in ahead:
        say(f"  before the real run: {finding.severity}: {format_finding(finding)}")
    path = folder / "report.md"
    write_lines(path, [to_markdown(real, held, changes, unproven, ahead)])
    say(f"report {path}")


def to_markdown(real: Config, held: list[Proof], changes: list[str], unproven: list[str], ahead: list[Any]) -> str:
    """Format the report of a rehearsal as Markdown."""
    rows = [["held" if proof.held else "**failed**", proof.what, proof.seen.replace("\n", " ⏎ ")] for proof in held]
    lines = [f"# Rehearsal of {real.recipe}", "", "## Results", "", *markdown_table(["", "proof", "seen"], rows)]
    lines += ["", "## Changes made for the rehearsal", "", *(f"- {change}" for change in changes)]
    lines += ["", "## Not covered: only the real machine can show", "", *(f"- {line}" for line in unproven)]
    if ahead:
        lines += [
            "",
            "## Before the real run",
            "",
            *(f"- {finding.severity}: {format_finding(finding)}" for finding in ahead),
        ]
    return "\n".join(lines) + "\n"
