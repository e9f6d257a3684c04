"""Long runs can be started in the background, observed, and stopped without a loss; none of this imports torch."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune.errors import ConfigError
from finetune.paths import Paths
from finetune.processes import detach
from tests.builders.small_run import ROOT, params
from tests.builders.waiting import PATIENCE, wait_for

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "DETACH"))}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT / "src"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
from finetune.files.atomic import write_json
from finetune.files.run_lock import pipeline_lock

def tell(step, ended=None):
    told = {"stage": "train", "pid": os.getpid(), "step": step, "steps": 45, "loss": 1.25, "validation_loss": None}
    told |= {"tokens_per_second": 3210.4, "memory_bytes": 12_300_000_000, "seconds_left": 4000.0}
    write_json(Path("work/status.json"), told | {"updated": time.time(), "ended": ended})

def end(number, frame):
    Path("work/checkpoints/run/checkpoint-8").mkdir(parents=True, exist_ok=True)
    if sys.argv[3] == "train":
        tell(8, "interrupted")
    sys.exit(int(sys.argv[4]))

signal.signal(signal.SIGTERM, end)
with pipeline_lock(Path("work/pipeline.lock"), sys.argv[3]):
    if sys.argv[3] == "train":
        tell(7)
    print("holds the lock", flush=True)
    time.sleep(3600)
"""
# The targets of the repository's Makefile, with stages that hold the lock and wait.
MAKEFILE = """
train-%:
	@finetune $(if $(DETACH),detach "$@",check)
	@$(if $(DETACH),,python stage.py -m finetune train 5)
repro:
	@python stage.py -m finetune prepare 0
	@python stage.py -m finetune validate 5
train-wrong:
	@echo "error: params.yaml: sed: unknown key; did you mean seed?" && false
train-idle:
	@sleep 3600
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Create a folder with a Makefile and a waiting stage; remaining processes are killed afterwards."""
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    (tmp_path / "params.yaml").write_text(json.dumps(params()), encoding="utf-8")
    (tmp_path / "work").mkdir()
    yield tmp_path
    end_all_in(tmp_path)


