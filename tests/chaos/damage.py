"""Kinds of damage to a file, and the functions that undo them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

GARBAGE = b"\x00\xff{]<<<<<<< HEAD\n\x1b[2J"


def truncate(path: Path, random: Random) -> None:
    """Cut off the end."""
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))] if content else b"")


def flip(path: Path, random: Random) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes() or b"\0")
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def empty(path: Path, random: Random) -> None:
    """Remove all bytes."""
    path.write_bytes(b"")


def remove(path: Path, random: Random) -> None:
    """Delete the file."""
    path.unlink()


def replace_by_folder(path: Path, random: Random) -> None:
    """Put a folder in place of the file."""
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("not a file\n", encoding="utf-8")


def fill_with_garbage(path: Path, random: Random) -> None:
    """Overwrite a part with random bytes."""
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
    """Copy a file or folder aside; return a function that restores it with its times."""
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
    """Delete whatever has this name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rot(path: Path, random: Random) -> None:
    """Flip a bit as on a failing disk: size, times and permissions stay, so only reading the bytes reveals it."""
    state = path.stat()
    path.chmod(0o644)
    flip(path, random)
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
