"""The kinds of faults: each injects damage into a scene's folder, runs commands, and registers the repairs."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.disks import fill_the_disk, limit_files, make_read_only
from tests.chaos.files import (
    damage_a_checkpoint,
    damage_a_file_of_dvc,
    damage_an_input,
    damage_an_output,
    damage_the_cache,
    rot_a_file,
    vanish,
)
from tests.chaos.kills import run_two_at_once, signal_dvc, signal_the_group, signal_the_stage
from tests.chaos.scene import STAGES, Scene


def set_a_wrong_clock(scene: Scene) -> None:
    """Date files in another decade, and let the clock jump by years in both directions while stages run."""
    years = scene.random.choice((-30, -1, 1, 30))
    then = max(time.time() + years * 31_557_600, 1.0)
    for path in scene.folder.rglob("*"):
        if ".git" not in path.parts and scene.random.random() < 0.5:
            os.utime(path, (then, then), follow_symlinks=False)
    scene.notes |= {
        "fault": f"a clock wrong by {years} years",
        "place": "files and processes",
        "moment": "all the time",
    }
    scene.run("dvc", "repro", CHAOS_CLOCK=str(years * 31_557_600))


def leave_remains(scene: Scene) -> None:
    """Leave what dead processes may leave: unfinished folders, a held lock, partially written notes."""
    remains = {
        "data/.prepared.partial/train.jsonl": "{}\n",
        "data/.validated.partial/manifest.json": "{",
        "out/.adapter.partial/adapter_model.safetensors": "half",
        "out/.adapter.replaced/manifest.json": "{}",
        "reports/.decision.json.partial": '{"verdict": "dep',
        "work/pipeline.holder": '{"stage": "train", "process": 1}',
        "work/status.json": "",
        "work/detached.json": '{"pid": 1',
        "work/prepare/rows.jsonl": "{",
        "work/evaluate/0123.jsonl": "{",
        "work/checkpoints/0123456789abcdef/.partial/optimizer.pt": "half",
        "work/checkpoints/0123456789abcdef/checkpoint-3/manifest.json": "{",
    }
    chosen = scene.random.sample(sorted(remains), scene.random.randrange(2, len(remains)))
    for name in chosen:
        path = scene.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(remains[name], encoding="utf-8")
    scene.harmed += [*chosen, "out/adapter/manifest.json"]  # files moved to another name are restored, as after a kill
    scene.notes |= {"fault": f"{len(chosen)} remains", "place": ", ".join(chosen), "moment": "before the start"}
    scene.run(
        *(("dvc", "repro") if scene.random.random() < 0.5 or scene.state == len(STAGES) else (scene.next_stage(),))
    )


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and the numbers of finished stages after which it may start."""

    act: Callable[[Scene], None]
    states: Sequence[int]
    mounts: bool = False  # whether it needs permission to mount
    in_the_midst: bool = False  # it hits running processes, and may have no effect


BEFORE_ANY_STAGE = range(len(STAGES))
KINDS = {
    "signal to the stage": Kind(signal_the_stage, (0, 1, 2, 2, 3, 3, 4), in_the_midst=True),
    "signal to DVC": Kind(signal_dvc, (0, 1, 2, 3), in_the_midst=True),
    "signal to the group": Kind(signal_the_group, (0, 1, 2, 3), in_the_midst=True),
    "damaged input": Kind(damage_an_input, (0, 1, 5)),
    "damaged output": Kind(damage_an_output, (1, 2, 3, 4, 5)),
    "damaged checkpoint": Kind(damage_a_checkpoint, (2, 2, 3)),
    "bit rot": Kind(rot_a_file, (1, 2, 3, 4, 5)),
    "damaged cache": Kind(damage_the_cache, (5,)),
    "damaged params or lock": Kind(damage_a_file_of_dvc, (0, 2, 5)),
    "full disk: file size": Kind(limit_files, BEFORE_ANY_STAGE, in_the_midst=True),
    "full disk: tmpfs": Kind(fill_the_disk, BEFORE_ANY_STAGE, mounts=True, in_the_midst=True),
    "read-only folder": Kind(make_read_only, (1, 2, 3, 4), mounts=True, in_the_midst=True),
    "vanished file": Kind(vanish, BEFORE_ANY_STAGE, in_the_midst=True),
    "two at once": Kind(run_two_at_once, BEFORE_ANY_STAGE),
    "wrong clock": Kind(set_a_wrong_clock, (0, 2, 5)),
    "remains of the dead": Kind(leave_remains, (0, 1, 2, 3, 5)),
}
