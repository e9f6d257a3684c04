"""Containers: whatever a file is written in, the same rows come out, or its place and what to do about it."""

import csv
import gzip
import io
import json
import pickle
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
from finetune.prepare import arrow_rows, batches, containers, json_rows, parquet_rows
from finetune.prepare.batches import BadRow, Row
from finetune.prepare.containers import Container, detect_container, disk_bytes, read_batches

LARGEST = 10_000
ROWS = [{"a": "x", "b": "1"}, {"a": 'zwei\nZeilen, "quoted"\tü', "b": ""}, {"a": "", "b": "\u2028🙂"}]


def read(path: Path, part: str | None = None, largest: int = LARGEST) -> list[Row | BadRow]:
    """All rows of a file, each batch after a journey to another process and back."""
    found: list[Row | BadRow] = []
    for batch in read_batches(path, detect_container(path), largest, part):
        found += pickle.loads(pickle.dumps(batch)).rows()
    return found


def error_of(path: Path, part: str | None = None, largest: int = LARGEST) -> str:
    """The text of the DataError that reading ends with, without the folder."""
    with pytest.raises(DataError) as caught:
        read(path, part, largest)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def to_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """As Python's csv module writes them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_arrow(table: pa.Table, new: Callable[..., Any]) -> bytes:
    """In Arrow's file or stream format."""
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    """As pyarrow writes it."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, **options)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def to_zstd(content: bytes) -> bytes:
    """One frame."""
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


# ---- All of them


@pytest.mark.parametrize("suffix", SQUEEZE)
@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, suffix: str) -> None:
    """What a file is written in must not change what is trained on."""
    path = tmp_path / (name + suffix)
    path.write_bytes(SQUEEZE[suffix](WRITERS[name](ROWS)))
    assert [row.fields for row in read(path) if isinstance(row, Row)] == ROWS


@pytest.mark.parametrize("name", TEXT)
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str) -> None:
    """What Windows tools write; it would break the first line or become part of the first column's name."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + WRITERS[name](ROWS))
    assert [row.fields for row in read(tmp_path / name) if isinstance(row, Row)] == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_may_be_put_together(tmp_path: Path, suffix: str) -> None:
    """`cat a.gz b.gz` is a sound file; a reader that stops after the first part would lose rows in silence."""
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(SQUEEZE[suffix](b'{"a": 1}\n{"a"') + SQUEEZE[suffix](b": 2}\n"))
    assert read(path) == [Row(1, {"a": 1}), Row(2, {"a": 2})]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("lost", [1, 12])
def test_a_compressed_file_that_was_cut_off_is_an_error(tmp_path: Path, name: str, suffix: str, lost: int) -> None:
    """A download that broke off holds sound rows up to some point: they must not pass for the whole."""
    path = tmp_path / (name + suffix)
    path.write_bytes(SQUEEZE[suffix](WRITERS[name](ROWS))[:-lost])
    with pytest.raises(DataError) as caught:
        read(path)
    why = "is cut off or damaged (Truncated compressed stream); fetch it or write it again"
    assert str(caught.value) == f"{path}: {why}"


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_binary_file_that_was_cut_off_is_an_error(tmp_path: Path, name: str, share: float) -> None:
    """An Arrow stream that lacks its end reads without a word in pyarrow."""
    content = WRITERS[name](ROWS)
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    assert error_of(tmp_path / name).startswith(f"{name}: is cut off or damaged (")


def test_an_arrow_stream_without_its_end_mark_is_an_error(tmp_path: Path) -> None:
    """Cut off right between two batches nothing but the mark is missing."""
    (tmp_path / "rows.arrow").write_bytes(WRITERS["stream.arrow"](ROWS)[:-8])
    assert error_of(tmp_path / "rows.arrow").startswith("rows.arrow: is cut off or damaged (no end mark)")


