"""What can happen to a file, and what takes it away again."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

GARBAGE = b"\x00\xff{]<<<<<<< HEAD\n\x1b[2J"


def truncate(path: Path, random: Random) -> None:
    """Its end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))] if content else b"")


def flip(path: Path, random: Random) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes() or b"\0")
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def empty(path: Path, random: Random) -> None:
    """It has no byte."""
    path.write_bytes(b"")


def remove(path: Path, random: Random) -> None:
    """It is gone."""
    path.unlink()


def replace_by_folder(path: Path, random: Random) -> None:
    """A folder has its name."""
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("not a file\n", encoding="utf-8")


def fill_with_garbage(path: Path, random: Random) -> None:
    """A part of it is something else."""
    content = bytearray(path.read_bytes())
    at = random.randrange(len(content) + 1)
    content[at : at + len(GARBAGE)] = GARBAGE
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Random], None]] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "emptied": empty,
    "removed": remove,
    "a folder in its place": replace_by_folder,
    "garbage inside": fill_with_garbage,
}


def kept(path: Path, aside: Path) -> Callable[[], None]:
    """Keep a file or folder aside; gives what puts it back, times included."""
    if path.is_dir():
        shutil.copytree(path, aside, symlinks=True)
    else:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, aside)

    def put_back() -> None:
        clear(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if aside.is_dir():
            shutil.copytree(aside, path, symlinks=True)
        else:
            shutil.copy2(aside, path)

    return put_back


def clear(path: Path) -> None:
    """Nothing has this name any more."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rot(path: Path, random: Random) -> None:
    """A bit flips on the disk: size, times and permissions stay, so that only who reads the bytes can know."""
    state = path.stat()
    path.chmod(0o644)
    flip(path, random)
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
