"""The bundle's archive: a gzipped tar of one canonical form, written and read without ever trusting it.

The first member is `manifest.json`; the others follow in the order of their names, regular files alone, with no time,
owner or other mode, under one folder that is named like the archive. So the same members give the same bytes, and a
reader can demand every byte that is not content: what is not the header that the manifest calls for is refused before
anything is made of it, be it a link, a device, a path that leads out or a member too many.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from finetune.console import short
from finetune.errors import DataError
from finetune.files.atomic import sync_directory
from finetune.files.manifests import MANIFEST
from finetune.files.strict_json import parse_json

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
MANIFEST_BYTES = 4 << 20  # more than a manifest of ten thousand members
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # deflate, no name, no time, no system
LEVEL = 6  # of compression; weights hardly shrink at any
# Deflate can expand a thousandfold. Bundles come to 1 to 20: weights hardly shrink, reports and locks do.
MOST_EXPANSION = 100
SMALL = 16 << 20  # bytes that any archive may expand to
TOP = re.compile(r"finetune-[\w.-]{1,60}-[0-9a-f]{12}", re.ASCII)
# A member's name: letters that every file system takes, at most five folders deep, no part beginning with a dot.
MEMBER = re.compile(r"(?:\w[\w.+-]{0,99}/){0,5}\w[\w.+-]{0,99}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
# What a system reports where a file can't have such a name; all else (a full disk) is the machine's own trouble.
OF_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}

# ------------------------------------------------------------------------------------------------------------ writing


def header(name: str, size: int) -> bytes:
    """The blocks before a member's content: nothing of them depends on when, where or by whom they are written."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """The zeros after a content of this size, up to the next block."""
    return bytes(-size % BLOCK)


