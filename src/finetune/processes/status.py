"""`finetune status`: show what runs in this folder and its progress, or how the last run ended.

Reads `work/status.json`, which the train stage updates (step, losses, tokens per second, bytes, seconds left, Unix
time), the records of the newest detached start and of its newest stage, and `reports/decision.json`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.console import gigabytes, printable, say
from finetune.files.run_lock import StageRecord, read_record
from finetune.paths import Paths
from finetune.processes.running import Detached, Run, find_run, is_alive, read_detached, read_end, read_object

SILENT = 180.0  # seconds after which a status is reported as stale; a save or an evaluation may take as long
TAIL, LAST_LINES = 20_000, 5  # bytes and lines of a log that are shown


def show(paths: Paths, as_json: bool) -> int:
    """Print, as text or JSON, what runs or how the last run ended; return 0."""
    run = find_run(paths)
    progress = read_progress(paths, run) if run else None
    lines = describe_run(run, progress) if run else ["nothing is running in this folder", *how_it_ended(paths)]
    if not as_json:
        for line in lines:
            say(line)
        return 0
    stage, detached = (run.stage, run.detached) if run else (None, None)
    content = {
        "running": run is not None,
        "stage": stage.name if stage else None,
        "pid": stage.pid if stage else None,
        "target": detached.target if detached else None,
        "log": detached.log if detached else None,
        "progress": progress,
        "silent_seconds": max(0.0, time.time() - progress["updated"]) if progress else None,
        "text": lines,
    }
    print(json.dumps(content, indent=1, ensure_ascii=False))
    return 0


def read_progress(paths: Paths, run: Run) -> dict[str, Any] | None:
    """Return the progress of the running stage; None for another stage, or if the file belongs to an earlier run."""
    progress = read_status(paths)
    if progress is None or run.stage is None or progress.get("stage") != run.stage.name or progress.get("ended"):
        return None
    started = run.stage.process.create_time() if run.stage.process else 0.0
    return progress if progress["updated"] >= started - 1 else None


def read_status(paths: Paths) -> dict[str, Any] | None:
    """Read `work/status.json`; None if it is missing or not a status."""
    progress = read_object(paths.work / "status.json")
    whole = progress is not None and all(
        isinstance(progress.get(key), int | float) for key in ("updated", "step", "steps")
    )
    return progress if whole else None


def describe_run(run: Run, progress: dict[str, Any] | None) -> list[str]:
    """Describe what runs and its progress, in one to three lines."""
    lines = [run.sentence() + (f"; log: {run.detached.log}" if run.detached else "")]
    if run.stage is not None and run.stage.process is None:
        lines.append(f"it can't be stopped from here: {run.stage.why_not}")
    if progress is not None:
        lines += describe_progress(progress, time.time())
    elif run.stage is not None and run.stage.name == "train":
        lines.append("loading the model; no training step yet")
    return lines


def describe_progress(progress: dict[str, Any], now: float) -> list[str]:
    """Describe step, losses, speed, memory and time left; `now` is in Unix seconds."""
    share = progress["step"] / progress["steps"] if progress["steps"] else 0.0
    parts = [f"step {progress['step']} of {progress['steps']} ({share:.0%})"]
    texts: dict[str, Callable[[float], str]] = {
        "loss": "loss {:.4f}".format,
        "validation_loss": "validation loss {:.4f}".format,
        "tokens_per_second": "{:,.0f} tokens/s".format,
        "memory_bytes": lambda size: f"memory {gigabytes(size)}",
        "seconds_left": lambda seconds: f"about {duration(seconds)} left",
    }
    parts += [text(progress[key]) for key, text in texts.items() if progress.get(key) is not None]
    silent = max(0.0, now - progress["updated"])
    lines = [", ".join(parts), f"updated {duration(silent)} ago"]
    if silent > SILENT:
        lines[1] += ": it is evaluating, saving, or stuck; its process is alive, so check the log before you stop it"
    return lines


def duration(seconds: float) -> str:
    """Format a duration for readers."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def how_it_ended(paths: Paths) -> list[str]:
    """Describe the end of the newest run in a sentence: its verdict, the step where it stopped, or why it failed.

    After a failure outside of any stage, of which there is no other record, the last lines of its log follow.
    """
    detached, progress = read_detached(paths), read_status(paths)
    verdict_at = _changed(paths.reports / "decision.json")
    train_at = float(progress["updated"]) if progress else 0.0
    if detached is not None and not is_alive(detached, paths):
        log = paths.root / detached.log
        if _changed(log) >= max(verdict_at, train_at):
            return how_detached_ended(detached, paths, progress)
    if progress is not None and train_at > verdict_at:
        return [how_training_ended(progress, paths)]
    return [verdict(paths) or "no run has been started here, or its files were cleaned"]


