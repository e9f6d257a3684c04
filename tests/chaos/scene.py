"""The folder of one round: its commands, their output, and the moments at which faults are injected."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from finetune.files.run_lock import read_holder
from finetune.processes.running import is_locked

STAGES = ("prepare", "validate", "train", "evaluate", "decide")
LOOK = 0.001  # seconds between two checks for a moment
LONGEST = 300.0  # seconds after which a command counts as hanging

# Files that appear while a stage works, in order: the moments around its renames.
SIGHTS = {
    "prepare": ("data/.prepared.partial", "data/prepared", "reports/prepare.md", "reports/prepare.json"),
    "validate": ("data/.validated.partial", "data/validated", "reports/validation.md", "reports/validation.json"),
    "train": (
        "work/checkpoints/*/.partial",
        "work/checkpoints/*/.partial/optimizer.pt",
        "work/checkpoints/*/checkpoint-3",
        "work/checkpoints/*/checkpoint-9",
        "out/.adapter.partial",
        "out/adapter",
        "reports/train_cost.json",
        "reports/train.json",
    ),
    "evaluate": ("work/evaluate/*.jsonl", "out/predictions.jsonl", "out/latency.jsonl", "reports/cost.json"),
    "decide": ("reports/report.html", "reports/summary.md", "out/model_card.md", "reports/decision.json"),
}


@dataclass(frozen=True)
class Moment:
    """When a fault is injected: at a file's appearance, or at a share of a stage's usual run time."""

    stage: str
    sight: str | None
    share: float

    def __str__(self) -> str:
        return f"{self.sight} appears" if self.sight else f"{self.share:.0%} of {self.stage}"


@dataclass
class Ran:
    """A finished command: its words, its exit code (negative for a signal), its output."""

    words: tuple[str, ...]
    code: int
    said: str
    hung: bool = False

    @property
    def shown(self) -> str:
        """Return the command as it is typed."""
        return " ".join(self.words)


@dataclass
class Running:
    """A running command."""

    words: tuple[str, ...]
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def number(self) -> int:
        """Return the id of the working process, as the started one only waits for it."""
        return int(self.log.with_suffix(".pid").read_text(encoding="ascii"))


def end_group(number: int) -> None:
    """Kill a process group."""
    with suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


@dataclass
class Scene:
    """A folder in which a fault is injected, with the notes about it."""

    folder: Path
    state: int  # number of finished stages
    random: Random
    environment: dict[str, str]
    seconds: dict[str, float]  # the usual run time of each stage
    ran: list[Ran] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    repairs: list[Callable[[], None]] = field(default_factory=list)  # functions that undo the fault
    signals: set[int] = field(default_factory=set)  # the signals that were sent
    others_inputs: bool = False  # whether artifacts may temporarily be another run's
    remedies: list[tuple[str, ...]] = field(default_factory=list)  # commands to run before the last `dvc repro`
    harmed: list[str] = field(default_factory=list)  # names that may be wrong until the repairs
    mounts: list[Path] = field(default_factory=list)
    copying: bool = False  # whether the folder is being moved to another disk
    must_tell: bool = False  # whether an error must be reported before the repairs
    started: int = 0
    under_way: list[Running] = field(default_factory=list)

    def start(self, *words: str, limit: int | None = None, **environment: str) -> Running:
        """Start a command in its own process group; no file may exceed `limit` bytes."""
        self.started += 1
        log = self.folder.parent / f"command-{self.started}.log"

        def prepare_process() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        with log.open("wb") as output:
            process = subprocess.Popen(
                words if words[0] == "dvc" else ("python", "-m", "finetune", *words),
                cwd=self.folder,
                env={
                    **self.environment,
                    "PYTHONPATH": "src",
                    "CHAOS_PROCESS": str(log.with_suffix(".pid")),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                preexec_fn=prepare_process,
            )
        self.under_way.append(Running(words, process, log))
        return self.under_way[-1]

    def finish(self, running: Running) -> Ran:
        """Wait for a command and the processes that it left; kill a hanging one."""
        hung = False
        try:
            code = running.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            hung = True
            end_group(running.process.pid)
            code = running.process.wait()
        ran = Ran(running.words, code, running.log.read_text(encoding="utf-8", errors="replace"), hung)
        self.ran.append(ran)
        self.under_way.remove(running)
        return ran

    def end_all(self) -> None:
        """Kill all processes that an interrupted round has left."""
        for running in self.under_way:
            end_group(running.process.pid)
            running.process.wait()

    def run(self, *words: str, limit: int | None = None, **environment: str) -> Ran:
        """Start a command and wait for it."""
        return self.finish(self.start(*words, limit=limit, **environment))

    def ask(self, *words: str) -> None:
        """Run a command that does not count as part of the round."""
        environment = {**self.environment, "PYTHONPATH": "src"}
        subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, check=True)

    def wait_for_orphans(self) -> None:
        """Wait until no stage uses the folder."""
        deadline = time.monotonic() + LONGEST
        with suppress(OSError):  # no lock can exist in a folder that is not writable
            while is_locked(self.folder / "work/pipeline.lock") and time.monotonic() < deadline:
                time.sleep(0.05)

    def next_stage(self) -> str:
        """Return the stage that would run next."""
        return STAGES[self.state]

    def holder(self) -> tuple[str, int] | None:
        """Return the running stage and its process."""
        held = read_holder(self.folder / "work/pipeline.lock")
        return (held.stage, held.process) if held else None

    def draw_moment(self, stage: str) -> Moment:
        """Draw a moment anywhere in a stage."""
        sight = self.random.choice(SIGHTS[stage]) if self.random.random() < 0.6 else None
        return Moment(stage, sight, self.random.random())

    def wait_for(self, moment: Moment, running: Running) -> bool:
        """Wait for a moment; return False if the command ended before."""
        while (held := self.holder()) is None or held[0] != moment.stage:
            if running.process.poll() is not None:
                return False
            time.sleep(LOOK)
        if moment.sight is None:
            time.sleep(moment.share * self.seconds[moment.stage])
            return running.process.poll() is None
        while not any(self.folder.glob(moment.sight)):
            if running.process.poll() is not None:
                return False
            time.sleep(LOOK)
        return True

    def send(self, name: str, target: int, *, group: bool = False) -> None:
        """Send a signal to a process or to its group, and record it."""
        number = signal.Signals[name]
        self.signals.add(int(number))
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(target, number)
