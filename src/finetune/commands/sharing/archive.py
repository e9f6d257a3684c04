"""The bundle's archive: a gzipped tar of one canonical form, written and read without ever trusting it.

The first member is `manifest.json`; the others follow in the order of their names, regular files alone, with no time,
owner or other mode, under one folder that is named like the archive. So the same members give the same bytes, and a
reader can demand every byte that is no content: a header that is not the one that the manifest calls for is refused
before anything is made of it, be it a link, a device, a path that leads out or a member too many.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from finetune.commands.sharing.names import require_distinct, require_harmless
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
# What a system says of a name that its file system does not take; all else (a full disk) is the machine's own trouble.
OF_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}

# ------------------------------------------------------------------------------------------------------------ writing


def header(name: str, size: int) -> bytes:
    """The blocks before a member's content: nothing of them depends on when, where or by whom they are written."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> int:
    """Zeros after a content of this size, up to the next block."""
    return -size % BLOCK


def write_archive(target: Path, top: str, manifest: Mapping[str, Any], sources: Mapping[str, Path | bytes]) -> None:
    """Write the archive under a temporary name, whole and synced; the caller renames it.

    `manifest["files"]` names each source's size and SHA-256; DataError where a file is another by now.
    """
    text = (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with target.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as file:
            file.write(header(f"{top}/{MANIFEST}", len(text)) + text + bytes(padding(len(text))))
            for name, expected in manifest["files"].items():
                file.write(header(f"{top}/{name}", expected["bytes"]))
                copy_member(sources[name], file, name, expected)
                file.write(bytes(padding(expected["bytes"])))
            file.write(bytes(2 * BLOCK))
        raw.flush()
        os.fsync(raw.fileno())


def copy_member(source: Path | bytes, target: Any, name: str, expected: Mapping[str, Any]) -> None:
    """Copy one file; DataError where its bytes are not those that were hashed before."""
    digest, size = hashlib.sha256(), 0
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
    if size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
        raise DataError(name, "was changed while it was bundled", "wait for what writes it, then bundle again")


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


def unpack(archive: BinaryIO, name: str, folder: Path) -> dict[str, Any]:
    """Unpack a bundle into an empty folder, every byte held against its manifest; gives the manifest.

    Raises DataError, which calls the archive by `name`, for anything that `write_archive` would not have written.
    """
    size = os.fstat(archive.fileno()).st_size
    if archive.read(len(GZIP_HEADER))[:2] != GZIP_HEADER[:2]:
        raise DataError(name, "is no bundle: no gzip archive", "ask for the file again")
    archive.seek(0)
    if archive.read(len(GZIP_HEADER)) != GZIP_HEADER:
        raise DataError(
            name, "is not as ./finetune bundle wrote it: it was packed again or damaged", "ask for it again"
        )
    archive.seek(0)
    try:
        return unpack_members(Inflated(archive), name, folder, max(SMALL, MOST_EXPANSION * size))
    except EOFError:
        raise DataError(name, "is cut off", "fetch it again") from None
    except zlib.error as error:
        raise DataError(name, f"is damaged ({error})", "fetch it again") from None
    except OSError as error:
        if error.errno not in OF_NAMES:
            raise
        raise DataError(
            f"{name}", f"a member's name can't be stored here ({error.strerror})", "do not use it"
        ) from None


class Inflated:
    """What one gzip stream expands to, as much at a time as is asked for; unlike `gzip`, it knows what follows it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.decoder = file, zlib.decompressobj(wbits=31)  # gzip's header and check sums included

    def read(self, size: int) -> bytes:
        """At least one byte and at most `size` (above 0); none at the end. EOFError where the stream is cut off."""
        while not self.decoder.eof:
            packed = self.decoder.unconsumed_tail or self.file.read(CHUNK)
            if found := self.decoder.decompress(packed, size):
                return found
            if not packed and not self.decoder.eof:
                raise EOFError
        return b""

    def is_last(self) -> bool:
        """Whether the file ends where the stream does."""
        return self.decoder.eof and not self.decoder.unused_data and not self.file.read(1)


def unpack_members(stream: Inflated, name: str, folder: Path, most: int) -> dict[str, Any]:
    """The members of a decompressed bundle, of at most `most` bytes in all."""
    top, text = read_manifest_member(stream, name)
    manifest = parse_manifest(text, name, most)
    (folder / MANIFEST).write_bytes(text)
    for member, expected in manifest["files"].items():
        expect_header(stream, name, f"{top}/{member}", expected["bytes"])
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            digest = copy_exactly(stream, expected["bytes"], file.write)
        if digest != expected["sha256"]:
            raise DataError(
                f"{name}", f"{member} is not the file that the manifest names (its hash differs)", "fetch it again"
            )
        expect_zeros(stream, name, padding(expected["bytes"]))
    rest = read_exactly(stream, 2 * BLOCK)
    if rest != bytes(2 * BLOCK):
        raise DataError(
            f"{name}", f"{found_instead(rest[:BLOCK])} after the last member of its manifest", "do not use it"
        )
    if stream.read(1) or not stream.is_last():
        raise DataError(name, "more follows after its end", "do not use it")
    return manifest


def read_manifest_member(stream: Inflated, name: str) -> tuple[str, bytes]:
    """(the top folder, the manifest's bytes), from the first member."""
    block = read_exactly(stream, BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        raise DataError(name, "is no bundle: no tar archive inside", "./finetune bundle writes them") from None
    top, _, member = info.name.partition("/")
    if member != MANIFEST or not TOP.fullmatch(top) or not 0 < info.size <= MANIFEST_BYTES:
        raise DataError(name, f"is no bundle: it begins with {short(info.name)!r}, not with a bundle's {MANIFEST}")
    if block != header(info.name, info.size):
        raise DataError(name, f"{found_instead(block)} in the place of the manifest", "do not use it")
    text = read_exactly(stream, info.size)
    expect_zeros(stream, name, padding(info.size))
    return top, text


def parse_manifest(text: bytes, name: str, most: int) -> dict[str, Any]:
    """The manifest, once its members' names and sizes are harmless; DataError where they are not."""
    try:
        manifest = parse_json(text.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(name, f"its {MANIFEST} is broken ({short(str(error))})", "do not use it") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise DataError(name, f"its {MANIFEST} lists no files", "do not use it")
    if list(files) != sorted(files):
        raise DataError(name, f"its {MANIFEST} lists the files in disorder", "do not use it")
    total = 0
    for member, expected in files.items():
        require_harmless(member, expected, name)
        total += expected["bytes"]
    require_distinct(files, name)
    if total > most:
        raise DataError(name, f"claims to hold {total} bytes, {most} at most are believed of it", "do not use it")
    return dict(manifest)


def expect_header(stream: Inflated, name: str, member: str, size: int) -> None:
    """DataError unless the next blocks are the header of this member, to the byte."""
    try:
        expected = header(member, size)
    except (ValueError, OverflowError):
        raise DataError(
            f"{name}", f"names a member {short(member)!r} that no archive can hold", "do not use it"
        ) from None
    found = read_exactly(stream, len(expected))
    if found != expected:
        raise DataError(name, f"{found_instead(found[:BLOCK])} in the place of {short(member)}", "do not use it")


def expect_zeros(stream: Inflated, name: str, count: int) -> None:
    """DataError where something hides between two members."""
    if read_exactly(stream, count) != bytes(count):
        raise DataError(name, "something stands between two members", "do not use it")


def found_instead(block: bytes) -> str:
    """What a foreign header says that it is, for a person."""
    if block == bytes(len(block)):
        return "nothing stands"
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return "something that is no member stands"
    return f"{KINDS.get(info.type, 'a member')} {short(info.name)!r} stands"


def read_exactly(stream: Inflated, size: int) -> bytes:
    """So many bytes; EOFError where they end before."""
    found = b""
    while len(found) < size:
        chunk = stream.read(size - len(found))
        if not chunk:
            raise EOFError
        found += chunk
    return found


def copy_exactly(stream: Inflated, size: int, write: Callable[[bytes], object]) -> str:
    """Pass so many bytes on; gives their SHA-256, and raises EOFError where they end before."""
    digest = hashlib.sha256()
    while size:
        chunk = stream.read(min(size, CHUNK))
        if not chunk:
            raise EOFError
        digest.update(chunk)
        write(chunk)
        size -= len(chunk)
    return digest.hexdigest()
