"""Parquet: the record batches of a file, with as little of a row group in memory as its dictionaries allow."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from finetune.errors import DataError
from finetune.prepare.readers.arrow_rows import HELD
from finetune.prepare.readers.batches import BATCH_BYTES, BATCH_ROWS
from finetune.prepare.readers.compression import BUFFER, check_expansion


def parquet_file(path: Path, where: str) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Record batches and the share of the rows that was read."""
    # Without the first two options a whole row group is held, however large it is.
    options = {"pre_buffer": False, "buffer_size": BUFFER, "page_checksum_verification": True}
    with pa.parquet.ParquetFile(path, **options) as file:
        footer = file.metadata
        groups = [footer.row_group(at) for at in range(footer.num_row_groups)]
        expanded = sum(max(group.num_rows, group.total_byte_size) for group in groups)
        check_expansion(where, expanded, path.stat().st_size)
        done = 0
        for batch in _glued(batch for at in range(len(groups)) for batch in _group(file, at, path, where)):
            done += batch.num_rows
            yield batch, done / max(1, footer.num_rows)
        if done != footer.num_rows:
            raise DataError(where, f"is cut off or damaged ({done} of {footer.num_rows} rows)", "fetch it again")


def _group(file: Any, at: int, path: Path, where: str) -> Iterator[pa.RecordBatch]:
    """The record batches of a row group."""
    # To look at a column of a damaged footer ends the process; to read it first ends in an error.
    next(file.iter_batches(batch_size=1, row_groups=[at], use_threads=False), None)
    rows = _rows_at_once(path, file.metadata.row_group(at), where)
    yield from file.iter_batches(batch_size=rows, row_groups=[at], use_threads=False)


def _glued(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of the usual size from those that had to be read in fewer rows."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        together = [*held, batch]
        if sum(one.num_rows for one in together) > BATCH_ROWS or sum(one.nbytes for one in together) > BATCH_BYTES:
            yield from [pa.concat_batches(held)] if held else []
            together = [batch]
        held = together
    if held:
        yield pa.concat_batches(held)


def _rows_at_once(path: Path, group: Any, where: str) -> int:
    """How many rows of a row group may be decoded at once; DataError where it expands absurdly."""
    columns = [group.column(at) for at in range(group.num_columns)]
    values = sum(max(column.num_values, column.total_uncompressed_size) for column in columns)
    check_expansion(where, values, path.stat().st_size)
    with path.open("rb") as file:
        shared = sum(_dictionary_bytes(file, column) for column in columns)
    own = int(group.total_byte_size) // max(1, int(group.num_rows))
    return max(1, min(BATCH_ROWS, 16 * BATCH_BYTES // max(1, own), HELD // max(1, shared)))


def _dictionary_bytes(file: BinaryIO, column: Any) -> int:
    """The size of a column's dictionary, any entry of which may stand in every row.

    The footer does not say it; the page's header does, which starts with three numbers in Thrift's compact form: what
    kind of page it is (2 is a dictionary), its size, its compressed size.
    """
    if column.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return 0
    file.seek(max(0, min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)))
    head = re.match(rb"\x15([\x80-\xff]*[\x00-\x7f])\x15([\x80-\xff]*[\x00-\x7f])", file.read(24), re.DOTALL)
    if head is None:
        return int(column.total_uncompressed_size)
    kind, size = (sum((byte & 127) << 7 * at for at, byte in enumerate(number)) >> 1 for number in head.groups())
    return size if kind == 2 else 0
