"""Open files, compressed or not; each failure is reported in one line."""

import codecs
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa

from finetune.errors import DataError

Compression = Literal["gzip", "zstd"]

COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
STARTS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}  # the first bytes of compressed files
MARK = codecs.BOM_UTF8
BUFFER = 1 << 18  # bytes read from a file at once


@contextmanager
def read_errors_at(where: str) -> Iterator[None]:
    """Turn errors of the system and of pyarrow into one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(where, "is gone", "restore it and start again") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or os.strerror(error.errno)
            raise DataError(where, f"can't be read ({reason})", "check its permissions and its disk") from None
        # Without an error number, it is an error of pyarrow about the file's content.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(where, f"is truncated or damaged ({reason})", "download or write it again") from None


@dataclass(frozen=True, slots=True)
class OpenText:
    """An open text file without its byte order mark."""

    where: str
    file: BinaryIO  # as on disk
    stream: BinaryIO  # decompressed
    start: int  # bytes of the mark

    @property
    def read_bytes(self) -> int:
        """The bytes of the file on disk read so far."""
        return self.file.tell()


@contextmanager
def open_text(path: Path, compression: Compression | None) -> Iterator[OpenText]:
    """Open a text file after its byte order mark. Raise DataError if it is compressed and its name does not say so."""
    with read_errors_at(str(path)), path.open("rb", buffering=0) as file:
        stream = io.BufferedReader(pa.CompressedInputStream(file, compression) if compression else file, BUFFER)
        head = stream.peek(4)
        for suffix, start in STARTS.items():
            if compression is None and head.startswith(start):
                raise DataError(path, "is compressed", f"add {suffix} to its name")
        marked = len(MARK) if head.startswith(MARK) else 0
        stream.read(marked)
        yield OpenText(str(path), file, stream, marked)


@contextmanager
def expanded(path: Path, compression: Compression | None) -> Iterator[Path]:
    """Yield the file, or a temporary decompressed copy of it, for formats that need to seek."""
    if compression is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        copy = Path(folder) / "expanded"
        with read_errors_at(str(path)), path.open("rb", buffering=0) as file, copy.open("wb") as target:
            shutil.copyfileobj(pa.CompressedInputStream(file, compression), target, BUFFER)
        yield copy
