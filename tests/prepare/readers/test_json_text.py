"""JSON lines and arrays: rows with their positions, and the reasons for bad rows."""

import json
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.prepare.readers import batches, json_text
from finetune.prepare.readers.batches import BadRow, Row
from finetune.prepare.readers.detect import Container, detect_container, read_batches
from tests.builders.written_rows import LARGEST, error_of, read

# ---- JSON lines


def test_rows_have_their_line_numbers(tmp_path: Path) -> None:
    """Empty lines have no row but count, so that line numbers match those of an editor."""
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
        (b'{"a": 1e999}', "broken JSON: 1e999 is too large a number"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "broken JSON: the key 'c' occurs twice in one object"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "broken JSON: nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b'{"a": "' + b"x" * 99_993 + b'"}', "is larger than data.max_row_size: 0.1 MB"),
        (b"x" * 300_000, "is larger than data.max_row_size: 0.1 MB"),
    ],
)
def test_a_bad_line_has_a_reason(tmp_path: Path, line: bytes, why: str) -> None:
    """A bad line is a single bad row: the rows around it are read."""
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\r\n{"a": 3}\n')
    assert read(tmp_path / "rows.jsonl", largest=100_000) == [Row(1, {"a": 1}), BadRow(2, why), Row(3, {"a": 3})]
    (tmp_path / "rows.jsonl").write_bytes(line)
    assert read(tmp_path / "rows.jsonl", largest=100_000) == [BadRow(1, why)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_largest_row_has_exactly_the_size_limit(tmp_path: Path, end: bytes) -> None:
    """The newline does not count towards the size of the row."""
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "12"}' + end)
    assert read(tmp_path / "rows.jsonl", largest=11) == [Row(1, {"a": "12"})]
    assert read(tmp_path / "rows.jsonl", largest=10) == [BadRow(1, "is larger than data.max_row_size: 1e-05 MB")]


# ---- JSON arrays


def test_elements_have_their_numbers_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk size does not matter, even if a chunk ends in a number, an escape or a multi-byte letter."""
    text = '\n[ {"a": 1},\n\n{"a":\n"🙂\\ud83d\\ude42"}, 12,3.5e1 ,{"a": 1, "a": 2},true,\n{"a": NaN}\n,{}]\n'
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    for piece in range(1, 12):
        monkeypatch.setattr(json_text, "PIECE", piece)
        path, container = tmp_path / "rows.json", Container("json_array")
        assert [row for batch in read_batches(path, container, LARGEST) for row in batch.rows()] == [
            Row(1, {"a": 1}, starts_at=2),
            Row(2, {"a": "🙂🙂"}, starts_at=4),
            BadRow(3, "expected a JSON object, found int (line 5)"),
            BadRow(4, "expected a JSON object, found float (line 5)"),
            BadRow(5, "broken JSON: the key 'a' occurs twice in one object (line 5)"),
            BadRow(6, "expected a JSON object, found bool (line 5)"),
            BadRow(7, "broken JSON: NaN is not JSON (line 6)"),
            Row(8, {}, starts_at=7),
        ]


@pytest.mark.parametrize(("indent", "lines"), [(None, [1] * 5), (2, [2, 5, 8, 11, 14])])
def test_an_elements_number_does_not_depend_on_the_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, lines: list[int]
) -> None:
    """`json.dump` writes one line, so elements are identified by their number, also across batches."""
    monkeypatch.setattr(batches, "BATCH_ROWS", 2)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": number} for number in range(5)], indent=indent), encoding="utf-8")
    found = [batch.rows() for batch in read_batches(path, detect_container(path), LARGEST)]
    assert [len(rows) for rows in found] == [2, 2, 1]
    expected = [Row(at + 1, {"a": at}, starts_at=line) for at, line in enumerate(lines)]
    assert [row for rows in found for row in rows] == expected


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    """An empty array is valid."""
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
        (b'[{"a": 1}\n{"a": 2}]', "2: no comma after element 1"),
        (b'[{"a": 1}] \n x', "2: there is data after the end of the array"),
        (b"[\n" + b"[" * 10_000, "2: element 1 of the array is nested too deeply"),
        (b'[{"a": 1},\n{"a": "' + b"x" * 10_000 + b'"}]', "2: element 2 of the array is larger than data.max_row_size"),
        (b'[{"a": "' + "ü".encode() * 5_000 + b'"}]', "1: element 1 of the array is larger than"),
    ],
)
def test_a_broken_array_names_the_element_and_stops(tmp_path: Path, content: bytes, why: str) -> None:
    """After a broken element the start of the next is unknown, so reading on could lose rows uncounted."""
    (tmp_path / "rows.json").write_bytes(content)
    message = error_of(tmp_path / "rows.json")
    assert message.startswith(f"rows.json:{why}")
    assert message.endswith("; the rest of the file can't be read: fix it, or write the file as JSON lines")


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_an_array_that_is_not_utf8_names_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """The byte is counted from the start of the file, with the byte order mark, as in a hex editor."""
    monkeypatch.setattr(json_text, "PIECE", piece)
    (tmp_path / "rows.json").write_bytes(b'\xef\xbb\xbf[{"a": "\xc3\xbc\xf0\x9f\xff"}]')
    with pytest.raises(DataError) as caught:
        list(read_batches(tmp_path / "rows.json", Container("json_array"), LARGEST))
    assert str(caught.value) == f"{tmp_path}/rows.json: not UTF-8 at byte 13; save it as UTF-8"
