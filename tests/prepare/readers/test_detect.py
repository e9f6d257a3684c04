"""Containers: every file format gives the same rows, or an error with the place and the remedy."""

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.prepare.readers import arrow_rows, batches, detect
from finetune.prepare.readers.batches import BadRow, Row
from finetune.prepare.readers.detect import Container, detect_container, disk_bytes, read_batches
from tests.builders.written_rows import LARGEST, error_of, read, texts, to_arrow, to_parquet

ROWS = [{"a": "x", "b": "1"}, {"a": 'zwei\nZeilen, "quoted"\tü', "b": ""}, {"a": "", "b": "\u2028🙂"}]


def to_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """Return the rows as Python's csv module writes them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_zstd(content: bytes) -> bytes:
    """Return the content compressed as one frame."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    squeezed: bytes = sink.getvalue().to_pybytes()
    return squeezed


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
    "rows.ndjson": lambda rows: "\r\n".join(json.dumps(row) for row in rows).encode(),
    "lines.json": lambda rows: "\n".join(json.dumps(row) for row in rows).encode(),
    "array.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "rows.csv": to_csv,
    "rows.tsv": lambda rows: to_csv(rows, "\t"),
    "rows.parquet": lambda rows: to_parquet(pa.Table.from_pylist(rows)),
    "stream.arrow": lambda rows: to_arrow(pa.Table.from_pylist(rows), pa.ipc.new_stream),
    "file.arrow": lambda rows: to_arrow(pa.Table.from_pylist(rows), pa.ipc.new_file),
}
TEXT = ("rows.jsonl", "lines.json", "array.json", "rows.csv", "rows.tsv")
SQUEEZE: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": to_zstd}


# ---- All containers


@pytest.mark.parametrize("suffix", SQUEEZE)
@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, suffix: str) -> None:
    """The file format must not change the training data."""
    path = tmp_path / (name + suffix)
    path.write_bytes(SQUEEZE[suffix](WRITERS[name](ROWS)))
    assert [row.fields for row in read(path) if isinstance(row, Row)] == ROWS


@pytest.mark.parametrize("name", TEXT)
def test_a_byte_order_mark_is_skipped(tmp_path: Path, name: str) -> None:
    """Windows tools write a byte order mark; it must not become part of the first line or column name."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + WRITERS[name](ROWS))
    assert [row.fields for row in read(tmp_path / name) if isinstance(row, Row)] == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_concatenated_compressed_files_are_read(tmp_path: Path, suffix: str) -> None:
    """`cat a.gz b.gz` is a valid file; a reader that stops after the first part would silently lose rows."""
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(SQUEEZE[suffix](b'{"a": 1}\n{"a"') + SQUEEZE[suffix](b": 2}\n"))
    assert read(path) == [Row(1, {"a": 1}), Row(2, {"a": 2})]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("lost", [1, 12])
def test_a_truncated_compressed_file_is_an_error(tmp_path: Path, name: str, suffix: str, lost: int) -> None:
    """An interrupted download has valid rows up to some point, but must not pass as complete."""
    path = tmp_path / (name + suffix)
    path.write_bytes(SQUEEZE[suffix](WRITERS[name](ROWS))[:-lost])
    with pytest.raises(DataError) as caught:
        read(path)
    why = "is truncated or damaged (Truncated compressed stream); download or write it again"
    assert str(caught.value) == f"{path}: {why}"


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_binary_file_is_an_error(tmp_path: Path, name: str, share: float) -> None:
    """pyarrow silently accepts an Arrow stream without its end."""
    content = WRITERS[name](ROWS)
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    assert error_of(tmp_path / name).startswith(f"{name}: is truncated or damaged (")


def test_an_arrow_stream_without_its_end_mark_is_an_error(tmp_path: Path) -> None:
    """A stream that ends right between two batches lacks only the mark."""
    (tmp_path / "rows.arrow").write_bytes(WRITERS["stream.arrow"](ROWS)[:-8])
    assert error_of(tmp_path / "rows.arrow").startswith("rows.arrow: is truncated or damaged (no end mark)")


@pytest.mark.parametrize("name", WRITERS)
def test_progress_ends_at_the_size_of_the_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress increases steadily and ends at the file's size."""
    for module in (batches, arrow_rows):
        monkeypatch.setattr(module, "BATCH_ROWS", 10)
    path = tmp_path / name
    path.write_bytes(WRITERS[name](ROWS * 20))
    container = detect_container(path)
    read_so_far = [batch.read_bytes for batch in read_batches(path, container, LARGEST)]
    assert len(read_so_far) >= 6
    assert read_so_far == sorted(read_so_far)
    assert 0.95 * path.stat().st_size <= read_so_far[-1] <= disk_bytes(path, container) == path.stat().st_size


