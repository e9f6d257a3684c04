"""Arrow and Parquet: cut record batches into small batches of rows, with the names of their class labels."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from finetune.errors import DataError
from finetune.files.strict_json import parse_json
from finetune.prepare.readers.batches import BATCH_BYTES, BATCH_ROWS, BadRow, Batch, Row, too_large
from finetune.prepare.readers.compression import BUFFER, Compression, expanded, read_errors_at

HELD = 1 << 28  # bytes that may be decoded at once if rows share values
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

# How to turn a column's numbers into names: a ClassLabel's names, `json`, or the same for the fields of a struct.
Names = tuple[str, ...] | Literal["json"] | dict[str, "Names"]
# Yields the record batches of a file, and the fraction of the file read so far.
Opener = Callable[[Path, str], Iterator[tuple[pa.RecordBatch, float]]]


@dataclass(frozen=True, slots=True)
class ArrowBatch:
    """Some rows as an Arrow stream, and the names of its ClassLabel columns."""

    read_bytes: int
    first: int
    stream: bytes
    names: Names | None

    def rows(self) -> list[Row | BadRow]:
        """Return rows of Python values; one that cannot be converted (broken UTF-8, an impossible date) is a BadRow."""
        batch = pa.ipc.open_stream(self.stream).read_next_batch()
        try:
            values = batch.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException):
            return [self._row(number, batch.slice(number, 1)) for number in range(batch.num_rows)]
        if self.names is None:
            return [Row(number, value) for number, value in enumerate(values, self.first)]
        return [self._row(number, value) for number, value in enumerate(values)]

    def _row(self, number: int, row: Any) -> Row | BadRow:
        try:
            fields = row.to_pylist()[0] if isinstance(row, pa.RecordBatch) else row
            return Row(self.first + number, fields if self.names is None else _put_names(fields, self.names))
        except UnicodeDecodeError:
            return BadRow(self.first + number, "not UTF-8")
        except (ValueError, OverflowError, pa.ArrowException) as error:
            return BadRow(self.first + number, f"contains a value that can't be read: {str(error)[:200]}")


@dataclass(frozen=True, slots=True)
class TooLargeBatch:
    """A single row that is too large."""

    read_bytes: int
    bad: BadRow

    def rows(self) -> list[Row | BadRow]:
        """Return a BadRow for it."""
        return [self.bad]


def file_batches(path: Path, compression: Compression | None, read: Opener, max_row_bytes: int) -> Iterator[Batch]:
    """Yield batches of a Parquet or Arrow file."""
    with read_errors_at(str(path)), expanded(path, compression) as file:
        size = path.stat().st_size
        found = ((batch, int(size * share)) for batch, share in read(file, str(path)))
        yield from arrow_batches(found, str(path), max_row_bytes)


def arrow_batches(found: Iterable[tuple[pa.RecordBatch, int]], where: str, max_row_bytes: int) -> Iterator[Batch]:
    """Cut record batches, each with the bytes read up to its end, into small ones. Raise DataError for bad columns."""
    first, names, schema = 1, None, None
    with read_errors_at(where):
        for batch, read_bytes in found:
            if schema is None or batch.schema != schema:
                schema = batch.schema
                plain, names = _plain_schema(schema, where), _feature_names(schema.metadata)
            for piece in _small(batch, plain, min(BATCH_BYTES, max_row_bytes)):
                if piece.num_rows == 1 and piece.nbytes > max_row_bytes:
                    yield TooLargeBatch(read_bytes, BadRow(first, f"is {too_large(max_row_bytes)}"))
                else:
                    yield ArrowBatch(read_bytes, first, _to_bytes(piece), names)
                first += piece.num_rows


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _small(batch: pa.RecordBatch, plain: pa.Schema, size: int) -> Iterator[pa.RecordBatch]:
    """Cut the batch into pieces of this size, or single rows, and expand dictionaries (few bytes may encode many)."""
    rows = BATCH_ROWS
    if batch.num_rows and not plain.equals(batch.schema):
        rows = max(1, min(BATCH_ROWS, HELD // max(1, batch.slice(0, 1).nbytes)))
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        yield from _halves(piece.cast(plain), size)


def _halves(batch: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    if batch.num_rows <= 1 or batch.nbytes <= size:
        yield batch
        return
    middle = batch.num_rows // 2
    yield from _halves(batch.slice(0, middle), size)
    yield from _halves(batch.slice(middle), size)


def _plain_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """Return the schema without shared values. Raise DataError for duplicate names or types that cannot form rows."""
    names = schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(where, f"two columns have the name {twice!r}", "give each column a unique name")
    fields = []
    for field in schema:
        try:
            fields.append(pa.field(field.name, _plain(field.type)))
        except TypeError as error:
            raise DataError(where, f"column {field.name!r} is of type {error}", "write it as a list or text") from None
    return pa.schema(fields)


def _plain(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_run_end_encoded(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        raise TypeError(str(kind)[:80])  # pyarrow cannot expand the former and expands the latter wrongly
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type), field.nullable) for field in kind])
    if types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    for is_kind, make in ((types.is_list, pa.list_), (types.is_large_list, pa.large_list)):
        if is_kind(kind):
            return make(pa.field(kind.value_field.name, _plain(kind.value_type), kind.value_field.nullable))
    return kind


def _feature_names(metadata: dict[bytes, bytes] | None) -> Names | None:
    """Return the names that `datasets` wrote into the schema, or None if there are none that are valid."""
    try:
        features = parse_json((metadata or {})[b"huggingface"].decode("utf-8"))["info"]["features"]
        return _names_of(features)
    except (KeyError, ValueError, TypeError, RecursionError):
        return None


def _names_of(feature: Any) -> Names | None:
    if isinstance(feature, list) and len(feature) == 1:
        return _names_of(feature[0])
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return tuple(map(str, feature["names"])) if feature.get("names") else None
    if kind == "Json":
        return "json"
    if isinstance(kind, str):
        return _names_of(feature.get("feature"))
    named = {key: names for key, value in feature.items() if (names := _names_of(value)) is not None}
    return named or None


def _put_names(value: Any, names: Names) -> Any:
    """Replace numbers by names; -1 means no label. Raise ValueError if a number has no name."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_put_names(item, names) for item in value]
    if isinstance(names, dict):
        if not isinstance(value, dict):
            return value
        return {key: _put_names(item, names[key]) if key in names else item for key, item in value.items()}
    if names == "json":
        return parse_json(value) if isinstance(value, str) else value
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise ValueError(f"label {value} is not one of the {len(names)} named labels")
    return names[value]