@pytest.mark.parametrize("name", WRITERS)
def test_bytes_read_lead_to_the_size_of_the_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar that stands still, goes back or past the end is none."""
    for module in (batches, arrow_rows, parquet_rows):
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
    """Each is sent to another process and held there: its size is what memory is planned with."""
    for module in (batches, arrow_rows, parquet_rows):
        monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    path = tmp_path / name
    path.write_bytes(WRITERS[name]([{"a": "x" * 90, "b": str(number)} for number in range(300)]))
    sizes = [len(batch.rows()) for batch in read_batches(path, detect_container(path), LARGEST)]
    assert sum(sizes) == 300
    assert max(sizes) <= 12


# ---- What a file is


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.gz", "rows.jsonl.bz2", ".jsonl"])
def test_an_unknown_file_is_told_what_is_known(tmp_path: Path, name: str) -> None:
    """Guessing at content would read some files wrongly; the name is one `mv` away."""
    (tmp_path / name).write_bytes(b'{"a": 1}\n')
    assert error_of(tmp_path / name) == (
        f"{name}: is nothing that can be read; known are .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow "
        "(each also with .gz or .zst after it) and folders that datasets' save_to_disk wrote"
    )


def test_names_are_known_in_capitals_too(tmp_path: Path) -> None:
    """Windows tools write ROWS.CSV."""
    (tmp_path / "ROWS.CSV.GZ").touch()
    assert detect_container(tmp_path / "ROWS.CSV.GZ") == Container("csv", "gzip")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{\n  "a": 1\n}\n', "over several lines; write an array of objects or one object a line"),
        (b'\n{"a": {"b":\n1}}', "over several lines; write an array of objects or one object a line"),
        (b"  \n\n", "holds nothing but spaces; put rows into it or take it out of data.sources"),
        (b"1\n2\n", "is neither an array of JSON objects nor one object a line, in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is neither an array of JSON objects nor one object a line, in UTF-8"),
    ],
)
def test_a_json_file_of_another_kind_says_so(tmp_path: Path, content: bytes, why: str) -> None:
    """One object laid out for people would come out as a broken row for each of its lines."""
    (tmp_path / "rows.json").write_bytes(content)
    assert error_of(tmp_path / "rows.json").endswith(why)


@pytest.mark.parametrize("content", [b'{"a": "x\n{"a": 2}', b'{"a": x}\n{"a": 2}', b'{"a":'])
def test_a_json_file_with_a_broken_first_line_is_still_lines(tmp_path: Path, content: bytes) -> None:
    """One bad row costs no more than itself in the first line, too."""
    (tmp_path / "rows.json").write_bytes(content)
    assert isinstance(read(tmp_path / "rows.json")[0], BadRow)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_with_a_plain_name_says_so(tmp_path: Path, suffix: str) -> None:
    """Every line of it would be a bad row of its own."""
    (tmp_path / "rows.jsonl").write_bytes(SQUEEZE[suffix](b'{"a": 1}\n'))
    assert error_of(tmp_path / "rows.jsonl") == f"rows.jsonl: is compressed; put {suffix} after its name"


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_read_is_an_error_in_one_line(tmp_path: Path, name: str) -> None:
    """It may go between the look at it and the reading; nobody wants a traceback for that."""
    container = Container(containers.KINDS[Path(name).suffix])
    with pytest.raises(DataError, match=r"is gone; put it back and start again$"):
        list(read_batches(tmp_path / name, container, LARGEST))
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"(can't be read|is cut off or damaged) \(.*\); "):
        list(read_batches(tmp_path / name, container, LARGEST))


def test_a_file_has_no_parts(tmp_path: Path) -> None:
    """`part` would be ignored, and someone would train on the test split."""
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    assert error_of(tmp_path / "rows.jsonl", "train") == (
        "rows.jsonl: is one file, so it has no part 'train'; take `part` out of its source"
    )


# ---- JSON lines


def test_rows_come_with_their_lines(tmp_path: Path) -> None:
    """Empty lines hold no row but are lines: the number must be the one that an editor shows."""
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n   \r\n{"a": 2}')
    assert read(tmp_path / "rows.jsonl") == [Row(1, {"a": 1}), Row(4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"a": ', "broken JSON: Expecting value at character 6"),
        (b"{'a': 1}", "broken JSON: Expecting property name enclosed in double quotes at character 1"),
        (b'{"a": 1}{"a": 2}', "broken JSON: Extra data at character 8"),
        (b'{"a": NaN}', "broken JSON: NaN is not JSON"),
        (b'{"a": -Infinity}', "broken JSON: -Infinity is not JSON"),
        (b'{"a": 1e999}', "broken JSON: 1e999 is too large for a number"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "broken JSON: the key 'c' stands twice in one object"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "broken JSON: nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[1]", "a JSON object is expected, not list"),
        (b"null", "a JSON object is expected, not NoneType"),
        (b'{"a": "' + b"x" * 99_993 + b'"}', "is larger than data.max_row_size: 0.1 MB"),
        (b"x" * 300_000, "is larger than data.max_row_size: 0.1 MB"),
    ],
)
def test_a_line_without_a_row_says_why(tmp_path: Path, line: bytes, why: str) -> None:
    """One bad line must cost no more than itself: the rows around it are read."""
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\r\n{"a": 3}\n')
    assert read(tmp_path / "rows.jsonl", largest=100_000) == [Row(1, {"a": 1}), BadRow(2, why), Row(3, {"a": 3})]
    (tmp_path / "rows.jsonl").write_bytes(line)
    assert read(tmp_path / "rows.jsonl", largest=100_000) == [BadRow(1, why)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_largest_row_is_the_one_of_just_that_size(tmp_path: Path, end: bytes) -> None:
    """The line's end is no part of the row."""
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "12"}' + end)
    assert read(tmp_path / "rows.jsonl", largest=11) == [Row(1, {"a": "12"})]
    assert read(tmp_path / "rows.jsonl", largest=10) == [BadRow(1, "is larger than data.max_row_size: 1e-05 MB")]


