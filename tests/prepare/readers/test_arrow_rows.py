"""Parquet, Arrow and dataset folders: values become Python objects, and damaged files are reported."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from finetune.prepare.readers.batches import BadRow, Row
from finetune.prepare.readers.detect import Container, disk_bytes, read_batches
from tests.builders.written_rows import LARGEST, error_of, read, to_arrow, to_parquet

VIEWS = pa.array([["x"]], pa.list_view(pa.string()))

# ---- Parquet and Arrow


def test_types_become_python_types(tmp_path: Path) -> None:
    """Nested rows, nulls, empty columns and numbers are kept; views and dictionaries are resolved."""
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
def test_class_labels_become_names(tmp_path: Path, name: str) -> None:
    """Class labels become names, as a number is useless as an answer; JSON columns are parsed."""
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
        BadRow(4, "contains a value that can't be read: label 2 is not one of the 2 named labels"),
    ]
    assert isinstance(found[4], BadRow)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": 1}', b'{"info": {"features": {"a": {"_type": []}}}}'])
def test_unknown_metadata_is_ignored(tmp_path: Path, metadata: bytes) -> None:
    """Any program may store other content under that name."""
    table = pa.table({"a": [1]}).replace_schema_metadata({"huggingface": metadata})
    (tmp_path / "rows.parquet").write_bytes(to_parquet(table))
    assert read(tmp_path / "rows.parquet") == [Row(1, {"a": 1})]


def test_an_unrepresentable_row_is_a_single_bad_row(tmp_path: Path) -> None:
    """Parquet checks neither the UTF-8 of texts nor the validity of dates."""
    texts = pa.array([b"x", b"\xff", b"z"]).view(pa.string())
    days = pa.array([0, 0, 10**9], pa.int32()).view(pa.date32())
    (tmp_path / "rows.parquet").write_bytes(to_parquet(pa.table({"a": texts, "d": days})))
    found = read(tmp_path / "rows.parquet")
    assert isinstance(found[0], Row)
    assert found[1] == BadRow(2, "not UTF-8")
    assert isinstance(found[2], BadRow) and found[2].why.startswith("contains a value that can't be read: ")


def test_a_too_large_row_is_skipped(tmp_path: Path) -> None:
    """The usual size limit applies, and the rows around keep their numbers."""
    (tmp_path / "rows.parquet").write_bytes(to_parquet(pa.table({"a": ["x", "y" * 20_000, "z"]})))
    found = read(tmp_path / "rows.parquet")
    assert found == [Row(1, {"a": "x"}), BadRow(2, "is larger than data.max_row_size: 0.01 MB"), Row(3, {"a": "z"})]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            pa.record_batch([[1], [2]], names=["a", "a"]),
            "two columns have the name 'a'; give each column a unique name",
        ),
        (pa.record_batch({"a": VIEWS}), "column 'a' is of type list_view<item: string>; write it as a list or text"),
    ],
)
def test_unsupported_columns_are_refused(tmp_path: Path, columns: pa.RecordBatch, why: str) -> None:
    """Of two columns with one name only the last would remain; pyarrow's cast of list views loses values."""
    (tmp_path / "rows.arrow").write_bytes(to_arrow(pa.Table.from_batches([columns]), pa.ipc.new_stream))
    assert error_of(tmp_path / "rows.arrow") == f"rows.arrow: {why}"


def test_a_damaged_arrow_file_is_an_error(tmp_path: Path) -> None:
    """pyarrow follows offsets without bounds checks, which would crash the process."""
    content = bytearray(to_arrow(pa.table({"a": ["x" * 50, "y" * 50]}), pa.ipc.new_stream))
    at = content.index((50).to_bytes(4, "little") + (100).to_bytes(4, "little"))
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    (tmp_path / "rows.arrow").write_bytes(content)
    assert error_of(tmp_path / "rows.arrow").startswith("rows.arrow: is truncated or damaged (")


# ---- Folders of datasets


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Create `one`, a dataset of two shards, and `both`, two of its splits, in the layout of save_to_disk."""
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
    """Rows are in order and numbered consecutively, with labels by name."""
    assert read(folders / "one") == [Row(at, {"label": name}) for at, name in enumerate("abc", start=1)]
    assert read(folders / "both", "train") == [Row(1, {"label": "a"}), Row(2, {"label": "b"})]
    assert read(folders / "both", "test") == [Row(1, {"label": "c"})]
    last = [batch.read_bytes for batch in read_batches(folders / "one", Container("folder"), LARGEST)][-1]
    assert 0.9 * disk_bytes(folders / "one", Container("folder")) < last


@pytest.mark.parametrize(
    ("folder", "part", "why"),
    [
        ("both", None, ("both: has the parts train, test, and it names none; set `part` of its source to one of them")),
        (
            "both",
            "dev",
            ("both: has the parts train, test, and it has no 'dev'; set `part` of its source to one of them"),
        ),
        (
            "one",
            "train",
            ("one: is a single dataset without parts, so it has no part 'train'; remove `part` from its source"),
        ),
    ],
)
def test_an_unknown_part_is_refused(folders: Path, folder: str, part: str | None, why: str) -> None:
    """Using the first split, or all of them, would train on the test split."""
    assert error_of(folders / folder, part) == why


def test_a_damaged_datasets_folder_is_an_error(folders: Path) -> None:
    """A shard that is missing or outside of the folder is reported by name."""
    state = folders / "one/state.json"
    (folders / "one/data-00001-of-00002.arrow").unlink()
    assert error_of(folders / "one") == "one/data-00001-of-00002.arrow: is gone; restore it and start again"
    state.write_text('{"_data_files": [{"filename": "../both/test/data-00000-of-00002.arrow"}]}', encoding="utf-8")
    why = "its rows are not stored in order in data files of the same folder"
    assert error_of(folders / "one") == f"one/state.json: is broken ({why}); save the dataset again (save_to_disk)"
    state.write_text("{", encoding="utf-8")
    assert error_of(folders / "one").startswith("one/state.json: is broken (Expecting property name")


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path) -> None:
    """The folder is written by the `datasets` library itself, so the layout is the real one."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"a": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"a": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows.select([2, 0]), "test": rows}).save_to_disk(str(tmp_path / "both"))
    rows.save_to_disk(str(tmp_path / "one"), num_shards=2)
    rows.to_parquet(str(tmp_path / "one.parquet"))
    labels = [("x", "yes"), ("y", "no"), ("z", None)]
    all_rows = [Row(at, {"a": text, "label": label}) for at, (text, label) in enumerate(labels, start=1)]
    assert read(tmp_path / "one") == read(tmp_path / "one.parquet") == read(tmp_path / "both", "test") == all_rows
    assert read(tmp_path / "both", "train") == [Row(1, {"a": "z", "label": None}), Row(2, {"a": "x", "label": "yes"})]