@pytest.mark.parametrize("name", WRITERS)
def test_batches_are_small(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is sent to another process, so its size affects the planned memory."""
    for module in (batches, arrow_rows):
        monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    path = tmp_path / name
    path.write_bytes(WRITERS[name]([{"a": "x" * 90, "b": str(number)} for number in range(300)]))
    sizes = [len(batch.rows()) for batch in read_batches(path, detect_container(path), LARGEST)]
    assert sum(sizes) == 300
    assert max(sizes) <= 12


# ---- Detection of formats


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.gz", "rows.jsonl.bz2", ".jsonl"])
def test_an_unknown_file_format_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    """The format is not guessed from content, which would fail for some files; the user can rename the file."""
    (tmp_path / name).write_bytes(b'{"a": 1}\n')
    assert error_of(tmp_path / name) == (
        f"{name}: has an unsupported format; supported: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow "
        "(each optionally followed by .gz or .zst), and folders written by datasets' save_to_disk"
    )


def test_upper_case_file_names_are_recognised(tmp_path: Path) -> None:
    """Windows tools write ROWS.CSV."""
    (tmp_path / "ROWS.CSV.GZ").touch()
    assert detect_container(tmp_path / "ROWS.CSV.GZ") == Container("csv", "gzip")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{\n  "a": 1\n}\n', "over several lines; write an array of objects or one object per line"),
        (b'\n{"a": {"b":\n1}}', "over several lines; write an array of objects or one object per line"),
        (b"  \n\n", "contains only whitespace; add rows to it or remove it from data.sources"),
        (b"1\n2\n", "is neither a JSON array of objects nor JSON lines in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is neither a JSON array of objects nor JSON lines in UTF-8"),
    ],
)
def test_an_unsupported_json_file_is_reported(tmp_path: Path, content: bytes, why: str) -> None:
    """An indented object would otherwise give a broken row for each of its lines."""
    (tmp_path / "rows.json").write_bytes(content)
    assert error_of(tmp_path / "rows.json").endswith(why)


@pytest.mark.parametrize("content", [b'{"a": "x\n{"a": 2}', b'{"a": x}\n{"a": 2}', b'{"a":'])
def test_json_lines_may_start_with_a_broken_line(tmp_path: Path, content: bytes) -> None:
    """A bad first line is a single bad row like any other."""
    (tmp_path / "rows.json").write_bytes(content)
    assert isinstance(read(tmp_path / "rows.json")[0], BadRow)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_with_a_plain_name_is_reported(tmp_path: Path, suffix: str) -> None:
    """Otherwise every line would be a bad row."""
    (tmp_path / "rows.jsonl").write_bytes(SQUEEZE[suffix](b'{"a": 1}\n'))
    assert error_of(tmp_path / "rows.jsonl") == f"rows.jsonl: is compressed; add {suffix} to its name"


@pytest.mark.parametrize("name", WRITERS)
def test_an_unreadable_file_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    """The file may vanish between detection and reading; the error has no traceback."""
    container = Container(detect.KINDS[Path(name).suffix])
    with pytest.raises(DataError, match=r"is gone; restore it and start again$"):
        list(read_batches(tmp_path / name, container, LARGEST))
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"(can't be read|is truncated or damaged) \(.*\); "):
        list(read_batches(tmp_path / name, container, LARGEST))


def test_a_part_of_a_file_is_refused(tmp_path: Path) -> None:
    """Ignoring `part` could mean training on the test split."""
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    assert error_of(tmp_path / "rows.jsonl", "train") == (
        "rows.jsonl: is a single file, so it has no part 'train'; remove `part` from its source"
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
SCRAPS = [b"\n", b'"', b",", b"{", b"}", b"[", b"]", b":", b'{"a":1}', b"\r\n", b"\\", b"\xff", b"\xc3", b"1", b"NaN"]
scraps = st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=3), max_size=40).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for one file, which hypothesis overwrites repeatedly."""
    return tmp_path_factory.mktemp("any")


@pytest.mark.parametrize(
    ("name", "start"), [("rows.jsonl", b""), ("rows.csv", b"a,b\n"), ("rows.tsv", b""), ("rows.json", b"[")]
)
@given(content=scraps)
def test_arbitrary_bytes_give_rows_bad_rows_or_one_error(folder: Path, name: str, start: bytes, content: bytes) -> None:
    """No content raises anything else, and a line without a row is never silently skipped."""
    path = folder / name
    path.write_bytes(start + content)
    try:
        found = read(path, largest=60)
    except DataError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(str(path))
        assert name != "rows.jsonl" or "is compressed" in message
        return
    assert all(isinstance(row, Row | BadRow) for row in found)
    if name == "rows.jsonl":
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert [row.line for row in found] == [at for at, line in enumerate(lines, start=1) if line.strip()]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "array.json"])
@given(rows=st.lists(st.dictionaries(texts, values, max_size=4), max_size=6), blank=st.integers(0, 3))
def test_objects_survive_a_json_round_trip(folder: Path, name: str, rows: list[dict[str, Any]], blank: int) -> None:
    """Every value is preserved; JSON lines have their line number, array elements their position."""
    path = folder / name
    path.write_bytes(b"\n" * blank + (WRITERS[name](rows) if rows or name == "array.json" else b""))
    found = read(path, largest=10**6)
    assert [row.fields for row in found if isinstance(row, Row)] == rows
    first = 1 if name == "array.json" else 1 + blank
    assert [row.line for row in found] == list(range(first, first + len(rows)))


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "stream.arrow", "file.arrow"])
@given(rows=st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), min_size=1, max_size=6))
def test_texts_survive_a_table_round_trip(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Commas, quotes, tabs, line breaks and NUL inside a value are preserved."""
    path = folder / name
    path.write_bytes(WRITERS[name](rows))
    assert [row.fields for row in read(path, largest=10**6) if isinstance(row, Row)] == rows


# ---- Memory


def bomb_line() -> Iterator[bytes]:
    """Yield 60 MB without a newline between two rows."""
    yield b'{"a": 1}\n'
    yield from [b"x" * 10**6] * 60
    yield b'\n{"a": 2}\n'


@pytest.fixture
def hard_files(tmp_path: Path) -> Path:
    """Create files that would take gigabytes if they were read at once."""
    with (tmp_path / "line.jsonl").open("wb") as file:
        file.writelines(bomb_line())
    spaces = gzip.compress(b" " * 10**7) * 15
    for name, start in {"a.jsonl": b"", "b.json": b"[", "c.csv": b"a\n"}.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(start) + spaces)
    big = pa.array(["x" * 1_000_000], pa.string())  # shared by 3,000 rows: 3 GB in memory, 1 MB on disk
    shared = pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0] * 3_000, pa.int32()), big)})
    (tmp_path / "d.arrow").write_bytes(to_arrow(shared, pa.ipc.new_stream))
    return tmp_path


MEASURE = """
import resource, sys
from itertools import islice
from pathlib import Path
from finetune.errors import DataError
from finetune.prepare.readers.detect import Container, detect_container, read_batches
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    kind = "json_array" if path.name == "b.json.gz" else None
    container = Container(kind, "gzip") if kind else detect_container(path)
    try:
        print(path.name, sum(len(batch.rows()) for batch in islice(read_batches(path, container, 12_000_000), 20)))
    except DataError as error:
        print(str(error).replace(sys.argv[1] + "/", ""))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown // (1024 if sys.platform == "linux" else 2**20))
"""


def test_memory_does_not_grow_with_the_file(hard_files: Path) -> None:
    """A line of 60 MB, 150 MB of spaces and 3 GB from a shared text are read with less than 600 MB more."""
    source = Path(detect.__file__).parents[3]
    command = [sys.executable, "-c", MEASURE, str(hard_files)]
    done = subprocess.run(command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True)
    *message, grown = done.stdout.splitlines()
    assert message == [
        "a.jsonl.gz 1",
        (
            "b.json.gz:1: the file ends in or after element 1, before `]`; the rest of the file "
            "can't be read: fix it, or write the file as JSON lines"
        ),
        (
            "c.csv.gz:2: the record starting here is larger than data.max_row_size: 12 MB, or has an "
            "unclosed quote; fix it, or write the file as JSON lines"
        ),
        "d.arrow 20",
        "line.jsonl 3",
    ]
    assert int(grown) < 600