# ---- JSON arrays


def test_elements_come_with_their_numbers_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is read at once, and wherever that cuts a number, an escape or a letter of four bytes in two."""
    text = '\n[ {"a": 1},\n\n{"a":\n"🙂\\ud83d\\ude42"}, 12,3.5e1 ,{"a": 1, "a": 2},true,\n{"a": NaN}\n,{}]\n'
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    for piece in range(1, 12):
        monkeypatch.setattr(json_rows, "PIECE", piece)
        path, container = tmp_path / "rows.json", Container("json_array")
        assert [row for batch in read_batches(path, container, LARGEST) for row in batch.rows()] == [
            Row(1, {"a": 1}, starts_at=2),
            Row(2, {"a": "🙂🙂"}, starts_at=4),
            BadRow(3, "a JSON object is expected, not int (line 5)"),
            BadRow(4, "a JSON object is expected, not float (line 5)"),
            BadRow(5, "broken JSON: the key 'a' stands twice in one object (line 5)"),
            BadRow(6, "a JSON object is expected, not bool (line 5)"),
            BadRow(7, "broken JSON: NaN is not JSON (line 6)"),
            Row(8, {}, starts_at=7),
        ]


@pytest.mark.parametrize(("indent", "lines"), [(None, [1] * 5), (2, [2, 5, 8, 11, 14])])
def test_an_elements_number_does_not_depend_on_the_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, lines: list[int]
) -> None:
    """`json.dump` puts all on one line: the line would be the same for every row, and identify none. Over batches."""
    monkeypatch.setattr(batches, "BATCH_ROWS", 2)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": number} for number in range(5)], indent=indent), encoding="utf-8")
    found = [batch.rows() for batch in read_batches(path, detect_container(path), LARGEST)]
    assert [len(rows) for rows in found] == [2, 2, 1]
    expected = [Row(at + 1, {"a": at}, starts_at=line) for at, line in enumerate(lines)]
    assert [row for rows in found for row in rows] == expected


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    """Nothing is wrong with it as an array."""
    (tmp_path / "rows.json").write_bytes(b" [ ] ")
    assert read(tmp_path / "rows.json") == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[{"a": 1},\n{"a": x, "b": "some more text"}]', "2: element 2 of the array is broken JSON (Expecting value)"),
        (b'[{"a": 1},\n{"a": "x\ny", "b": "more"}]', "2: element 2 of the array is broken JSON (Invalid control char"),
        (b'[{"a": 1},\n{"a": 2', "2: the file ends in or after element 2, before `]`"),
        (b'[{"a": 1},\n{"a": "', "2: the file ends in or after element 2, before `]`"),
        (b'[{"a": 1}\n', "2: the file ends in or after element 1, before `]`"),
        (b'[{"a": 1},\n', "2: the file ends in or after element 2, before `]`"),
        (b'[{"a": 1}\n{"a": 2}]', "2: no comma stands after element 1"),
        (b'[{"a": 1}] \n x', "2: something stands after the array's end"),
        (b"[\n" + b"[" * 10_000, "2: element 1 of the array is nested too deeply"),
        (b'[{"a": 1},\n{"a": "' + b"x" * 10_000 + b'"}]', "2: element 2 of the array is larger than data.max_row_size"),
        (b'[{"a": "' + "ü".encode() * 5_000 + b'"}]', "1: element 1 of the array is larger than"),
    ],
)
def test_a_broken_array_names_the_element_and_stops(tmp_path: Path, content: bytes, why: str) -> None:
    """Where one element is broken nobody knows where the next begins: rows would be lost without being counted."""
    (tmp_path / "rows.json").write_bytes(content)
    told = error_of(tmp_path / "rows.json")
    assert told.startswith(f"rows.json:{why}")
    assert told.endswith("; what follows can't be read, so mend it, or write the file as JSON lines")


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_an_array_that_is_not_utf8_names_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Counted from the start of the file, the byte order mark included, as a hex editor shows it."""
    monkeypatch.setattr(json_rows, "PIECE", piece)
    (tmp_path / "rows.json").write_bytes(b'\xef\xbb\xbf[{"a": "\xc3\xbc\xf0\x9f\xff"}]')
    with pytest.raises(DataError) as caught:
        list(read_batches(tmp_path / "rows.json", Container("json_array"), LARGEST))
    assert str(caught.value) == f"{tmp_path}/rows.json: not UTF-8 at byte 13; save it as UTF-8"


