"""CSV and TSV: records with the line where they start, and the reasons for bad records."""

from pathlib import Path

import pytest

from finetune.prepare.readers.batches import BadRow, Row
from tests.builders.written_rows import error_of, read

# ---- CSV and TSV


def test_records_have_the_line_where_they_start(tmp_path: Path) -> None:
    """A multi-line text shifts the lines of later records; empty lines are not records."""
    content = b'a,b\r\n\r\n1,"x\r\ny"\r\n\r\n"say ""x""","p,q"\r\n3,\r\n'
    (tmp_path / "rows.csv").write_bytes(content)
    assert read(tmp_path / "rows.csv") == [
        Row(3, {"a": "1", "b": "x\r\ny"}),
        Row(6, {"a": 'say "x"', "b": "p,q"}),
        Row(7, {"a": "3", "b": ""}),
    ]


def test_a_bad_record_affects_no_other(tmp_path: Path) -> None:
    """Wrong numbers of fields and invalid UTF-8, such as unpaired surrogates, affect only their own record."""
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
        (b"\n\n", ": has no header; the first line must name the columns"),
        (b"a,,c\n", ":1: column 2 has no name; the first line must name all columns"),
        (b"\na,b,a\n", ":2: two columns have the name 'a'; give each column a unique name"),
        (b"a,\xff\n", ":1: the header is not UTF-8; save the file as UTF-8"),
        (b'a,b\n1,2\n1,"2\n3,4\n', ":3: a quote opened in this record is never closed; close it"),
        (b'a,b\n1,"2\n3,"4\n', ":2: is broken, at line 3 (',' expected after '\"'); quote its fields and double"),
        (b"a\r1\r2\r", ":1: is broken, at line 1 (new-line character seen in unquoted field); quote its fields"),
        (b'a,b\n1,"' + b"2\n" * 6_000, ":2: the record starting here is larger than data.max_row_size: 0.01 MB, or"),
        (b"a,b\n1,2\n1," + b"2" * 10_000, ":3: the record starting here is larger than data.max_row_size: 0.01 MB"),
        (b"a,b\n" + b'"1\n",' * 3_000, ":2: the record starting here is larger than data.max_row_size: 0.01 MB"),
    ],
)
def test_a_broken_table_names_the_line(tmp_path: Path, content: bytes, why: str) -> None:
    """A quote that never closes would turn the rest of the file into one huge text."""
    (tmp_path / "rows.csv").write_bytes(content)
    assert error_of(tmp_path / "rows.csv").startswith(f"rows.csv{why}")
