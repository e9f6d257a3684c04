"""Rounds: drawn from a seed, run in a copy of a tree, repaired, and compared with the undisturbed run."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.builders.small_run import small_tree
from tests.chaos.disks import keep_disk, unmount
from tests.chaos.faults import KINDS
from tests.chaos.judge import Reference, bad_endings, different, error_line, wrong_in, wrong_verdicts
from tests.chaos.preloaded import Preloaded
from tests.chaos.scene import STAGES, Scene, end_group

SAME, TOLD, FAILED = "same", "clear error then same", "FAILED"
UNHIT = "hit nothing"  # the fault came too late or did not matter: nothing was tested
BETWEEN_LOOKS = 0.1  # seconds for which a wrong artifact may stay undetected


@dataclass
class Drawn:
    """A round before its run, as determined by the seed."""

    number: int
    kind: str
    state: int
    seed: str


@dataclass
class Result:
    """The outcome of a round: one line of the raw results."""

    number: int
    kind: str
    stages_done: int
    fault: str = ""
    place: str = ""
    moment: str = ""
    commands: list[dict[str, object]] = field(default_factory=list)
    said: str | None = None  # the first error line
    outcome: str = FAILED
    why: list[str] = field(default_factory=list)  # reasons of a failure
    seconds: float = 0.0


def draw(seed: int, count: int, kinds: Sequence[str]) -> list[Drawn]:
    """Draw this number of rounds with all kinds equally often; the seed determines their order."""
    random, drawn = Random(seed), []
    order = list(kinds)
    for number in range(count):
        if number % len(order) == 0:
            random.shuffle(order)
        kind = order[number % len(order)]
        own = f"{seed}/{kind}/{number // len(order)}"
        drawn.append(Drawn(number + 1, kind, Random(f"{own}/state").choice(list(KINDS[kind].states)), own))
    return drawn


class Ground:
    """The trees after each stage of the undisturbed run, and the run times of its stages."""

    def __init__(self, root: Path, processes: Preloaded) -> None:
        self.root, self.environment = root, processes.environment()
        self.seconds: dict[str, float] = {}
        tree = small_tree(root / "tree", train__learning_rate=1.0e-2, evaluate__batch_size=4)
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"]):
            subprocess.run(command, cwd=tree, env=self.environment, check=True)
        name = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *name, "commit", "-qm", "start"], cwd=tree, env=self.environment, check=True)
        shutil.copytree(tree, root / "state-0", symlinks=True)
        for number, stage in enumerate(STAGES, start=1):
            start = time.monotonic()
            done = self._run(tree, "dvc", "repro", stage)
            self.seconds[stage] = max(time.monotonic() - start - 1.5, 0.3)  # without DVC's own time
            if done.returncode:
                raise RuntimeError(f"the undisturbed run failed in {stage}:\n{done.stdout}{done.stderr}")
            shutil.copytree(tree, root / f"state-{number}", symlinks=True)
        self.reference = Reference(tree)

    def _run(self, tree: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        environment = {**self.environment, "PYTHONPATH": "src"}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            words, cwd=tree, env=environment, stdout=pipe, stderr=pipe, text=True, process_group=0
        ) as process:
            try:
                said, errors = process.communicate()
            except BaseException:  # an interrupted run leaves no process behind
                end_group(process.pid)
                raise
        return subprocess.CompletedProcess(words, process.returncode, said, errors)

    def scene(self, drawn: Drawn) -> Scene:
        """Return a fresh copy of the tree after the drawn number of stages."""
        folder = self.root / f"round-{drawn.number}" / "tree"
        shutil.copytree(self.root / f"state-{drawn.state}", folder, symlinks=True)
        return Scene(folder, drawn.state, Random(drawn.seed), self.environment, self.seconds)


def run_round(drawn: Drawn, ground: Ground) -> Result:
    """Inject the fault, watch the files, repair the damage, resume, and judge the result."""
    started, scene = time.monotonic(), ground.scene(drawn)
    result = Result(drawn.number, drawn.kind, drawn.state)
    try:
        with watched(scene, ground.reference) as seen:
            KINDS[drawn.kind].act(scene)
            scene.wait_for_orphans()
        told = next((line for ran in scene.ran if (line := error_line(ran))), None)
        result.why += [f"while it ran: {wrong}" for wrong in seen]
        result.why += unnoticed(scene, ground.reference, told)
        unhit = KINDS[drawn.kind].in_the_midst and not any(ran.code for ran in scene.ran)
        recover(scene)
        result.why += bad_endings(scene) + wrong_verdicts(scene.ran, ground.reference.verdict)
        result.why += [f"in the end: {wrong}" for wrong in different(scene.folder, ground.reference, scene.harmed)]
        result.said = told and told.replace(str(ground.root), "")[:300]
        result.outcome = FAILED if result.why else TOLD if told else UNHIT if unhit else SAME
    except Exception as error:  # an error of the test itself also counts as a failure
        result.why.append(f"{type(error).__name__}: {error}")
    finally:
        scene.end_all()
        for place in reversed(scene.mounts):
            result.why += keep_disk(place) if result.why else []
            unmount(place)
        if not result.why:  # it survived, or was interrupted
            shutil.rmtree(scene.folder.parent, ignore_errors=True)
    result.commands = [{"command": ran.shown, "code": ran.code} for ran in scene.ran]
    result.fault, result.place, result.moment = (scene.notes.get(key, "") for key in ("fault", "place", "moment"))
    result.seconds = round(time.monotonic() - started, 1)
    return result


def recover(scene: Scene) -> None:
    """Undo the fault, apply the remedies from the messages, and run the pipeline to its end."""
    for repair in scene.repairs:
        repair()
    for words in scene.remedies:
        scene.run(*words)
    last = scene.run("dvc", "repro")
    if last.code and "RWLock-file" in last.said:  # DVC's own file, truncated by a full disk; the error names it
        (scene.folder / ".dvc/tmp/rwlock").unlink()
        last = scene.run("dvc", "repro")
    if last.code == 0:
        scene.run("gate")


def unnoticed(scene: Scene, reference: Reference, told: str | None) -> list[str]:
    """Return what is wrong before the repairs although every command succeeded."""
    if scene.others_inputs:
        by_the_run = any(error_line(ran) for ran in scene.ran if ran.words != ("gate",))
        return [] if by_the_run else stale(scene)
    if told or any(ran.code for ran in scene.ran if ran.words != ("gate",)):
        return []
    found = [f"nobody told: {wrong}" for wrong in wrong_in(scene.folder, reference)]
    return found + (["nobody told of the damage"] if scene.must_tell else [])


def stale(scene: Scene) -> list[str]:
    """Return inconsistent records of a run on changed inputs."""
    from finetune.config.params import DETERMINES_ADAPTER, load_config
    from finetune.files.hashing import sha256_file
    from finetune.files.manifests import read_manifest
    from finetune.files.strict_json import read_json
    from finetune.model.base import identify_base

    folder = scene.folder
    config = load_config(folder / "params.yaml")
    manifest, ledger = read_manifest(folder / "out/adapter"), read_json(folder / "reports/prepare.json")
    base = identify_base(config.model.model_copy(update={"base": str(folder / config.model.base)}))
    now = {
        "rows": (ledger["sources"]["small"]["sha256"], sha256_file(folder / "data/raw/rows.jsonl")),
        "splits": (manifest["prepared_sha256"], ledger["prepared_sha256"]),
        "base": (manifest["base"]["revision"], base["revision"]),
        "params": (manifest["params"], config.model_dump(mode="json", include=DETERMINES_ADAPTER)),
    }
    return [f"stale: the {name} are not those that were recorded" for name, (was, is_) in now.items() if was != is_]


@contextmanager
def watched(scene: Scene, reference: Reference) -> Iterator[list[str]]:
    """Repeatedly look for a wrong artifact under a final name while stages run; yield the list of those seen."""
    seen: dict[str, None] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(BETWEEN_LOOKS):
            if not scene.others_inputs and not scene.copying:
                found = wrong_in(scene.folder, reference, scene.harmed)
                seen.update(dict.fromkeys([] if scene.copying else found))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    told: list[str] = []
    try:
        yield told
    finally:
        over.set()
        watcher.join()
        told += seen


def to_lines(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Convert results to JSON objects."""
    return [asdict(result) for result in results]