# ---- CSV and TSV


def test_records_come_with_the_line_where_they_start(tmp_path: Path) -> None:
    """A text of several lines moves all that follow; empty lines are no records."""
    content = b'a,b\r\n\r\n1,"x\r\ny"\r\n\r\n"say ""x""","p,q"\r\n3,\r\n'
    (tmp_path / "rows.csv").write_bytes(content)
    assert read(tmp_path / "rows.csv") == [
        Row(3, {"a": "1", "b": "x\r\ny"}),
        Row(6, {"a": 'say "x"', "b": "p,q"}),
        Row(7, {"a": "3", "b": ""}),
    ]


def test_a_bad_record_costs_no_more_than_itself(tmp_path: Path) -> None:
    """Wrong numbers of fields and broken UTF-8, half a surrogate pair too, leave the records around them alone."""
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n1\n1,2,3\n1,\xff\n\xed\xa0\x80,1\n\xc3\xbc,2\n")
    assert read(tmp_path / "rows.csv") == [
        Row(2, {"a": "1", "b": "2"}),
        BadRow(3, "has 1 field, the header has 2"),
        BadRow(4, "has 3 fields, the header has 2"),
        BadRow(5, "not UTF-8 in 'b'"),
        BadRow(6, "not UTF-8 in 'a'"),
        Row(7, {"a": "ü", "b": "2"}),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\n\n", ": has no header; its first line must name the columns"),
        (b"a,,c\n", ":1: column 2 has no name; its first line must name them all"),
        (b"\na,b,a\n", ":2: two columns are named 'a'; give each its own name"),
        (b"a,\xff\n", ":1: the header is not UTF-8; save the file as UTF-8"),
        (b'a,b\n1,2\n1,"2\n3,4\n', ":3: a quote that opens in this record never closes; close it"),
        (b'a,b\n1,"2\n3,"4\n', ":2: is broken, at line 3 (',' expected after '\"'); quote its fields and double"),
        (b"a\r1\r2\r", ":1: is broken, at line 1 (new-line character seen in unquoted field); quote its fields"),
        (b'a,b\n1,"' + b"2\n" * 6_000, ":2: the record that starts here is larger than data.max_row_size: 0.01 MB, or"),
        (b"a,b\n1,2\n1," + b"2" * 10_000, ":3: the record that starts here is larger than data.max_row_size: 0.01 MB"),
        (b"a,b\n" + b'"1\n",' * 3_000, ":2: the record that starts here is larger than data.max_row_size: 0.01 MB"),
    ],
)
def test_a_broken_table_names_the_line(tmp_path: Path, content: bytes, why: str) -> None:
    """A quote that never closes would swallow all that follows as one giant text."""
    (tmp_path / "rows.csv").write_bytes(content)
    assert error_of(tmp_path / "rows.csv").startswith(f"rows.csv{why}")


