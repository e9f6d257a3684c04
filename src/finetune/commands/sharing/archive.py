"""The bundle's archive: a gzipped tar in one canonical form, written and read without trusting its contents.

The first member is `manifest.json`. The others follow in order of their names: regular files only, without time, owner
or other modes, in one folder named like the archive. So the same members produce the same bytes, and a reader can
verify every byte outside the contents: a member whose header is not the one derived from the manifest is rejected
before anything is written, be it a link, a device, a path outside the folder or an extra member.
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
LEVEL = 6  # of compression; weights barely compress at any level
# Deflate can expand a thousandfold. Bundles expand 1 to 20 times: weights barely compress, reports and locks do.
MOST_EXPANSION = 100
SMALL = 16 << 20  # bytes that any archive may expand to
TOP = re.compile(r"finetune-[\w.-]{1,60}-[0-9a-f]{12}", re.ASCII)
# A member's name: characters that every file system supports, at most five folders deep, no part with a leading dot.
MEMBER = re.compile(r"(?:\w[\w.+-]{0,99}/){0,5}\w[\w.+-]{0,99}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
# Errors of a system that does not support such a name; any other error (e.g. a full disk) has its own cause.
OF_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}

# ------------------------------------------------------------------------------------------------------------ writing


def header(name: str, size: int) -> bytes:
    """Return the blocks before a member's content, which do not depend on when, where or by whom they are written."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """Return the zeros between the end of a content of this size and the next block."""
    return bytes(-size % BLOCK)


def write_archive(target: Path, top: str, manifest: Mapping[str, Any], sources: Mapping[str, Path | bytes]) -> None:
    """Write the complete archive under a temporary name and sync it; the caller renames it.

    `manifest["files"]` holds the size and SHA-256 of each source. Raises DataError if a file has changed since.
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
    """Open a member's source for reading."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def copy_bytes(source: Any, target: Any, size: int) -> str:
    """Copy at most `size` bytes from file to file; return their SHA-256."""
    digest = hashlib.sha256()
    while size and (chunk := source.read(min(size, CHUNK))):
        digest.update(chunk)
        target.write(chunk)
        size -= len(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that replaces the target on success and is removed otherwise."""
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
    """The decompressed content of a file's only gzip member; unlike `gzip`, it rejects trailing data, even zeros."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.decoder = file, name, zlib.decompressobj(wbits=31)  # with gzip's header and checksum

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.decoder.eof:
            packed = self.decoder.unconsumed_tail or self.file.read(CHUNK)
            if piece := self.decoder.decompress(packed, len(buffer)):
                buffer[: len(piece)] = piece
                return len(piece)
            if not packed and not self.decoder.eof:
                raise EOFError
        if self.decoder.unused_data or self.file.read(1):
            raise DataError(self.name, "has extra data after its end", "do not use it")
        return 0


def unpack(archive: BinaryIO, name: str, folder: Path) -> dict[str, Any]:
    """Unpack a bundle into an empty folder and verify every byte against its manifest; return the manifest.

    Raises DataError, naming the archive as `name`, for anything that `write_archive` would not have written.
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
    """Unpack the members of a decompressed bundle, of at most `most` bytes in total."""
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
    """Raise DataError with the message `otherwise` unless the next bytes are the expected ones."""
    if stream.read(len(expected)) != expected:
        raise DataError(name, otherwise, "do not use it")


def read_manifest_member(stream: io.BufferedReader, name: str) -> tuple[str, bytes]:
    """Read the first member; return (the top folder, the manifest's bytes)."""
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
    """Parse the manifest. Raise DataError if a member's name or size is unsafe."""
    try:
        manifest = parse_json(text.decode())
    except ValueError as error:
        raise DataError(name, f"its {MANIFEST} is broken ({short(str(error))})", "do not use it") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files or list(files) != sorted(files):
        raise DataError(name, f"its {MANIFEST} lists no files, or lists them out of order", "do not use it")
    for member, expected in files.items():
        require_harmless(member, expected, name)
    if len({MANIFEST, *map(str.lower, files)}) <= len(files):  # macOS does not distinguish A from a
        raise DataError(name, f"its {MANIFEST} lists a file twice", "do not use it")
    if sum(expected["bytes"] for expected in files.values()) > most:
        raise DataError(name, f"claims to exceed {most} bytes, the limit for a bundle", "do not use it")
    return dict(manifest)


def require_harmless(member: str, expected: Any, name: str) -> None:
    """Raise DataError unless a member's name is valid and inside the folder, and its entry has a size and a hash."""
    if not MEMBER.fullmatch(member):
        problem = f"contains a member {short(member)!r}, which could escape its folder or is not a portable name"
        raise DataError(name, problem, "do not use it")
    size, sha256 = (expected.get("bytes"), expected.get("sha256")) if isinstance(expected, dict) else (None, None)
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise DataError(name, f"its {MANIFEST} has no size or hash for {member!r}", "do not use it")