def how_detached_ended(detached: Detached, paths: Paths, progress: dict[str, Any] | None) -> list[str]:
    """Describe the end from the records of its exit code and its newest stage, and the step where training stopped."""
    name, again = f"make {detached.target}", f"make {detached.target} DETACH=1"
    end, stage = read_end(detached, paths), read_record(paths.work / "pipeline.lock")
    if stage is not None and stage.at < detached.started:
        stage = None
    if end is not None and end.exit_code == 0:
        return [f"{name} finished; {verdict(paths) or 'it did not reach a verdict'}"]
    if (
        progress is not None
        and progress["updated"] >= detached.started
        and progress.get("ended") in (None, "interrupted")
    ):
        return [how_training_ended(progress, paths, again)]
    if stage is not None and stage.outcome == "interrupted":
        return [f"{name} was stopped in stage {stage.stage}; completed stages are kept; {how_to_resume(again)}"]
    if end is None:
        return [f"{name} was killed before it could report why; {how_to_resume(again)}"]
    if end.stopped:
        return [f"{name} was stopped between two stages; {how_to_resume(again)}"]
    if stage is None or stage.outcome == "done":
        lines = last_lines(paths.root / detached.log)
        return [f"{name} failed with exit code {end.exit_code}; {detached.log} ends with:", *lines]
    return [f"{name} failed: {failure_reason(stage)} (full log: {detached.log})"]


def failure_reason(stage: StageRecord) -> str:
    """Return the problem of a stage that did not finish; one that is still "running" was killed."""
    if stage.problem is not None:
        return printable(str(stage.problem))
    return f"stage {stage.stage} {'was killed' if stage.outcome == 'running' else 'failed'}"


def last_lines(log: Path) -> list[str]:
    """Return the end of a log, unchanged."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [f"  {printable(line)}" for line in lines if line.strip()][-LAST_LINES:]


def how_training_ended(progress: dict[str, Any], paths: Paths, again: str = "") -> str:
    """Return the last step of the training, and how to resume from there."""
    where = f"step {progress['step']} of {progress['steps']}"
    if progress.get("ended") == "finished":
        return f"train finished at {where}, but the stages after it did not; {how_to_resume(again)}"
    if progress.get("ended") == "failed":
        return f"train failed at {where}; fix the cause shown in its output, then {how_to_resume(again)}"
    verb = "stopped" if progress.get("ended") == "interrupted" else "was killed"
    return f"train {verb} at {where}; {what_is_kept(paths)}; {how_to_resume(again)}"


def how_to_resume(again: str) -> str:
    """Return what to do after a stop; `again` is the command, if known."""
    return f"run {again or 'the same command again'} to resume"


def what_is_kept(paths: Paths) -> str:
    """Describe the newest checkpoint of any run."""
    saved = [path for path in paths.checkpoints.glob("*/checkpoint-*") if path.name[11:].isdigit()]
    newest = max(saved, key=_changed, default=None)
    return f"the checkpoint of step {newest.name[11:]} is kept" if newest else "no checkpoint has been written yet"


def verdict(paths: Paths) -> str | None:
    """Return the current verdict, or None."""
    decision = read_object(paths.reports / "decision.json")
    if decision is None or "verdict" not in decision:
        return None
    return f"the verdict is {decision['verdict']}: {decision.get('sentence', '')}"


def _changed(path: Path) -> float:
    """Return when a file was last changed, in Unix seconds; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
