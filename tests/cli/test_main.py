"""The command line: one line an error, the right exit code, and a traceback only where it was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli.main import main
from tests.builders.small_run import ROOT, params

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and rows, standing in it."""
    from tests.builders.small_run import rows

    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)), encoding="utf-8")
    Path("params.yaml").write_text(json.dumps(params()), encoding="utf-8")
    return tmp_path


def test_done_is_zero(folder: Path) -> None:
    """And leaves the outputs that the stage is for."""
    assert main(["prepare"]) == 0
    assert Path("data/prepared/train.jsonl").is_file()
    assert Path("reports/prepare.json").is_file()


def test_bad_config_is_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All mistakes at once, no traceback, nothing written."""
    content = params() | {"sed": 1}
    content["train"]["learning_rate"] = "2e-4"
    Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["prepare"]) == 2
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "error: params.yaml: train.learning_rate: must be a valid number; found '2e-4'",
        "params.yaml: sed: unknown key; did you mean seed?",
    ]
    assert not Path("data/prepared").exists()


def test_bad_data_is_three(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File, line, what is wrong and what to do, in one line."""
    with Path("data/raw/rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"agent": "last", "task"\n')
    assert main(["prepare"]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error: data/raw/rows.jsonl:62: broken JSON: ")
    assert told.endswith("; mend the row, or set data.on_bad_row: skip\n")
    assert not Path("data/prepared").exists()


def test_a_machine_that_cannot_is_four(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place that can't be written is told in one line, and what was there is kept."""
    Path("reports").write_text("a file where a folder must be", encoding="utf-8")
    assert main(["prepare"]) == 4
    told = capsys.readouterr().err
    assert told.startswith("error: prepare: reports: ")
    assert told.count("\n") == 1


def test_a_stage_out_of_order_names_what_it_misses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a traceback over a missing file."""
    assert main(["decide"]) == 3
    assert capsys.readouterr().err == (
        "error: reports/prepare.json: no such file; run the stage that writes it (dvc repro)\n"
    )


def test_two_pipelines_at_once_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An orphan of a killed DVC must not write beside the next run."""
    code = (
        "import time\nfrom pathlib import Path\nfrom finetune.files.run_lock import pipeline_lock\n"
        "with pipeline_lock(Path('work/pipeline.lock'), 'train'):\n    print('held', flush=True)\n    time.sleep(3600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert main(["prepare"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(
            f"error: work/pipeline.lock: stage train (process {holder.pid}) is running in this folder"
        )
    finally:
        holder.kill()
        holder.wait()
    assert main(["prepare"]) == 0


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For us; without it a user sees one line."""
    Path("params.yaml").unlink()
    assert main(["--debug", "prepare"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["prepare"]) == 2
    assert capsys.readouterr().err == "error: params.yaml: no such file; run from the top of the repository\n"


def test_unknown_command_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse says which ones there are."""
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_second_signal_does_not_break_the_exit(tmp_path: Path, name: str) -> None:
    """What is done is done: torch's own work at the exit, cut off by a signal, would show a traceback."""
    code = (
        "import atexit, os, signal, sys; from finetune.cli.main import run_and_exit\n"
        f"atexit.register(lambda: os.kill(os.getpid(), signal.{name}))\n"
        "sys.argv = ['finetune', 'gate']; run_and_exit()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: params.yaml: no such file; run from the top of the repository\n",
    )