def end_all_in(folder: Path) -> None:
    """Kill all remaining processes of a folder."""
    for process in processes_in(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def processes_in(folder: Path) -> list[Any]:
    """Return all living processes whose working directory is in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends on its own."""
    return subprocess.run(
        words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def finetune(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m finetune ...` in the folder."""
    return run(folder, sys.executable, "-m", "finetune", *words)


def hold(folder: Path, *words: str, script: str = "stage.py") -> subprocess.Popen[str]:
    """Start a process that holds the lock; `words` follow the script's name."""
    command = [sys.executable, str(folder / script), *words]
    holder = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds the lock\n"
    return holder


# ---- Start in the background


def test_a_detached_run_is_started_reported_and_stopped(folder: Path) -> None:
    """Closing the terminal does not end the run, and a stop loses at most the current step."""
    started = run(folder, "make", "train-quick", "DETACH=1")
    assert started.returncode == 0, started.stderr
    assert started.stdout.splitlines()[1:] == [
        "  ./finetune status   show the progress",
        "  ./finetune stop     stop it; run the same command again to resume",
        "  tail -f work/train-quick.log",
    ]
    wait_for(lambda: (folder / "work/status.json").exists())
    detached = json.loads((folder / "work/detached.json").read_text(encoding="utf-8"))
    assert os.getsid(detached["pid"]) == detached["pid"] != os.getsid(0), "it would die with its terminal"

    reported = json.loads(finetune(folder, "status", "--json").stdout)
    assert (reported["running"], reported["stage"], reported["target"]) == (True, "train", "train-quick")
    assert reported["progress"]["step"] == 7
    sentence, progress, age = reported["text"]
    assert sentence == (
        f"stage train (process {reported['pid']} of make train-quick) is running; log: work/train-quick.log"
    )
    assert progress == "step 7 of 45 (16%), loss 1.2500, 3,210 tokens/s, memory 12.3 GB, about 1 h 07 min left"
    assert age.endswith(" s ago")

    again = run(folder, "make", "train-quick", "DETACH=1")
    assert again.returncode == 2
    assert (
        f"error: work: stage train (process {reported['pid']} of make train-quick) is running in this folder"
        in again.stderr
    )

    stopped = finetune(folder, "stop")
    end = "train stopped at step 8 of 45; the checkpoint of step 8 is kept; run make train-quick DETACH=1 to resume"
    assert stopped.returncode == 0
    assert stopped.stdout.splitlines()[-1] == end
    assert processes_in(folder) == []
    assert finetune(folder, "status").stdout.splitlines() == [
        "nothing is running in this folder",
        end,
    ]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let starts from this process wait long enough for a failure on a busy machine."""
    monkeypatch.setattr(detach, "GRACE", PATIENCE)
    for key in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(key)
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("patient")
def test_a_start_that_fails_at_once_shows_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that fails in its first second is reported by the start itself."""
    with pytest.raises(ConfigError) as failed:
        detach.start(Paths(folder), "train-wrong")
    assert capsys.readouterr().out.splitlines()[0] == "  error: params.yaml: sed: unknown key; did you mean seed?"
    log = folder / "work/train-wrong.log"
    assert str(failed.value).endswith(
        f"failed immediately; its output is above; nothing is running ({log.relative_to(folder)})"
    )
    assert processes_in(folder) == []
    status = finetune(folder, "status").stdout.splitlines()
    assert status[1:3] == [
        "make train-wrong failed with exit code 2; work/train-wrong.log ends with:",
        f"  == make train-wrong, started {status[2].rpartition('started ')[2]}",
    ]
    assert "  error: params.yaml: sed: unknown key; did you mean seed?" in status


@pytest.mark.parametrize("target", ["clean", "train-", "train-a b", "../train-x", "test"])
def test_only_runs_are_started_in_the_background(folder: Path, target: str) -> None:
    """The name becomes part of a file name and of a command."""
    done = finetune(folder, "detach", target)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: detach: make {target} can't be started in the background; repro and train-RECIPE can\n"
    )


def test_of_two_simultaneous_starts_one_runs(folder: Path) -> None:
    """Another start could happen between the check and the start."""
    command = [sys.executable, "-m", "finetune", "detach", "train-idle"]
    both = [subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(process.wait(timeout=PATIENCE) for process in both) == [0, 2]


@pytest.mark.usefixtures("patient")
def test_a_new_start_appends_to_its_log(folder: Path) -> None:
    """The output of an earlier run may be the reason for the new one."""
    for _ in range(2):
        with pytest.raises(ConfigError):
            detach.start(Paths(folder), "train-wrong")
    log = (folder / "work/train-wrong.log").read_text(encoding="utf-8")
    assert log.count("== make train-wrong, started ") == log.count("== make train-wrong ended with exit code 2") == 2


# ---- Stop


def test_a_stop_without_a_run_succeeds(folder: Path) -> None:
    """A job script may stop a run that has already ended."""
    done = finetune(folder, "stop")
    assert (done.returncode, done.stdout) == (0, "nothing is running in this folder\n")


def test_a_stop_between_two_stages_ends_make(folder: Path) -> None:
    """DVC hashes between stages for seconds; the stop must prevent the next stage."""
    assert finetune(folder, "detach", "train-idle").returncode == 0
    assert "make train-idle (process " in finetune(folder, "status").stdout
    stopped = finetune(folder, "stop")
    assert stopped.returncode == 0
    assert stopped.stdout.splitlines()[-1] == (
        "make train-idle was stopped between two stages; run make train-idle DETACH=1 to resume"
    )
    assert processes_in(folder) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals are ignored")
def test_a_run_started_by_a_background_script_can_be_interrupted(folder: Path) -> None:
    """Shells start background jobs with Ctrl-C ignored, which children inherit; a stop would take long."""
    command = f"trap '' INT; exec {sys.executable} -m finetune detach train-idle"
    assert run(folder, "sh", "-c", command).returncode == 0
    detached = json.loads((folder / "work/detached.json").read_text(encoding="utf-8"))
    status = Path(f"/proc/{detached['pid']}/status").read_text(encoding="utf-8")
    (ignored,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    assert not int(ignored, 16) & 1 << signal.SIGINT - 1


def test_a_stop_also_ends_the_stage_after_a_finished_one(folder: Path) -> None:
    """SIGTERM may arrive when a stage has just finished: make starts the next one, which must be stopped too."""
    assert finetune(folder, "detach", "repro").returncode == 0
    wait_for(lambda: (folder / "work/pipeline.holder").exists())
    assert finetune(folder, "stop").returncode == 0
    assert processes_in(folder) == []
    assert not (folder / "work/pipeline.holder").exists()


def test_a_manually_started_stage_is_stopped(folder: Path) -> None:
    """Examples are `dvc repro` in another terminal, or a single stage."""
    holder = hold(folder, "-m", "finetune", "prepare", "5")
    stopped = finetune(folder, "stop")
    assert stopped.stdout.splitlines()[-1] == (
        "prepare has stopped; completed stages are kept; run the same command again to resume"
    )
    assert holder.wait(timeout=PATIENCE) == 5


def test_the_script_installed_by_pip_is_recognised(folder: Path) -> None:
    """An installed package is started as `python .../bin/finetune train`."""
    script = folder / "finetune"
    script.write_text(STAGE.replace("argv[3]", "argv[1]").replace("argv[4]", "argv[2]"), encoding="utf-8")
    holder = hold(folder, "train", "5", script="finetune")
    assert finetune(folder, "status").stdout.startswith(f"stage train (process {holder.pid}) is running\nstep 7 of 45")
    finetune(folder, "stop")
    assert holder.wait(timeout=10) == 5


def claim(folder: Path, other: "subprocess.Popen[Any]") -> None:
    """Write the lock of a killed stage, with a process id that another process now has."""
    (folder / "work/pipeline.lock").touch()
    (folder / "work/pipeline.holder").write_text(json.dumps({"stage": "train", "process": other.pid}), encoding="utf-8")


@pytest.mark.parametrize("words", [(), ("-m", "finetune", "report"), ("-m", "pytest", "train")])
def test_a_process_with_a_reused_id_is_never_killed(folder: Path, words: tuple[str, ...]) -> None:
    """The process may be the user's notebook, or another command in this folder."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", *words], cwd=folder)
    claim(folder, other)
    assert finetune(folder, "status").stdout.splitlines()[0] == "nothing is running in this folder"
    assert finetune(folder, "stop").stdout == "nothing is running in this folder\n"
    assert other.poll() is None


@pytest.mark.parametrize("stage", ["validate", "train"])
def test_a_stage_of_another_folder_is_left_alone(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, stage: str
) -> None:
    """With two clones, the process id in one folder's file may be that of a stage of the other."""
    there = tmp_path_factory.mktemp("other")
    (there / "stage.py").write_text(STAGE, encoding="utf-8")
    (there / "work").mkdir()
    other = hold(there, "-m", "finetune", stage, "5")
    claim(folder, other)
    assert finetune(folder, "stop").stdout == "nothing is running in this folder\n"
    assert other.poll() is None
    end_all_in(there)


def test_a_lock_with_an_unknown_holder_is_reported(folder: Path) -> None:
    """The stage may run in a container with its own process ids, so the lock counts as held."""
    holder = hold(folder, "-m", "another", "train", "5")
    elsewhere = "its process is not visible here: it runs in a container or on another machine"
    reported = finetune(folder, "status").stdout.splitlines()
    assert reported[:2] == [
        f"stage train (process {holder.pid}) is running",
        f"it can't be stopped from here: {elsewhere}",
    ]
    stopped = finetune(folder, "stop")
    assert stopped.returncode == 4
    assert stopped.stderr == (
        f"error: stage train can't be stopped from here: {elsewhere}; "
        "stop it on the machine where it runs (scancel, sky jobs cancel, docker stop), or ask its owner\n"
    )
    assert holder.poll() is None


def test_no_recipe_is_applied_during_a_run(folder: Path) -> None:
    """`make train-x` would change params.yaml before the remaining stages run."""
    holder = hold(folder, "-m", "finetune", "train", "5")
    before = (folder / "params.yaml").read_bytes()
    done = finetune(folder, "check")
    assert done.returncode == 2
    assert (
        f"error: work: stage train (process {holder.pid}) is running in this folder; ./finetune status" in done.stderr
    )
    assert (folder / "params.yaml").read_bytes() == before
    holder.send_signal(signal.SIGTERM)
    assert holder.wait(timeout=PATIENCE) == 5
