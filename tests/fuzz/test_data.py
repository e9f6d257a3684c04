"""Hostile data in every format and container: no row is lost, and all damage is reported."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.params import params_of
from finetune.config.types import SPLITS
from finetune.errors import DataError
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.prepare import stage as prepare
from finetune.prepare.readers.detect import detect_container, read_batches
from finetune.records.formats import FORMATS
from tests.builders.fuzzing import fuzz, refusal
from tests.prepare.readers.test_detect import WRITERS
from tests.records.test_formats import ROWS, fields, junk, nearly

GOOD = 12
CONTAINERS = [
    "rows.jsonl",
    "rows.jsonl.gz",
    "rows.jsonl.zst",
    "array.json",
    "array.json.gz",
    "rows.csv",
    "rows.tsv.zst",
]
CONTAINERS += ["rows.parquet", "stream.arrow", "file.arrow"]


def good_rows(format_: str) -> list[dict[str, Any]]:
    """Return valid rows that differ from each other."""
    return [numbered(ROWS[format_], number) for number in range(GOOD)]


def numbered(value: Any, number: int) -> Any:
    """Return the value with a number after each sentence in it."""
    if isinstance(value, dict):
        return {key: numbered(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [numbered(item, number) for item in value]
    return f"{value} {number}" if isinstance(value, str) and value.strip()[:1].isupper() else value


def written(name: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the rows in a container, compressed according to its name."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    content: bytes = WRITERS[plain](rows)
    if name.endswith(".gz"):
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if name.endswith(".zst") else content


def prepared(root: Path, change: Callable[..., Any], name: str, format_: str) -> dict[str, Any] | None:
    """Return prepare's account of a file after checking its sums; None for a documented refusal."""
    config = change(
        **{
            "data.directory": "raw",
            "data.sources": [{"name": "any", "path": name, "format": format_}],
            "data.on_bad_row": "skip",
            "data.max_bad_fraction": 1.0,
            "data.duplicates.near": "ignore",
        }
    )
    paths = Paths(root)
    if message := refusal(DataError, lambda: prepare.run(params_of("prepare", config), paths)):
        assert "raw/" in message or "split is empty" in message
        return None
    account: dict[str, Any] = read_json(paths.reports / "prepare.json")["sources"]["any"]
    assert account["read"] == account["kept"] + sum(account["dropped"].values())
    assert len(lines(paths.prepared / "dropped.jsonl")) == sum(account["dropped"].values())
    assert sum(len(lines(paths.prepared / f"{split}.jsonl")) for split in SPLITS) == account["kept"]
    return account


def lines(path: Path) -> list[str]:
    """Return the lines of a file."""
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for consecutive runs of prepare."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "raw").mkdir()
    return root


@pytest.mark.parametrize("name", CONTAINERS)
@fuzz(30)
@given(
    format_=st.sampled_from(list(FORMATS)),
    changed=st.lists(st.dictionaries(fields, junk | nearly, max_size=3), max_size=4),
)
def test_no_row_of_any_file_is_lost(
    ground: Path, change: Callable[..., Any], name: str, format_: str, changed: list[dict[str, Any]]
) -> None:
    """Each container has valid and hostile rows: every one is kept, or dropped for a reason."""
    rows = good_rows(format_) + [ROWS[format_] | keys for keys in changed]
    try:
        content = written(name, rows)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        return  # no program writes such a file
    for old in (ground / "raw").iterdir():
        old.unlink()
    (ground / "raw" / name).write_bytes(content)
    account = prepared(ground, change, name, format_)
    if account is not None:
        assert account["read"] == len(rows)


@pytest.mark.parametrize("name", CONTAINERS)
@fuzz(120)
@given(data=st.data())
def test_a_damaged_file_gives_rows_or_one_error(ground: Path, name: str, data: st.DataObject) -> None:
    """After bit flips, cuts, insertions, repetitions or truncation, there are rows, or an error that names the file."""
    content = bytearray(written(name, [{"a": f"text {number}", "b": "x" * number} for number in range(40)]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"]))
        if how == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "repeat":
            content[at:at] = content[at : at + 50]
        else:
            del content[at:]
    path = ground / name
    path.write_bytes(content)
    message = refusal(DataError, lambda: [batch.rows() for batch in read_batches(path, detect_container(path), 10**6)])
    assert not message or message.startswith(str(path))
    assert "\n" not in message
