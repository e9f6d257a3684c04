"""Rows written to files of every kind, and read back."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.prepare.readers.batches import BadRow, Row
from finetune.prepare.readers.detect import detect_container, read_batches

LARGEST = 10_000


def read(path: Path, part: str | None = None, largest: int = LARGEST) -> list[Row | BadRow]:
    """Return all rows of a file, with each batch pickled and unpickled."""
    found: list[Row | BadRow] = []
    for batch in read_batches(path, detect_container(path), largest, part):
        found += pickle.loads(pickle.dumps(batch)).rows()
    return found


def error_of(path: Path, part: str | None = None, largest: int = LARGEST) -> str:
    """Return the text of the DataError that reading raises, without the folder."""
    with pytest.raises(DataError) as caught:
        read(path, part, largest)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def to_arrow(table: pa.Table, new: Callable[..., Any]) -> bytes:
    """Return the table in Arrow's file or stream format."""
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    """Return the table as pyarrow writes Parquet."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, **options)
    content: bytes = sink.getvalue().to_pybytes()
    return content


# ---- Arbitrary content

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