# ---- Parquet and Arrow


def test_types_come_out_as_python_has_them(tmp_path: Path) -> None:
    """Nested rows, nulls, columns of nothing and numbers of rows; views and dictionaries hide nothing of this."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]
    table = pa.table(
        {
            "messages": pa.array([messages, []]),
            "nothing": pa.nulls(2),
            "success": pa.array([True, None]),
            "agent": pa.array(["a", None]).dictionary_encode(),
            "agents": pa.array([["a", "b"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            "view": pa.array(["v", "w"], pa.string_view()),
        }
    )
    expected = [Row(number, fields) for number, fields in enumerate(table.to_pylist(), start=1)]
    for name, content in [
        ("rows.parquet", to_parquet(table)),
        ("rows.arrow", to_arrow(table, pa.ipc.new_stream)),
        ("file.arrow", to_arrow(table, pa.ipc.new_file)),
    ]:
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == expected


LABELS = {
    "info": {
        "features": {
            "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
            "tags": {"feature": {"names": ["p", "q"], "_type": "ClassLabel"}, "_type": "List"},
            "deep": [{"tag": {"names": ["p", "q"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}],
            "tools": {"feature": {"_type": "Json"}, "_type": "List"},
        }
    }
}


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow"])
def test_class_labels_come_out_as_their_names(tmp_path: Path, name: str) -> None:
    """A model that is taught to answer `1` has learnt nothing that anyone can use; JSON columns are read as JSON."""
    rows = [
        {"label": 1, "tags": [1, 0], "deep": [{"tag": 0, "text": "0"}], "tools": ['{"b": 1}']},
        {"label": None, "tags": None, "deep": [], "tools": []},
        {"label": -1, "tags": [], "deep": None, "tools": None},
        {"label": 2, "tags": [], "deep": None, "tools": None},
        {"label": 0, "tags": [], "deep": None, "tools": ["{"]},
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(LABELS)})
    new = {"stream.arrow": pa.ipc.new_stream, "file.arrow": pa.ipc.new_file}.get(name)
    (tmp_path / name).write_bytes(to_arrow(table, new) if new else to_parquet(table))
    found = read(tmp_path / name)
    assert found[:4] == [
        Row(1, {"label": "yes", "tags": ["q", "p"], "deep": [{"tag": "p", "text": "0"}], "tools": [{"b": 1}]}),
        Row(2, {"label": None, "tags": None, "deep": [], "tools": []}),
        Row(3, {"label": None, "tags": [], "deep": None, "tools": None}),
        BadRow(4, "holds a value that can't be read: label 2 is none of the 2 that have names"),
    ]
    assert isinstance(found[4], BadRow)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": 1}', b'{"info": {"features": {"a": {"_type": []}}}}'])
def test_metadata_of_another_form_is_left_alone(tmp_path: Path, metadata: bytes) -> None:
    """Anyone may write anything under that name."""
    table = pa.table({"a": [1]}).replace_schema_metadata({"huggingface": metadata})
    (tmp_path / "rows.parquet").write_bytes(to_parquet(table))
    assert read(tmp_path / "rows.parquet") == [Row(1, {"a": 1})]


def test_a_row_that_python_cannot_hold_costs_no_more_than_itself(tmp_path: Path) -> None:
    """Parquet checks neither its texts' UTF-8 nor that a date is one."""
    texts = pa.array([b"x", b"\xff", b"z"]).view(pa.string())
    days = pa.array([0, 0, 10**9], pa.int32()).view(pa.date32())
    (tmp_path / "rows.parquet").write_bytes(to_parquet(pa.table({"a": texts, "d": days})))
    found = read(tmp_path / "rows.parquet")
    assert isinstance(found[0], Row)
    assert found[1] == BadRow(2, "not UTF-8")
    assert isinstance(found[2], BadRow) and found[2].why.startswith("holds a value that can't be read: ")


