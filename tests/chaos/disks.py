"""Disk faults: a file size limit, a full disk, a read-only folder."""

import os
import resource
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.chaos.scene import Scene

ROOM = 256 << 20  # free space of the small disk: validate and train need some to spare


def can_mount() -> bool:
    """Return whether this process may mount a file system."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def mount(*words: str) -> None:
    """Mount something; a failure is an error of the test, not of the pipeline."""
    subprocess.run(["mount", *words], check=True, capture_output=True)


def unmount(place: Path) -> None:
    """Unmount, even if a process still uses the mount."""
    subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def keep_disk(place: Path) -> list[str]:
    """Copy a mounted disk's content to its mount point before it is unmounted; return why that failed, if it did."""
    if not place.exists() or place.stat().st_dev == place.parent.stat().st_dev:
        return []  # a read-only folder stays in place
    aside = place.with_name("kept")
    try:
        shutil.copytree(place, aside, symlinks=True, ignore=shutil.ignore_patterns("ballast"))
        unmount(place)
        place.rmdir()
        aside.rename(place)
    except (OSError, shutil.Error) as error:
        return [f"what lay on the small disk is gone, or in part in {aside}: {str(error)[:200]}"]
    return []


def limit_files(scene: Scene) -> None:
    """Limit the size of files, from the start or from a certain moment."""
    limit = int(2 ** scene.random.uniform(7, 15))
    by_dvc = scene.random.random() < 0.4
    words = ("dvc", "repro") if by_dvc else (scene.next_stage(),)
    scene.notes |= {"fault": f"no file beyond {limit} bytes", "place": scene.next_stage()}
    if scene.random.random() < 0.5:
        scene.notes["moment"] = "from the start"
        scene.run(*words, limit=limit)
        return
    moment = scene.draw_moment(scene.next_stage())
    scene.notes["moment"] = str(moment)
    running = scene.start(*words)
    if scene.wait_for(moment, running) and (held := scene.holder()):
        with suppress(ProcessLookupError):
            resource.prlimit(held[1], resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    scene.finish(running)


def fill_the_disk(scene: Scene) -> None:
    """Put the folder on a small disk, and fill that at a certain moment up to a few bytes."""
    left = scene.random.choice((0, 0, int(2 ** scene.random.uniform(9, 16))))
    place = scene.folder
    scene.copying = True
    aside = place.with_name("elsewhere")
    place.rename(aside)
    place.mkdir()
    used = sum(path.lstat().st_blocks * 512 + 4096 for path in aside.rglob("*"))
    mount("-t", "tmpfs", "-o", f"size={used + ROOM}", "tmpfs", str(place))
    scene.mounts.append(place)
    shutil.copytree(aside, place, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(aside)
    scene.copying = False
    by_dvc = scene.random.random() < 0.5
    moment = scene.draw_moment(scene.next_stage())
    scene.notes |= {"fault": f"{left} bytes are left", "place": moment.stage, "moment": str(moment)}
    if early := scene.random.random() < 0.3:
        scene.notes["moment"] = "from the start"
        eat(place, left)
    running = scene.start(*(("dvc", "repro") if by_dvc else (scene.next_stage(),)))
    if not early and scene.wait_for(moment, running):
        eat(place, left)
    scene.finish(running)
    scene.repairs.append(lambda: (place / "work/ballast").unlink(missing_ok=True))


def eat(folder: Path, left: int) -> None:
    """Fill a disk, leaving this number of bytes free."""
    path = folder / "work/ballast"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        size = max(shutil.disk_usage(folder).free - left, 0)
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, size)


def make_read_only(scene: Scene) -> None:
    """Make a folder read-only, from the start or from a certain moment."""
    there = [name for name in ("data", "reports", "out", "work", ".dvc", ".") if (scene.folder / name).is_dir()]
    place = scene.folder / scene.random.choice(there)
    by_dvc = scene.random.random() < 0.5
    moment = scene.draw_moment(scene.next_stage())
    name = place.relative_to(scene.folder).as_posix()
    scene.notes |= {"fault": "read-only", "place": name, "moment": str(moment)}

    def lock() -> None:
        mount("--bind", str(place), str(place))
        mount("-o", "remount,bind,ro", str(place))
        scene.mounts.append(place)

    scene.repairs.append(lambda: unmount(place))
    if early := scene.random.random() < 0.6 or name == ".":  # a process inside the folder would bypass a mount
        scene.notes["moment"] = "from the start"
        lock()
    running = scene.start(*(("dvc", "repro") if by_dvc else (scene.next_stage(),)))
    if not early and scene.wait_for(moment, running):
        lock()
    scene.finish(running)
