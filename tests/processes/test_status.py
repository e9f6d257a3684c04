"""The status of the current run and the end of the last one: checked against processes, and with the next command."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from finetune.paths import Paths
from finetune.processes.status import SILENT, describe_progress, how_it_ended
from tests.processes.test_detach import STAGE, finetune, folder, hold

__all__ = ["folder"]  # the fixture

TOLD: dict[str, Any] = {"stage": "train", "pid": 1, "step": 40, "steps": 450, "loss": None, "validation_loss": 2.0}
TOLD |= {"tokens_per_second": None, "memory_bytes": None, "seconds_left": 59.0, "updated": 1000.0, "ended": None}


def test_stale_status_is_reported() -> None:
    """Only the age of its last status distinguishes a hanging run from a running one."""
    fresh, old = describe_progress(TOLD, 1000 + SILENT), describe_progress(TOLD, 1001 + SILENT)
    assert fresh == ["step 40 of 450 (9%), validation loss 2.0000, about 59 s left", "updated 3 min ago"]
    assert old[1].startswith("updated 3 min ago: it is evaluating, saving, or stuck;")


def test_the_status_of_an_earlier_run_is_ignored(folder: Path) -> None:
    """Otherwise the step of an earlier run would be shown while the current one still loads its model."""
    (folder / "work/status.json").write_text(json.dumps(TOLD), encoding="utf-8")
    (folder / "stage.py").write_text(STAGE.replace("tell(7)", "pass"), encoding="utf-8")
    hold(folder, "-m", "finetune", "train", "5")
    assert finetune(folder, "status").stdout.splitlines()[1:] == ["loading the model; no training step yet"]


RESUME = "no checkpoint has been written yet; run the same command again to resume"


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        ("interrupted", f"train stopped at step 40 of 450; {RESUME}"),
        (None, f"train was killed at step 40 of 450; {RESUME}"),
        (
            "failed",
            "train failed at step 40 of 450; fix the cause shown in its output, then run the same command "
            "again to resume",
        ),
        (
            "finished",
            "train finished at step 40 of 450, but the stages after it did not; run the same command again to resume",
        ),
    ],
)
def test_every_end_of_a_training_is_reported(tmp_path: Path, ended: str | None, text: str) -> None:
    """The status says whether to start the run again or to fix something first."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work/status.json").write_text(json.dumps(TOLD | {"ended": ended}), encoding="utf-8")
    assert how_it_ended(Paths(tmp_path)) == [text]


def test_a_verdict_newer_than_the_training_ends_the_run(tmp_path: Path) -> None:
    """A verdict newer than the training ends the run; an older one does not."""
    (tmp_path / "work").mkdir()
    (tmp_path / "reports").mkdir()
    decision = tmp_path / "reports/decision.json"
    decision.write_text(json.dumps({"verdict": "iterate", "sentence": "Too little evidence."}), encoding="utf-8")
    (tmp_path / "work/status.json").write_text(json.dumps(TOLD | {"ended": "finished"}), encoding="utf-8")
    assert how_it_ended(Paths(tmp_path)) == ["the verdict is iterate: Too little evidence."]
    os.utime(decision, (900, 900))
    assert how_it_ended(Paths(tmp_path))[0].startswith("train finished at step 40")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": "x"}', "null"])
def test_a_broken_status_file_does_not_crash(folder: Path, content: str) -> None:
    """The file may come from another program, or be truncated by a full disk."""
    (folder / "work/status.json").write_text(content, encoding="utf-8")
    (folder / "work/detached.json").write_text(content, encoding="utf-8")
    done = finetune(folder, "status")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1] == "no run has been started here, or its files were cleaned"


def write_detached(folder: Path, end: dict[str, Any] | None, stage: dict[str, Any] | None) -> None:
    """Write the records of a detached start that has ended, and a log that ends with make's output."""
    (folder / "work").mkdir()
    (folder / "work/repro.log").write_text("error: no word of ours\n\nmake: *** wait: No child processes.  Stop.\n")
    detached = {"target": "repro", "pid": 7, "log": "work/repro.log", "started": 50.0, "host": "elsewhere"}
    (folder / "work/detached.json").write_text(json.dumps(detached), encoding="utf-8")
    if end is not None:
        (folder / "work/detached_end.json").write_text(json.dumps({"pid": 7} | end), encoding="utf-8")
    if stage is not None:
        record = {"stage": "evaluate", "problem": None, "at": 60.0} | stage
        (folder / "work/pipeline.record.json").write_text(json.dumps(record), encoding="utf-8")


PROBLEM = {"code": "bad-data", "place": "rows.jsonl:62", "message": "broken JSON", "remedy": ""}
STOPPED, FAILED = {"exit_code": 2, "stopped": True}, {"exit_code": 2, "stopped": False}
LOG_ENDS = ["  error: no word of ours", "  make: *** wait: No child processes.  Stop."]
AGAIN = "run make repro DETACH=1 to resume"


@pytest.mark.parametrize(
    ("end", "stage", "lines"),
    [
        ({"exit_code": 0, "stopped": False}, {"outcome": "done"}, ["finished; it did not reach a verdict"]),
        (STOPPED, None, [f"was stopped between two stages; {AGAIN}"]),
        (STOPPED, {"outcome": "done"}, [f"was stopped between two stages; {AGAIN}"]),
        (
            FAILED,
            {"outcome": "interrupted"},
            [f"was stopped in stage evaluate; completed stages are kept; {AGAIN}"],
        ),
        (
            FAILED,
            {"outcome": "failed", "problem": PROBLEM},
            ["failed: rows.jsonl:62: broken JSON (full log: work/repro.log)"],
        ),
        (FAILED, {"outcome": "failed"}, ["failed: stage evaluate failed (full log: work/repro.log)"]),
        (FAILED, {"outcome": "running"}, ["failed: stage evaluate was killed (full log: work/repro.log)"]),
        (FAILED, {"outcome": "done"}, ["failed with exit code 2; work/repro.log ends with:", *LOG_ENDS]),
        (
            FAILED,
            {"outcome": "failed", "at": 40.0},
            ["failed with exit code 2; work/repro.log ends with:", *LOG_ENDS],
        ),
        (None, {"outcome": "done"}, [f"was killed before it could report why; {AGAIN}"]),
        (STOPPED | {"pid": 8}, None, [f"was killed before it could report why; {AGAIN}"]),
    ],
)
def test_the_end_of_a_detached_start_comes_from_its_records(
    tmp_path: Path, end: dict[str, Any] | None, stage: dict[str, Any] | None, lines: list[str]
) -> None:
    """make's messages differ, so the log is not used. Records of another start are ignored."""
    write_detached(tmp_path, end, stage)
    assert how_it_ended(Paths(tmp_path)) == [f"make repro {lines[0]}", *lines[1:]]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 7}', '{"stage": "train", "problem": 3, "at": "x"}'])
def test_a_broken_record_does_not_crash(tmp_path: Path, content: str) -> None:
    """A full disk may have truncated it."""
    write_detached(tmp_path, None, None)
    for name in ("detached_end", "pipeline.record"):
        (tmp_path / f"work/{name}.json").write_text(content, encoding="utf-8")
    assert how_it_ended(Paths(tmp_path)) == [f"make repro was killed before it could report why; {AGAIN}"]