def test_a_row_too_large_is_passed_over(tmp_path: Path) -> None:
    """The same bound as everywhere, and the rows around it keep their numbers."""
    (tmp_path / "rows.parquet").write_bytes(to_parquet(pa.table({"a": ["x", "y" * 20_000, "z"]})))
    found = read(tmp_path / "rows.parquet")
    assert found == [Row(1, {"a": "x"}), BadRow(2, "is larger than data.max_row_size: 0.01 MB"), Row(3, {"a": "z"})]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            pa.record_batch([pa.array([1]), pa.array([2])], names=["a", "a"]),
            "two columns are named 'a'; give each its own name",
        ),
        (
            pa.record_batch({"a": pa.array([["x"]], pa.list_view(pa.string()))}),
            "column 'a' is of type list_view<item: string>; write it as a list or text",
        ),
    ],
)
def test_odd_columns_are_refused(tmp_path: Path, columns: pa.RecordBatch, why: str) -> None:
    """Of two columns with one name a row would hold the last; pyarrow's cast of list views loses values."""
    (tmp_path / "rows.arrow").write_bytes(to_arrow(pa.Table.from_batches([columns]), pa.ipc.new_stream))
    assert error_of(tmp_path / "rows.arrow") == f"rows.arrow: {why}"


def test_a_damaged_arrow_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """pyarrow follows an offset out of its memory without a check, and the process would end there."""
    content = bytearray(to_arrow(pa.table({"a": ["x" * 50, "y" * 50]}), pa.ipc.new_stream))
    at = content.index((50).to_bytes(4, "little") + (100).to_bytes(4, "little"))
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    (tmp_path / "rows.arrow").write_bytes(content)
    assert error_of(tmp_path / "rows.arrow").startswith("rows.arrow: is cut off or damaged (")