def write_archive(target: Path, top: str, manifest: Mapping[str, Any], sources: Mapping[str, Path | bytes]) -> None:
    """Write the archive under a temporary name, whole and synced; the caller renames it.

    `manifest["files"]` names each source's size and SHA-256; DataError where a file is another by now.
    """
    text = (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with target.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as file:
            file.write(header(f"{top}/{MANIFEST}", len(text)) + text + padding(len(text)))
            for name, expected in manifest["files"].items():
                file.write(header(f"{top}/{name}", expected["bytes"]))
                with open_source(sources[name]) as source:
                    if copy_bytes(source, file, expected["bytes"]) != expected["sha256"] or source.read(1):
                        remedy = "wait until nothing writes to it, then bundle again"
                        raise DataError(name, "changed while it was being bundled", remedy)
                file.write(padding(expected["bytes"]))
            file.write(bytes(2 * BLOCK))
        raw.flush()
        os.fsync(raw.fileno())


def open_source(source: Path | bytes) -> BinaryIO:
    """What a member is made of, to be read."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def copy_bytes(source: Any, target: Any, size: int) -> str:
    """Copy at most so many bytes from file to file; gives their SHA-256."""
    digest = hashlib.sha256()
    while size and (chunk := source.read(min(size, CHUNK))):
        digest.update(chunk)
        target.write(chunk)
        size -= len(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary sibling to write into, which takes the target's place on success and is removed otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
        sync_directory(target.parent)
    finally:
        partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ reading


class Inflated(io.RawIOBase):
    """What the one gzip member of a file expands to; unlike `gzip`, it refuses what follows it, zeros included."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.decoder = file, name, zlib.decompressobj(wbits=31)  # gzip's header and check sums

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.decoder.eof:
            packed = self.decoder.unconsumed_tail or self.file.read(CHUNK)
            if found := self.decoder.decompress(packed, len(buffer)):
                buffer[: len(found)] = found
                return len(found)
            if not packed and not self.decoder.eof:
                raise EOFError
        if self.decoder.unused_data or self.file.read(1):
            raise DataError(self.name, "has extra data after its end", "do not use it")
        return 0


def unpack(archive: BinaryIO, name: str, folder: Path) -> dict[str, Any]:
    """Unpack a bundle into an empty folder, every byte held against its manifest; gives the manifest.

    Raises DataError, which calls the archive by `name`, for anything that `write_archive` would not have written.
    """
    if archive.read(len(GZIP_HEADER)) != GZIP_HEADER:
        raise DataError(name, "is not a bundle, or was repacked or damaged", "ask for the file again")
    archive.seek(0)
    most = max(SMALL, MOST_EXPANSION * os.fstat(archive.fileno()).st_size)
    try:
        return unpack_members(io.BufferedReader(Inflated(archive, name), CHUNK), name, folder, most)
    except EOFError:
        raise DataError(name, "is cut off", "fetch it again") from None
    except zlib.error as error:
        raise DataError(name, f"is damaged ({error})", "fetch it again") from None
    except OSError as error:
        if error.errno not in OF_NAMES:
            raise
        raise DataError(name, f"a member's name can't be stored here ({error.strerror})", "do not use it") from None


def unpack_members(stream: io.BufferedReader, name: str, folder: Path, most: int) -> dict[str, Any]:
    """The members of a decompressed bundle, of at most `most` bytes in all."""
    top, text = read_manifest_member(stream, name)
    manifest = parse_manifest(text, name, most)
    (folder / MANIFEST).write_bytes(text)
    for member, expected in manifest["files"].items():
        other = f"another member is in the place of {member}"
        require_next(stream, header(f"{top}/{member}", expected["bytes"]), name, other)
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            digest = copy_bytes(stream, file, expected["bytes"])
        if digest != expected["sha256"]:
            raise DataError(name, f"{member} differs from the manifest (wrong hash)", "fetch it again")
        require_next(stream, padding(expected["bytes"]), name, "there is data between two members")
    require_next(stream, bytes(2 * BLOCK), name, "there is data after the last member")
    if stream.read(1):
        raise DataError(name, "has extra data after its end", "do not use it")
    return manifest


def require_next(stream: io.BufferedReader, expected: bytes, name: str, otherwise: str) -> None:
    """DataError, in the words of `otherwise`, unless the next bytes are the expected ones."""
    if stream.read(len(expected)) != expected:
        raise DataError(name, otherwise, "do not use it")


def read_manifest_member(stream: io.BufferedReader, name: str) -> tuple[str, bytes]:
    """(the top folder, the manifest's bytes), from the first member."""
    block = stream.read(BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        raise DataError(name, "is not a bundle: no tar archive inside", "./finetune bundle writes them") from None
    top, _, member = info.name.partition("/")
    is_manifest = member == MANIFEST and TOP.fullmatch(top) and 0 < info.size <= MANIFEST_BYTES
    if not is_manifest or block != header(info.name, info.size):
        raise DataError(name, f"is not a bundle: it begins with {short(info.name)!r}, not with a bundle's {MANIFEST}")
    text = stream.read(info.size)
    require_next(stream, padding(info.size), name, "there is data between two members")
    return top, text


def parse_manifest(text: bytes, name: str, most: int) -> dict[str, Any]:
    """The manifest, once its members' names and sizes are harmless; DataError where they are not."""
    try:
        manifest = parse_json(text.decode())
    except ValueError as error:
        raise DataError(name, f"its {MANIFEST} is broken ({short(str(error))})", "do not use it") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files or list(files) != sorted(files):
        raise DataError(name, f"its {MANIFEST} lists no files, or lists them out of order", "do not use it")
    for member, expected in files.items():
        require_harmless(member, expected, name)
    if len({MANIFEST, *map(str.lower, files)}) <= len(files):  # a Mac takes A for a
        raise DataError(name, f"its {MANIFEST} lists a file twice", "do not use it")
    if sum(expected["bytes"] for expected in files.values()) > most:
        raise DataError(name, f"claims to hold more than {most} bytes, the limit for a bundle", "do not use it")
    return dict(manifest)


def require_harmless(member: str, expected: Any, name: str) -> None:
    """DataError unless a member's name stays inside the folder, can be stored, and its entry has a size and a hash."""
    if not MEMBER.fullmatch(member):
        told = f"contains a member {short(member)!r}, which could escape its folder or is not a portable name"
        raise DataError(name, told, "do not use it")
    size, sha256 = (expected.get("bytes"), expected.get("sha256")) if isinstance(expected, dict) else (None, None)
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise DataError(name, f"its {MANIFEST} has no size or hash for {member!r}", "do not use it")
