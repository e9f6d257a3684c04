"""Names out of a stranger's list of files, checked before anything is written or read under them."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from finetune.console import short
from finetune.errors import DataError
from finetune.files.manifests import MANIFEST

SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_PART = 255  # bytes: more than that no common file system takes
MOST_PATH = 512  # bytes: leaves room for the folder that it is unpacked in, where a path may have 1024 (macOS)
MOST_PARTS = 16  # folders in one another; ours have 4. Removing them keeps each one open
MOST_SIZE = (1 << 63) - 1  # bytes; sums of numbers without a bound could become too long to be told


def require_harmless(member: str, expected: Any, name: str) -> None:
    """DataError unless a member's name stays inside the folder, can be stored, and its entry has a size and a hash."""
    parts = member.split("/")
    if not member.isprintable() or "\\" in member or ":" in member or any(part in ("", ".", "..") for part in parts):
        raise DataError(
            f"{name}", f"names a member {short(member)!r}, which could lead out of its folder", "do not use it"
        )
    longest = max(len(part.encode()) for part in parts)
    if longest > MOST_PART or len(member.encode()) > MOST_PATH or len(parts) > MOST_PARTS:
        raise DataError(name, f"names a member {short(member)!r}, which is too long to be stored", "do not use it")
    size, sha256 = (expected.get("bytes"), expected.get("sha256")) if isinstance(expected, dict) else (None, None)
    sized = type(size) is int and 0 <= size <= MOST_SIZE
    if member == MANIFEST or not sized or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise DataError(name, f"its {MANIFEST} has no size and hash of {short(member)!r}", "do not use it")


def require_distinct(members: Iterable[str], name: str) -> None:
    """DataError where two members, or a member and another's folder, share a place on some file system.

    A Mac's takes two names for one that differ in case or in how Unicode composes a letter.
    """
    taken = {MANIFEST: (MANIFEST, True)}
    for member in members:
        parts = member.split("/")
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            entry = (path, count == len(parts))
            other, _ = found = taken.setdefault(folded(path), entry)
            if found != entry:
                told = f"{short(other)!r} and {short(member)!r}"
                raise DataError(name, f"names members {told}, which can't lie side by side", "do not use it")


def folded(path: str) -> str:
    """What paths share that a file system may take for one: Unicode's canonical caseless match."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())
