"""Work on several cores: the results' order, what happens to a worker that dies, and to workers whose parent does."""

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
    """Work that is done sooner the later it was given."""
    time.sleep(0.02 if number < 4 else 0.0)
    return -number


def die(number: int) -> int:
    """A worker that the kernel kills for memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    """A defect in a worker."""
    raise KeyError(number)


@pytest.mark.parametrize("work_bytes", [0, 10**9])
def test_results_come_in_the_order_of_the_work(work_bytes: int) -> None:
    """Rows keep their order on any number of cores, or no two runs would write the same bytes."""
    with open_workers(work_bytes) as work:
        assert list(work(negative, range(12))) == [-number for number in range(12)]


def test_only_a_few_items_are_under_way() -> None:
    """Items are drawn as results are taken: a slow consumer must not find all of the data in memory."""
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(200):
            drawn.append(number)
            yield number

    with open_workers(10**9) as work:
        results = work(negative, items())
        next(results)
        assert len(drawn) <= 2 * (os.cpu_count() or 1) + 2


def test_a_killed_worker_is_the_machines_trouble() -> None:
    """No traceback of a broken pool: the likely cause, and what to do."""
    with open_workers(10**9) as work, pytest.raises(MachineError) as caught:
        list(work(die, range(3)))
    assert str(caught.value).startswith("prepare: a worker process was killed, most likely because memory ran out; ")


def test_an_error_in_a_worker_is_not_swallowed() -> None:
    """It comes out where the result was due."""
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
    """A folder with 20,000 rows, and a script that prepares them with processes."""
    (tmp_path / "data/raw").mkdir(parents=True)
    with (tmp_path / "data/raw/rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(20_000):
            task = f"task {number} " + "word " * 40
            file.write(json.dumps({"agent": "a", "task": task, "output": str(number), "success": True}) + "\n")
    (tmp_path / "params.yaml").write_text(json.dumps(params()), encoding="utf-8")
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    return tmp_path


def start(folder: Path, **options: Any) -> "subprocess.Popen[bytes]":
    """prepare in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen([sys.executable, "run.py"], cwd=folder, env=environment, **options)


@pytest.mark.slow
def test_a_killed_prepare_leaves_no_worker_and_no_half_result(folder: Path) -> None:
    """Killed in the middle: the workers end by themselves, and the next run cleans up and writes what it should."""
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
    """Ctrl-C and a scheduler's SIGTERM: exit code 5, one line, the old output as it was, and no worker."""
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
    _, said = process.communicate(timeout=PATIENCE)
    assert said.decode() == "error: prepare was interrupted; run it again\n"
    assert process.returncode == 5
    wait_for(lambda: not any(alive(child) for child in children))
    assert not (folder / "work/prepare").exists()
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["prepared", "raw"]
    assert (folder / "data/prepared/train.jsonl").read_text() == "old"


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing(folder: Path) -> None:
    """A file that may not grow stands for a disk that is full: exit code 4, the place, and the space given back."""
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
    """Whether a process is there and no zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_little_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded data must not wait a second for processes to start."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    with open_workers(1000) as work:
        assert list(work(negative, [7])) == [-7]
