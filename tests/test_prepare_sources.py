"""Source files: any line is a row or a bad row with its number, and no file is read that DVC does not watch."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.errors import DataError
from finetune.prepare.sources import BadRow, Row, read_rows, source_path


def rows_of(path: Path, content: bytes) -> list[Row | BadRow]:
    """The rows of a file with this content."""
    path.write_bytes(content)
    return list(read_rows(path))


# ---- Where the file is


@pytest.fixture
def find(tmp_path: Path, change: Callable[..., Config]) -> Callable[[str], Path]:
    """`source_path` of a path within tmp_path/raw."""
    (tmp_path / "raw").mkdir()

    def found(path: str) -> Path:
        source = {"name": "rows", "path": path, "format": "interactions"}
        data = change(**{"data.directory": "raw", "data.sources": [source]}).data
        return source_path(data, data.sources[0], tmp_path)

    return found


def test_a_file_within_the_data_folder_is_found(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """Folders below it and links that stay inside are no way out."""
    (tmp_path / "raw/deep").mkdir()
    (tmp_path / "raw/deep/rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "raw/link.jsonl").symlink_to(tmp_path / "raw/deep/rows.jsonl")
    assert find("deep/rows.jsonl") == tmp_path / "raw/deep/rows.jsonl"
    assert find("deep/../deep/rows.jsonl").samefile(tmp_path / "raw/deep/rows.jsonl")
    assert find("link.jsonl").samefile(tmp_path / "raw/deep/rows.jsonl")


def test_a_missing_file_is_told_with_its_source(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """The name says which line of params.yaml to mend."""
    with pytest.raises(DataError) as caught:
        find("rows.jsonl")
    assert str(caught.value) == f"{tmp_path}/raw/rows.jsonl: no such file; data.sources names it as 'rows'"


def test_an_empty_file_is_refused(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """An export that failed leaves an empty file; training on the other sources alone would hide it."""
    (tmp_path / "raw/rows.jsonl").touch()
    with pytest.raises(DataError) as caught:
        find("rows.jsonl")
    text = "is empty; put rows into it or take 'rows' out of data.sources"
    assert str(caught.value) == f"{tmp_path}/raw/rows.jsonl: {text}"


def test_a_folder_is_no_source(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """One account a file: a folder would be read in an order that depends on the disk."""
    with pytest.raises(DataError) as caught:
        find(".")
    assert str(caught.value) == f"{tmp_path}/raw: is no file; data.sources must name one file a source"


def test_a_path_out_of_the_data_folder_is_refused(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """DVC hashes the data folder alone: a change outside would leave a stale result standing as current."""
    outside = tmp_path / "rows.jsonl"
    outside.write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        find("../rows.jsonl")
    where = f"{tmp_path}/raw/../rows.jsonl: lies outside {tmp_path}/raw"
    assert str(caught.value) == f"{where}, where DVC does not watch it; move it in"


@pytest.mark.parametrize("way", ["absolute", "symlink", "symlinked folder"])
def test_no_way_leads_out_of_the_data_folder(tmp_path: Path, find: Callable[[str], Path], way: str) -> None:
    """An absolute path and a link, to the file or to its folder, lead out as well as `..` does."""
    outside = tmp_path / "elsewhere/rows.jsonl"
    outside.parent.mkdir()
    outside.write_text("{}\n", encoding="utf-8")
    (tmp_path / "raw/link.jsonl").symlink_to(outside)
    (tmp_path / "raw/folder").symlink_to(outside.parent)
    path = {"absolute": str(outside), "symlink": "link.jsonl", "symlinked folder": "folder/rows.jsonl"}[way]
    with pytest.raises(DataError, match=r"lies outside .*raw, where DVC does not watch it"):
        find(path)


# ---- What is in it


def test_rows_come_with_their_lines(tmp_path: Path) -> None:
    """Empty lines hold no row but are lines: the number must be the one that an editor shows."""
    found = rows_of(tmp_path / "rows", b'{"a": 1}\n\n   \n{"a": 2}')
    assert found == [Row(1, {"a": 1}), Row(4, {"a": 2})]


def test_a_byte_order_mark_and_crlf_are_passed_over(tmp_path: Path) -> None:
    """What Windows tools write; the mark would break line 1 and a kept CR would be trained on."""
    found = rows_of(tmp_path / "rows", b'\xef\xbb\xbf{"a": "x"}\r\n\r\n{"a": "y"}\r\n')
    assert found == [Row(1, {"a": "x"}), Row(3, {"a": "y"})]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"a": ', "broken JSON: Expecting value: line 2 column 1 (char 7)"),
        (b"{'a': 1}", "broken JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b'{"a": 1}{"a": 2}', "broken JSON: Extra data: line 1 column 9 (char 8)"),
        (b'{"a": NaN}', "broken JSON: NaN is not JSON"),
        (b'{"a": -Infinity}', "broken JSON: -Infinity is not JSON"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[1]", "a JSON object is expected, not list"),
        (b"null", "a JSON object is expected, not NoneType"),
        (b'"text"', "a JSON object is expected, not str"),
    ],
)
def test_a_line_without_a_row_says_why(tmp_path: Path, line: bytes, why: str) -> None:
    """One bad line must cost no more than itself: the rows around it are read."""
    found = rows_of(tmp_path / "rows", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert found == [Row(1, {"a": 1}), BadRow(2, why), Row(3, {"a": 3})]


@given(content=st.binary(max_size=200).map(lambda raw: raw.replace(b"0", b"\n").replace(b"1", b'{"a":1}')))
def test_any_bytes_are_rows_or_bad_rows(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a file holds, each of its lines that is not blank is accounted for once, and nothing is raised."""
    found = rows_of(tmp_path_factory.getbasetemp() / "any", content)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [row.line for row in found] == [at for at, line in enumerate(lines, start=1) if line.strip()]
