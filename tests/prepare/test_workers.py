"""Work on several cores: the order of results, dead workers, and workers whose parent died."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune.errors import MachineError
from finetune.prepare import workers
from finetune.prepare.workers import open_workers
from tests.builders.small_run import ROOT, params
from tests.builders.waiting import PATIENCE, wait_for


def negative(number: int) -> int:
    """Return the negative number; later items finish sooner."""
    time.sleep(0.02 if number < 4 else 0.0)
    return -number


def die(number: int) -> int:
    """Kill the worker, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    """Raise an error in a worker."""
    raise KeyError(number)


@pytest.mark.parametrize("work_bytes", [0, 10**9])
def test_results_are_in_the_order_of_the_work(work_bytes: int) -> None:
    """The order must not depend on the number of cores, so that two runs write the same bytes."""
    with open_workers(work_bytes) as work:
        assert list(work(negative, range(12))) == [-number for number in range(12)]


def test_only_a_few_items_are_in_progress() -> None:
    """Items are drawn as results are taken: a slow consumer must not load all data into memory."""
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(200):
            drawn.append(number)
            yield number

    with open_workers(10**9) as work:
        results = work(negative, items())
        next(results)
        assert len(drawn) <= 2 * (os.cpu_count() or 1) + 2


def test_a_killed_worker_is_a_machine_error() -> None:
    """The error gives the likely cause and the remedy, not the traceback of a broken pool."""
    with open_workers(10**9) as work, pytest.raises(MachineError) as caught:
        list(work(die, range(3)))
    assert str(caught.value).startswith("prepare: a worker process was killed, most likely because memory ran out; ")


def test_an_error_in_a_worker_is_not_swallowed() -> None:
    """It is raised in place of the result."""
    with open_workers(10**9) as work, pytest.raises(KeyError):
        list(work(fail, range(3)))


# ---- A prepare that is killed

RUN = """
import sys
from pathlib import Path
from finetune.config.params import load_config, params_of
from finetune.paths import Paths
from finetune.prepare import stage, workers
workers.WORTH_A_POOL = 0
if __name__ == "__main__":
    stage.run(params_of("prepare", load_config(Path("params.yaml"))), Paths())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder with 20,000 rows and a script that prepares them with processes."""
    (tmp_path / "data/raw").mkdir(parents=True)
    with (tmp_path / "data/raw/rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(20_000):
            task = f"task {number} " + "word " * 40
            file.write(json.dumps({"agent": "a", "task": task, "output": str(number), "success": True}) + "\n")
    (tmp_path / "params.yaml").write_text(json.dumps(params()), encoding="utf-8")
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    return tmp_path


def start(folder: Path, **options: Any) -> "subprocess.Popen[bytes]":
    """Start prepare in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen([sys.executable, "run.py"], cwd=folder, env=environment, **options)


@pytest.mark.slow
def test_a_killed_prepare_leaves_no_worker_and_no_half_result(folder: Path) -> None:
    """After a kill, the workers end on their own, and the next run cleans up and writes the correct output."""
    process = start(folder)
    spool = folder / "work/prepare/rows"
    wait_for(lambda: spool.exists() and spool.stat().st_size > 100_000, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(child) for child in children))
    assert not (folder / "data/prepared").exists()
    assert start(folder).wait() == 0
    assert not (folder / "work/prepare").exists()
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["prepared", "raw"]
    ledger = json.loads((folder / "reports/prepare.json").read_text(encoding="utf-8"))
    assert ledger["sources"]["small"]["kept"] == 20_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupted_prepare_cleans_up(folder: Path, number: int) -> None:
    """Ctrl-C and SIGTERM give exit code 5 and one line; the old output stays and no worker remains."""
    (folder / "data/prepared").mkdir()
    (folder / "data/prepared/train.jsonl").write_text("old")
    script = RUN.replace(
        '    stage.run(params_of("prepare", load_config(Path("params.yaml"))), Paths())',
        '    sys.exit(main(["prepare"]))',
    )
    (folder / "run.py").write_text(script.replace("import sys", "import sys\nfrom finetune.cli.main import main"))
    process = start(folder, stderr=subprocess.PIPE)
    wait_for((folder / "work/prepare/rows").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, output = process.communicate(timeout=PATIENCE)
    assert output.decode() == "error: prepare was interrupted; run it again\n"
    assert process.returncode == 5
    wait_for(lambda: not any(alive(child) for child in children))
    assert not (folder / "work/prepare").exists()
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["prepared", "raw"]
    assert (folder / "data/prepared/train.jsonl").read_text() == "old"


@pytest.mark.slow
def test_a_full_disk_is_reported_and_leaves_no_files(folder: Path) -> None:
    """A file size limit simulates a full disk: exit code 4, the path, and the space is freed."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({10**6}, {10**6})); "
    code = limited + "import sys; from finetune.cli.main import main; sys.exit(main(['prepare']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith("error: prepare: ")
    assert "File too large" in done.stderr
    assert not (folder / "work/prepare").exists()
    assert [path.name for path in (folder / "data").iterdir()] == ["raw"]


def alive(process: psutil.Process) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_little_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs must not wait a second for processes to start."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    with open_workers(1000) as work:
        assert list(work(negative, [7])) == [-7]
