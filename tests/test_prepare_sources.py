"""Sources: nothing is read that DVC does not watch or a revision does not fix, and all of it is identified."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from finetune.artifacts import sha256_folder
from finetune.config_data import DataConfig, Source
from finetune.errors import DataError
from finetune.prepare.batches import BadRow, Row
from finetune.prepare.sources import Opened, open_source, source_path

REVISION = "0123456789" * 4


def rows_of(opened: Opened) -> list[Row | BadRow]:
    """All rows of an opened source."""
    return [row for batch in opened.batches for row in batch.rows()]


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """What is read of the section `data`, with tmp_path/raw as its folder."""
    (tmp_path / "raw").mkdir()
    return DataConfig.model_construct(directory="raw", max_row_size="1 MB")


@pytest.fixture
def find(tmp_path: Path, data: DataConfig) -> Callable[[str], Path]:
    """`source_path` of a path within tmp_path/raw."""
    return lambda path: source_path(data, Source(name="rows", path=path), tmp_path)


@pytest.fixture
def dataset(tmp_path: Path, data: DataConfig) -> Path:
    """raw/both, a folder of two splits as `save_to_disk` lays it out."""
    folder = tmp_path / "raw/both"
    for part, text in {"train": "x", "test": "y"}.items():
        (folder / part).mkdir(parents=True)
        table = pa.table({"a": [text]})
        with pa.ipc.new_stream(str(folder / part / "data.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / part / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}', encoding="utf-8")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    return folder


# ---- Where the file is


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


def test_a_folder_of_datasets_is_one(find: Callable[[str], Path], dataset: Path) -> None:
    """Its own state.json says which files it has, and in which order."""
    assert find("both") == dataset
    assert find("both/train") == dataset / "train"


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


@pytest.mark.parametrize("linked", ["train/data.arrow", "train", "train/state.json"])
def test_no_link_in_a_folder_leads_out(tmp_path: Path, find: Callable[[str], Path], dataset: Path, linked: str) -> None:
    """A shard that lies elsewhere can change without DVC noticing, as a whole file can."""
    (dataset / linked).rename(tmp_path / "elsewhere")
    (dataset / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError) as caught:
        find("both")
    where = f"{dataset / linked}: lies outside {tmp_path}/raw"
    assert str(caught.value) == f"{where}, where DVC does not watch it; move it in"


def test_a_folder_holds_no_link_to_a_folder(tmp_path: Path, find: Callable[[str], Path], dataset: Path) -> None:
    """Python walks past such links, so the hash of the whole would not change with the files behind one."""
    (dataset / "train").rename(tmp_path / "raw/train")
    (dataset / "train").symlink_to(tmp_path / "raw/train")
    with pytest.raises(DataError, match=r"both/train: is a link to a folder, whose files would not be hashed; put"):
        find("both")


# ---- What is opened


def test_a_file_comes_with_its_hash_and_size(tmp_path: Path, data: DataConfig) -> None:
    """Both stand in the report: they say which rows a model was trained on."""
    content = b'{"a": 1}\n{\n{"a": 3}\n'
    (tmp_path / "raw/rows.jsonl").write_bytes(content)
    opened = open_source(data, Source(name="rows", path="rows.jsonl"), tmp_path)
    assert opened.where == f"{tmp_path}/raw/rows.jsonl"
    assert (opened.sha256, opened.revision, opened.bytes) == (hashlib.sha256(content).hexdigest(), None, len(content))
    first, bad, last = rows_of(opened)
    assert (first, last) == (Row(1, {"a": 1}), Row(3, {"a": 3}))
    assert isinstance(bad, BadRow) and bad.line == 2


def test_a_row_may_be_as_large_as_params_allow(tmp_path: Path, data: DataConfig) -> None:
    """The bound is the one that its text names."""
    (tmp_path / "raw/rows.jsonl").write_text(json.dumps({"a": "x" * 10**6}), encoding="utf-8")
    opened = open_source(data, Source(name="rows", path="rows.jsonl"), tmp_path)
    assert rows_of(opened) == [BadRow(1, "is larger than data.max_row_size: 1 MB")]


def test_a_folder_comes_with_the_hash_of_all_of_it(tmp_path: Path, data: DataConfig, dataset: Path) -> None:
    """And with the size of the part that is read, which is what progress is measured against."""
    opened = open_source(data, Source(name="rows", path="both", part="test"), tmp_path)
    assert opened.sha256 == sha256_folder(dataset)
    assert opened.bytes == (dataset / "test/data.arrow").stat().st_size
    assert rows_of(opened) == [Row(1, {"a": "y"})]


@pytest.mark.parametrize(
    ("path", "part", "why"),
    [
        ("both", None, r"both: holds the parts train, test and it names none; set the source's `part` to one$"),
        ("rows.txt", None, r"rows.txt: is nothing that can be read; known are \.jsonl, "),
        ("rows.csv", "train", r"rows.csv: is one file, so it has no part 'train'; take `part` out of its source$"),
    ],
)
def test_what_cannot_be_opened_says_so_at_once(
    tmp_path: Path, data: DataConfig, dataset: Path, path: str, part: str | None, why: str
) -> None:
    """Before any row is read, not after an hour."""
    for name in ("rows.txt", "rows.csv"):
        (tmp_path / "raw" / name).write_bytes(b"a\n1\n")
    with pytest.raises(DataError, match=why):
        open_source(data, Source(name="rows", path=path, part=part), tmp_path)


# ---- The Hub


@pytest.fixture
def hub(tmp_path: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Opened]:
    """`open_source` of a dataset of the Hub; a folder stands in for it, and its cache is in tmp_path."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    lines = "".join(json.dumps({"a": f"row {number}"}) + "\n" for number in range(2_500))
    (tmp_path / "hub/train.jsonl").write_text(lines, encoding="utf-8")

    def opened(name: str = str(tmp_path / "hub"), part: str = "train", **more: Any) -> Opened:
        return open_source(data, Source(name="rows", hub=name, revision=REVISION, part=part, **more), tmp_path)

    return opened