# ---- Folders of datasets


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`one`, a dataset of two shards, and `both`, two splits of it, as save_to_disk lays them out."""
    for name, texts in {"one": "abc", "both/train": "ab", "both/test": "c"}.items():
        (tmp_path / name).mkdir(parents=True)
        shards = [f"data-{at:05}-of-00002.arrow" for at in range(2)]
        for shard, part in zip(shards, (texts[:1], texts[1:]), strict=True):
            table = pa.table({"label": [ord(letter) - 97 for letter in part]}, pa.schema([("label", pa.int64())]))
            names = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
            (tmp_path / name / shard).write_bytes(to_arrow(table, pa.ipc.new_stream))
        state = {"_data_files": [{"filename": shard} for shard in shards], "_split": None}
        (tmp_path / name / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (tmp_path / "both/dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    return tmp_path


def test_a_datasets_folder_gives_the_rows_of_its_shards(folders: Path) -> None:
    """In their order and numbered through, with labels by name."""
    assert read(folders / "one") == [Row(at, {"label": name}) for at, name in enumerate("abc", start=1)]
    assert read(folders / "both", "train") == [Row(1, {"label": "a"}), Row(2, {"label": "b"})]
    assert read(folders / "both", "test") == [Row(1, {"label": "c"})]
    last = [batch.read_bytes for batch in read_batches(folders / "one", Container("folder"), LARGEST)][-1]
    assert 0.9 * disk_bytes(folders / "one", Container("folder")) < last


@pytest.mark.parametrize(
    ("folder", "part", "why"),
    [
        ("both", None, "both: holds the parts train, test and it names none; set the source's `part` to one"),
        ("both", "dev", "both: holds the parts train, test and there is no 'dev'; set the source's `part` to one"),
        ("one", "train", "one: is one dataset, so it has no part 'train'; take `part` out of its source"),
    ],
)
def test_a_part_must_be_one_that_is_there(folders: Path, folder: str, part: str | None, why: str) -> None:
    """Taking the first, or all, would train on the test split."""
    assert error_of(folders / folder, part) == why


def test_a_damaged_datasets_folder_is_an_error(folders: Path) -> None:
    """A shard that is missing or lies elsewhere is told by its name."""
    state = folders / "one/state.json"
    (folders / "one/data-00001-of-00002.arrow").unlink()
    assert error_of(folders / "one") == "one/data-00001-of-00002.arrow: is gone; put it back and start again"
    state.write_text('{"_data_files": [{"filename": "../both/test/data-00000-of-00002.arrow"}]}', encoding="utf-8")
    why = "rows are not stored in order in files beside it"
    assert error_of(folders / "one") == f"one/state.json: is broken ({why}); save the dataset again (save_to_disk)"
    state.write_text("{", encoding="utf-8")
    assert error_of(folders / "one").startswith("one/state.json: is broken (Expecting property name")


def test_what_datasets_itself_saved_is_read(tmp_path: Path) -> None:
    """The layout is theirs, and so is the proof that it is read as they mean it."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"a": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"a": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows.select([2, 0]), "test": rows}).save_to_disk(str(tmp_path / "both"))
    rows.save_to_disk(str(tmp_path / "one"), num_shards=2)
    rows.to_parquet(str(tmp_path / "one.parquet"))
    all_rows = [
        Row(1, {"a": "x", "label": "yes"}),
        Row(2, {"a": "y", "label": "no"}),
        Row(3, {"a": "z", "label": None}),
    ]
    assert read(tmp_path / "one") == read(tmp_path / "one.parquet") == read(tmp_path / "both", "test") == all_rows
    assert read(tmp_path / "both", "train") == [Row(1, {"a": "z", "label": None}), Row(2, {"a": "x", "label": "yes"})]