def arrow_file(path: Path, where: str) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Yield record batches of a file in Arrow's file or stream format, with the fraction of the file read so far.

    The file is memory-mapped, so that the memory of a record batch of any size can be reclaimed.
    """
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.memory_map(str(path)) as file:
        size = file.size()
        if file.read(6) == b"ARROW1":
            with pa.ipc.open_file(file, options=options) as reader:
                for at in range(reader.num_record_batches):
                    yield _checked(reader.get_batch(at)), (at + 1) / reader.num_record_batches
            return
        file.seek(0)
        with pa.ipc.open_stream(file, options=options) as stream:
            for batch in stream:
                yield _checked(batch), file.tell() / size
        file.seek(max(0, file.tell() - len(END_OF_STREAM)))
        if file.read(len(END_OF_STREAM)) != END_OF_STREAM:  # it was truncated between two batches
            raise DataError(where, "is truncated or damaged (no end mark)", "download or write it again")


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch after checking its offsets: pyarrow would follow invalid ones out of bounds."""
    batch.validate(full=True)
    return batch


def parquet_file(path: Path, where: str) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Yield record batches of a Parquet file, with the fraction of the rows read so far."""
    # Without the first two options, a complete row group is held in memory, however large it is.
    options = {"pre_buffer": False, "buffer_size": BUFFER, "page_checksum_verification": True}
    with pa.parquet.ParquetFile(path, **options) as file:
        rows, groups, done = file.metadata.num_rows, range(file.num_row_groups), 0
        row_bytes = sum(file.metadata.row_group(at).total_byte_size for at in groups) // max(1, rows)
        at_once = max(1, min(BATCH_ROWS, 16 * BATCH_BYTES // max(1, row_bytes)))
        for batch in file.iter_batches(batch_size=at_once, use_threads=False):
            done += batch.num_rows
            yield batch, done / rows
        if done != rows:
            raise DataError(where, f"is truncated or damaged ({done} of {rows} rows readable)", "fetch it again")
