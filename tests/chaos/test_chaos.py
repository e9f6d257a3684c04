"""One fault-injection round of each kind, and tests that the judge detects every defect."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.builders.small_run import ROOT
from tests.chaos.__main__ import own_folder
from tests.chaos.damage import DAMAGES, kept, rot
from tests.chaos.disks import can_mount, keep_disk, mount, unmount
from tests.chaos.faults import KINDS
from tests.chaos.judge import GROWING, Reference, bad_endings, different, without_measured, wrong_in, wrong_verdicts
from tests.chaos.preloaded import Preloaded
from tests.chaos.rounds import FAILED, Drawn, Ground, draw, run_round, unnoticed
from tests.chaos.scene import Ran, Scene
from tests.chaos.tables import table_of

SEED = 2
BEGIN, END = "<!-- made by python -m tests.chaos --table -->", "<!-- end -->"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Yield the undisturbed run and the process to fork from."""
    root = tmp_path_factory.mktemp("chaos")
    with Preloaded(root / "processes") as processes:
        yield Ground(root, processes)


def one_of_each() -> list[Drawn]:
    """Return the first rounds of a seed, which include every kind once."""
    return draw(SEED, len(KINDS), list(KINDS))


@pytest.mark.end_to_end
@pytest.mark.parametrize("drawn", one_of_each(), ids=lambda drawn: drawn.kind)
def test_the_pipeline_survives_every_fault(ground: Ground, drawn: Drawn) -> None:
    """After any fault the final result is that of the undisturbed run, and every wrong result before is reported."""
    if KINDS[drawn.kind].mounts and not can_mount():
        pytest.skip("needs permission to mount file systems")
    result = run_round(drawn, ground)
    assert result.outcome != FAILED, result


@pytest.mark.end_to_end
def test_the_judge_detects_every_wrong_file(ground: Ground, tmp_path: Path) -> None:
    """The judge detects each file of the run if it is truncated or from another run."""
    folder = ground.scene(Drawn(1000, "none", 5, "judge")).folder
    assert different(folder, ground.reference) == []
    for number, name in enumerate(sorted(ground.reference.content)):
        path = folder / name
        put_back = kept(path, tmp_path / str(number))
        for harm in ("truncated", "garbage inside"):
            before = path.read_bytes()
            DAMAGES[harm](path, Random(number))
            if path.read_bytes() == before:
                continue  # an empty file cannot be truncated
            assert different(folder, ground.reference), f"{harm}: {name}"
            assert name in GROWING or wrong_in(folder, ground.reference)
            assert wrong_in(folder, ground.reference, [name]) == []
            put_back()
        path.unlink()
        assert f"{name}: is missing" in different(folder, ground.reference)
        put_back()
    (folder / "out/.adapter.partial").mkdir()
    assert different(folder, ground.reference) == ["out/.adapter.partial: was left behind"]


@pytest.mark.end_to_end
def test_the_judge_detects_a_different_result(ground: Ground) -> None:
    """A changed bit of the adapter or a changed figure without an error message fails the round."""
    scene = ground.scene(Drawn(1001, "none", 5, "judge"))
    rot(scene.folder / "out/adapter/adapter_model.safetensors", Random(1))
    report = scene.folder / "reports/decision.json"
    report.write_text(report.read_text(encoding="utf-8").replace('"abort"', '"deploy"'), encoding="utf-8")
    found = unnoticed(scene, ground.reference, told=None)
    assert [why.split(": ")[1] for why in found] == ["out/adapter/adapter_model.safetensors", "reports/decision.json"]
    assert unnoticed(scene, ground.reference, told="error: something") == []


@pytest.mark.parametrize(
    ("ran", "why"),
    [
        (Ran(("train",), 1, "boom"), "exit code 1: boom"),
        (Ran(("train",), 3, "no word of it"), "exit code 3 without an error line"),
        (Ran(("train",), 3, "error: a file is broken\nTraceback (most recent call last):\n  x"), "a traceback: x"),
        (Ran(("train",), -9, ""), "killed by SIGKILL, not sent by the test"),
        (Ran(("train",), 0, "", hung=True), "hung"),
        (Ran(("dvc", "repro"), 255, ""), "no error line"),
        (Ran(("dvc", "repro"), 70, ""), "exit code 70"),
    ],
)
def test_the_judge_detects_every_invalid_ending(ran: Ran, why: str) -> None:
    """A crash, a hang or an ending without a message is never valid."""
    scene = Scene(Path(), 0, Random(0), {}, {}, ran=[ran])
    assert bad_endings(scene) == [f"{ran.shown}: {why}"]