# ---- Whatever it holds

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
SCRAPS = [b"\n", b'"', b",", b"{", b"}", b"[", b"]", b":", b'{"a":1}', b"\r\n", b"\\", b"\xff", b"\xc3", b"1", b"NaN"]
scraps = st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=3), max_size=40).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one file; hypothesis writes it again and again."""
    return tmp_path_factory.mktemp("any")


@pytest.mark.parametrize(
    ("name", "start"), [("rows.jsonl", b""), ("rows.csv", b"a,b\n"), ("rows.tsv", b""), ("rows.json", b"[")]
)
@given(content=scraps)
def test_any_bytes_are_rows_or_bad_rows_or_one_error(folder: Path, name: str, start: bytes, content: bytes) -> None:
    """Whatever a file holds, nothing else is raised, and a line without a row is never passed over in silence."""
    path = folder / name
    path.write_bytes(start + content)
    try:
        found = read(path, largest=60)
    except DataError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert told.startswith(str(path))
        assert name != "rows.jsonl" or "is compressed" in told
        return
    assert all(isinstance(row, Row | BadRow) for row in found)
    if name == "rows.jsonl":
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert [row.line for row in found] == [at for at, line in enumerate(lines, start=1) if line.strip()]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "array.json"])
@given(rows=st.lists(st.dictionaries(texts, values, max_size=4), max_size=6), blank=st.integers(0, 3))
def test_any_objects_come_back_from_json(folder: Path, name: str, rows: list[dict[str, Any]], blank: int) -> None:
    """Every value as it was written, in JSON lines with the number of the line, in an array with its own."""
    path = folder / name
    path.write_bytes(b"\n" * blank + (WRITERS[name](rows) if rows or name == "array.json" else b""))
    found = read(path, largest=10**6)
    assert [row.fields for row in found if isinstance(row, Row)] == rows
    first = 1 if name == "array.json" else 1 + blank
    assert [row.line for row in found] == list(range(first, first + len(rows)))


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "stream.arrow", "file.arrow"])
@given(rows=st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), min_size=1, max_size=6))
def test_any_texts_come_back_from_a_table(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Commas, quotes, tabs, line breaks and NUL within a value are the value's own."""
    path = folder / name
    path.write_bytes(WRITERS[name](rows))
    assert [row.fields for row in read(path, largest=10**6) if isinstance(row, Row)] == rows


# ---- Memory


def bomb_line() -> Iterator[bytes]:
    """60 MB without a line's end, between two rows."""
    yield b'{"a": 1}\n'
    yield from [b"x" * 10**6] * 60
    yield b'\n{"a": 2}\n'


@pytest.fixture
def hard_files(tmp_path: Path) -> Path:
    """Files that would take gigabytes, or the whole disk, if they were read at once."""
    with (tmp_path / "line.jsonl").open("wb") as file:
        file.writelines(bomb_line())
    spaces = gzip.compress(b" " * 10**7) * 15
    for name, start in {"a.jsonl": b"", "b.json": b"[", "c.csv": b"a\n", "d.parquet": b"", "e.arrow": b""}.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(start) + spaces)
    big = pa.array(["x" * 1_000_000], pa.string())
    for number in range(2):  # 3,000 rows that share one text of 1 MB: 3 GB, and 1.5 MB on disk
        shared = pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0] * 3_000, pa.int32()), big)})
        content = to_parquet(shared, compression="none") if number else to_arrow(shared, pa.ipc.new_stream)
        (tmp_path / ("f.parquet" if number else "f.arrow")).write_bytes(content)
    return tmp_path


MEASURE = """
import resource, sys
from itertools import islice
from pathlib import Path
from finetune.errors import DataError
from finetune.prepare.containers import Container, detect_container, read_batches
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
    """A line of 60 MB, bombs of 150 MB from 150 kB and 3 GB from one shared text: all read below 600 MB more."""
    source = Path(containers.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(hard_files)],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    *told, grown = done.stdout.splitlines()
    bomb = "expands to more than 300 times its size"
    assert [line for line in told if bomb not in line] == [
        "c.csv.gz:2: the record that starts here is larger than data.max_row_size: 12 MB, or a quote in it never "
        "closes; mend it, or write the file as JSON lines",
        "f.arrow 20",
        "f.parquet 20",
        "line.jsonl 3",
    ]
    assert [line.split(":")[0] for line in told if bomb in line] == [
        "a.jsonl.gz",
        "b.json.gz",
        "d.parquet.gz",
        "e.arrow.gz",
    ]
    assert int(grown) < 600