def test_a_dataset_of_the_hub_is_read_like_a_file(tmp_path: Path, hub: Callable[..., Opened]) -> None:
    """Its revision identifies it, so no hash is made."""
    opened = hub()
    assert opened.where == f"hub:{tmp_path}/hub@{REVISION}"
    assert (opened.sha256, opened.revision) == (None, REVISION)
    batches = list(opened.batches)
    assert batches[-1].read_bytes == opened.bytes > 0
    rows = [row for batch in batches for row in batch.rows()]
    assert rows == [Row(number + 1, {"a": f"row {number}"}) for number in range(2_500)]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"part": "dev"}, "part 'dev' can't be loaded (Unknown split \"dev\". Should be one of ['train'].)"),
        ({"subset": "x"}, "part 'train' of subset 'x' can't be loaded (BuilderConfig 'x' not found. Available: ['def"),
        ({"name": "/no/such"}, "part 'train' can't be loaded (Couldn't find any data file at /no/such.)"),
        ({"name": "nobody/nothing"}, "part 'train' can't be loaded ("),
    ],
)
def test_what_the_hub_does_not_give_is_an_error_in_one_line(
    hub: Callable[..., Opened], keys: dict[str, str], why: str
) -> None:
    """A traceback of ten libraries hides the misspelt name."""
    with pytest.raises(DataError) as caught:
        hub(**keys)
    told = str(caught.value)
    assert told.partition(f"@{REVISION}: ")[2].startswith(why)
    assert told.endswith("see its name, revision, subset and part, and the connection (a private one needs HF_TOKEN)")
    assert "\n" not in told


def test_no_program_of_a_dataset_is_ever_run(tmp_path: Path, hub: Callable[..., Opened]) -> None:
    """A dataset that brings a script could do anything on this machine."""
    (tmp_path / "hub/hub.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    for name in ("hub", "hub/hub.py"):
        with pytest.raises(DataError, match=r"can't be loaded \(Dataset scripts are no longer supported"):
            hub(name=str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