@pytest.mark.parametrize(
    "ran",
    [
        Ran(("train",), 0, ""),
        Ran(("train",), 5, "error: train was stopped by SIGTERM"),
        Ran(("train",), -15, ""),
        Ran(("gate",), 20, "abort"),
        Ran(("dvc", "repro"), 255, "ERROR: it is busy"),
        Ran(("dvc", "repro"), 255, "'./dvc.yaml' is invalid.\n\nSequence entries are not allowed here, in line 7"),
        Ran(("dvc", "repro"), 255, "'dvc.lock' validation failed.\n\nextra keys not allowed, in stages -> train"),
    ],
)
def test_documented_endings_are_accepted(ran: Ran) -> None:
    """A clear error is a valid ending, and so is the end by a signal that was sent."""
    assert bad_endings(Scene(Path(), 0, Random(0), {}, {}, ran=[ran], signals={15})) == []


DVC_DONE, DVC_FAILED = Ran(("dvc", "repro"), 0, ""), Ran(("dvc", "repro"), 255, "ERROR: it is busy")
ABORT, REFUSED, DEPLOY = Ran(("gate",), 20, ""), Ran(("gate",), 3, "error: it is broken"), Ran(("gate",), 0, "")
NO_GATE = "the round does not end with a gate of exit code 20"


@pytest.mark.parametrize(
    ("ran", "found"),
    [
        ([DVC_FAILED, REFUSED, DVC_DONE, ABORT], []),
        ([DVC_DONE, DVC_FAILED], ["the last dvc repro ended with 255, not 0", NO_GATE]),
        ([DVC_FAILED, ABORT], ["the last dvc repro ended with 255, not 0"]),
        ([DVC_DONE, REFUSED], [NO_GATE]),
        ([DVC_DONE, DEPLOY], ["gate: exit code 0, and the verdict is abort", NO_GATE]),
        ([DEPLOY, DVC_DONE, ABORT], ["gate: exit code 0, and the verdict is abort"]),
        ([ABORT, DVC_DONE], [NO_GATE]),
        ([], ["the last dvc repro ended with None, not 0", NO_GATE]),
    ],
)
def test_a_round_ends_with_the_verdict(ran: list[Ran], found: list[str]) -> None:
    """The last `dvc repro` succeeds, the last gate has the reference's verdict, and no earlier gate another one."""
    assert wrong_verdicts(ran, "abort") == found


@pytest.mark.parametrize(("about", "same"), [("quality", False), ("latency", True), ("memory", True)])
@pytest.mark.parametrize("figure", ["estimate", "lower", "upper"])
def test_the_judge_ignores_measured_figures(about: str, same: bool, figure: str) -> None:
    """Figures of a criterion on answers must equal the reference's; measured seconds and bytes may differ."""
    criterion = dict.fromkeys(("criterion", "status", "target", "method", "estimate", "lower", "upper", "reason"), 0.5)
    ours = {**criterion, "about": about}
    assert (without_measured(ours) == without_measured({**ours, figure: 0.6})) is same
    assert without_measured(ours) != without_measured({**ours, "status": "fail"})


def test_an_interrupted_run_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Signals raise an exception; folders of failed rounds are reported, also those from before an interruption."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended, own_folder() as folder:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 143 and not folder.exists()
        with suppress(SystemExit), own_folder() as failed:
            (failed / "round-3").mkdir()
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(RuntimeError), own_folder() as broken:
            raise RuntimeError
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    output = capsys.readouterr().err
    for folder in (failed, broken):
        assert f"is in {folder}" in output
        shutil.rmtree(folder)


def test_files_on_a_small_disk_are_kept(tmp_path: Path) -> None:
    """Files on a small disk, except those that fill it, are copied before unmounting; other folders stay in place."""
    if not can_mount():
        pytest.skip("needs permission to mount file systems")
    place = tmp_path / "tree"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    try:
        (place / "work").mkdir()
        (place / "work/ballast").write_bytes(b"1")
        (place / "work/note").write_text("here", encoding="utf-8")
        assert keep_disk(place) == []
    finally:
        unmount(place)
    assert [path.name for path in (place / "work").iterdir()] == ["note"]
    assert keep_disk(place) == []


def test_rounds_are_determined_by_the_seed() -> None:
    """The same seed draws the same rounds, whatever their number; every kind comes equally often."""
    many, few = draw(7, 48, list(KINDS)), draw(7, 20, list(KINDS))
    assert many[:20] == few
    assert {drawn.kind: sum(other.kind == drawn.kind for other in many) for drawn in many} == dict.fromkeys(KINDS, 3)
    assert draw(8, 48, list(KINDS)) != many


def newest_results() -> Path:
    """Return the raw results that the page is made from."""
    return max((ROOT / "benchmarks/results").glob("chaos-*.json"))


def test_the_page_is_generated_from_the_results() -> None:
    """The table is generated from the raw results: at least 50 rounds, and none failed."""
    content = json.loads(newest_results().read_text(encoding="utf-8"))
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip().splitlines() == table_of(content)
    assert newest_results().name in page
    assert len(content["rounds"]) >= 50
    assert {item["kind"] for item in content["rounds"]} == set(KINDS)
    assert not [item for item in content["rounds"] if item["outcome"] == FAILED]


def test_an_unfinished_run_is_refused_as_reference(tmp_path: Path) -> None:
    """Without a finished run every comparison would succeed."""
    with pytest.raises(FileNotFoundError):
        Reference(tmp_path)
