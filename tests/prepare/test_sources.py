"""Sources: only inputs tracked by DVC or fixed by a revision are read, and all are identified."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from finetune.config.data import DataConfig, Source
from finetune.errors import DataError
from finetune.files.hashing import sha256_folder
from finetune.prepare.readers.batches import BadRow, Row
from finetune.prepare.sources import Opened, open_source, source_path, work_bytes

REVISION = "0123456789" * 4
OpenHub = Callable[..., Opened]


def rows_of(opened: Opened) -> list[Row | BadRow]:
    """Return all rows of an opened source."""
    return [row for batch in opened.batches for row in batch.rows()]


def section(**keys: Any) -> DataConfig:
    """Return a section `data` with folder raw and these keys."""
    return DataConfig.model_construct(None, directory="raw", **keys)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Return a section `data` with tmp_path/raw as its folder."""
    (tmp_path / "raw").mkdir()
    return section(max_row_size="1 MB")


@pytest.fixture
def find(tmp_path: Path, data: DataConfig) -> Callable[[str], Path]:
    """Return `source_path` for a path inside tmp_path/raw."""
    return lambda path: source_path(data, Source(name="rows", path=path), tmp_path)


@pytest.fixture
def dataset(tmp_path: Path, data: DataConfig) -> Path:
    """Create raw/both, a folder of two splits in the layout of `save_to_disk`."""
    folder = tmp_path / "raw/both"
    for part, text in {"train": "x", "test": "y"}.items():
        (folder / part).mkdir(parents=True)
        table = pa.table({"a": [text]})
        with pa.ipc.new_stream(str(folder / part / "data.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / part / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}', encoding="utf-8")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    return folder


# ---- Location of the file


def test_a_file_within_the_data_folder_is_found(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """Subfolders and links that stay inside the folder are allowed."""
    (tmp_path / "raw/deep").mkdir()
    (tmp_path / "raw/deep/rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "raw/link.jsonl").symlink_to(tmp_path / "raw/deep/rows.jsonl")
    assert find("deep/rows.jsonl") == tmp_path / "raw/deep/rows.jsonl"
    assert find("deep/../deep/rows.jsonl").samefile(tmp_path / "raw/deep/rows.jsonl")
    assert find("link.jsonl").samefile(tmp_path / "raw/deep/rows.jsonl")


def test_a_missing_file_is_reported_with_its_source(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """The name identifies the line of params.yaml to fix."""
    with pytest.raises(DataError) as caught:
        find("rows.jsonl")
    assert str(caught.value) == f"{tmp_path}/raw/rows.jsonl: no such file; data.sources names it as 'rows'"


@pytest.mark.parametrize(
    ("path", "shown", "reason"),
    [
        ("x" * 300, "x" * 80, "File name too long"),
        ("a\0b", "a\\x00b", "embedded null byte"),
        ("loop/rows.jsonl", "loop/rows.jsonl", "Too many levels of symbolic links"),
    ],
)
def test_an_inaccessible_path_is_reported_like_a_missing_file(
    tmp_path: Path, find: Callable[[str], Path], path: str, shown: str, reason: str
) -> None:
    """A typing error in params.yaml must cause neither a traceback nor a NUL byte on the terminal."""
    (tmp_path / "raw/loop").symlink_to("loop")
    with pytest.raises(DataError) as caught:
        find(path)
    assert str(caught.value) == (
        f"{tmp_path}/raw: the path '{shown}' in it can't be checked ({reason}); data.sources names it as 'rows'"
    )


def test_a_path_below_a_file_is_reported_like_a_missing_file(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """The system raises another error for it than for a missing file; the message is the same."""
    (tmp_path / "raw/rows.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl/x: no such file; data.sources names it as 'rows'$"):
        find("rows.jsonl/x")


def test_circular_links_are_a_one_line_error(tmp_path: Path, find: Callable[[str], Path], dataset: Path) -> None:
    """In a folder, Python raises its own error for circular links during the search."""
    (dataset / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"^[^\n]*raw: the path 'both' in it can't be checked \(Symlink loop from "):
        find("both")


def test_an_empty_file_is_refused(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """A failed export leaves an empty file; training on the other sources alone would hide it."""
    (tmp_path / "raw/rows.jsonl").touch()
    with pytest.raises(DataError) as caught:
        find("rows.jsonl")
    text = "is empty; add rows to it or remove 'rows' from data.sources"
    assert str(caught.value) == f"{tmp_path}/raw/rows.jsonl: {text}"


def test_a_folder_is_refused_as_a_source(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """A source is one file: the order of files in a folder depends on the disk."""
    with pytest.raises(DataError) as caught:
        find(".")
    assert str(caught.value) == f"{tmp_path}/raw: is not a file; each entry of data.sources must name one file"


def test_a_datasets_folder_is_accepted_as_a_source(find: Callable[[str], Path], dataset: Path) -> None:
    """Its state.json lists its files in order."""
    assert find("both") == dataset
    assert find("both/train") == dataset / "train"


def test_a_path_outside_the_data_folder_is_refused(tmp_path: Path, find: Callable[[str], Path]) -> None:
    """DVC hashes only the data folder: after a change outside, stale results would count as current."""
    outside = tmp_path / "rows.jsonl"
    outside.write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        find("../rows.jsonl")
    where = f"{tmp_path}/raw/../rows.jsonl: is outside {tmp_path}/raw"
    assert str(caught.value) == f"{where}, where DVC does not track it; move it in"


@pytest.mark.parametrize("way", ["absolute", "symlink", "symlinked folder"])
def test_other_ways_out_of_the_data_folder_are_refused(tmp_path: Path, find: Callable[[str], Path], way: str) -> None:
    """Absolute paths and links, to the file or its folder, are refused like `..`."""
    outside = tmp_path / "elsewhere/rows.jsonl"
    outside.parent.mkdir()
    outside.write_text("{}\n", encoding="utf-8")
    (tmp_path / "raw/link.jsonl").symlink_to(outside)
    (tmp_path / "raw/folder").symlink_to(outside.parent)
    path = {"absolute": str(outside), "symlink": "link.jsonl", "symlinked folder": "folder/rows.jsonl"}[way]
    with pytest.raises(DataError, match=r"is outside .*raw, where DVC does not track it"):
        find(path)


@pytest.mark.parametrize("linked", ["train/data.arrow", "train", "train/state.json"])
def test_links_out_of_a_folder_are_refused(
    tmp_path: Path, find: Callable[[str], Path], dataset: Path, linked: str
) -> None:
    """A shard outside could change without DVC noticing, as a file outside could."""
    (dataset / linked).rename(tmp_path / "elsewhere")
    (dataset / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError) as caught:
        find("both")
    where = f"{dataset / linked}: is outside {tmp_path}/raw"
    assert str(caught.value) == f"{where}, where DVC does not track it; move it in"


def test_links_to_folders_in_a_folder_are_refused(tmp_path: Path, find: Callable[[str], Path], dataset: Path) -> None:
    """Python does not follow such links, so the folder's hash would not change with the linked files."""
    (dataset / "train").rename(tmp_path / "raw/train")
    (dataset / "train").symlink_to(tmp_path / "raw/train")
    with pytest.raises(DataError, match=r"both/train: is a link to a folder; DVC would not hash its files; put"):
        find("both")


# ---- Opened sources


def test_a_file_has_its_hash_and_size(tmp_path: Path, data: DataConfig) -> None:
    """The report contains both to identify the training rows."""
    content = b'{"a": 1}\n{\n{"a": 3}\n'
    (tmp_path / "raw/rows.jsonl").write_bytes(content)
    opened = open_source(data, Source(name="rows", path="rows.jsonl"), tmp_path)
    assert opened.where == f"{tmp_path}/raw/rows.jsonl"
    assert (opened.sha256, opened.revision, opened.bytes) == (hashlib.sha256(content).hexdigest(), None, len(content))
    first, bad, last = rows_of(opened)
    assert (first, last) == (Row(1, {"a": 1}), Row(3, {"a": 3}))
    assert isinstance(bad, BadRow) and bad.line == 2


def test_a_row_may_be_as_large_as_params_allow(tmp_path: Path, data: DataConfig) -> None:
    """The limit is the one named in the error."""
    (tmp_path / "raw/rows.jsonl").write_text(json.dumps({"a": "x" * 10**6}), encoding="utf-8")
    opened = open_source(data, Source(name="rows", path="rows.jsonl"), tmp_path)
    assert rows_of(opened) == [BadRow(1, "is larger than data.max_row_size: 1 MB")]


def test_a_folder_has_the_hash_of_all_its_files(tmp_path: Path, data: DataConfig, dataset: Path) -> None:
    """Its size is that of the part that is read, for the progress bar."""
    opened = open_source(data, Source(name="rows", path="both", part="test"), tmp_path)
    assert opened.sha256 == sha256_folder(dataset)
    assert opened.bytes == (dataset / "test/data.arrow").stat().st_size
    assert rows_of(opened) == [Row(1, {"a": "y"})]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("rows.jsonl", b'\n{"a": 1}\n', "{path}:2"),
        ("rows.csv", b"a\n1\n", "{path}:2"),
        ("rows.tsv", b"a\n1\n", "{path}:2"),
        ("lines.json", b'\n{"a": 1}\n', "{path}:2"),
        ("rows.json", b'\n[{"a": 1}]', "{path}: row 1"),
        ("both", None, "{path}: row 1"),
        ("both/test/data.arrow", None, "{path}: row 1"),
    ],
)
def test_a_row_is_located_by_line_or_number(
    tmp_path: Path, data: DataConfig, dataset: Path, name: str, content: bytes | None, place: str
) -> None:
    """`path:N` means line N in an editor, so it is not used if N is a row number."""
    path = tmp_path / "raw" / name
    if content is not None:
        path.write_bytes(content)
    part = "train" if name == "both" else None
    opened = open_source(data, Source(name="rows", path=name, part=part), tmp_path)
    assert [opened.at(row.line) for row in rows_of(opened)] == [place.format(path=path)]


@pytest.mark.parametrize(
    ("path", "part", "why"),
    [
        (
            "both",
            None,
            (
                r"both: has the parts train, test, and it names none; set `part` of its source to one of "
                r"them$"
            ),
        ),
        ("rows.txt", None, r"rows.txt: has an unsupported format; supported: \.jsonl, "),
        ("rows.csv", "train", r"rows.csv: is a single file, so it has no part 'train'; remove `part` from its source$"),
    ],
)
def test_an_unreadable_source_is_reported_at_once(
    tmp_path: Path, data: DataConfig, dataset: Path, path: str, part: str | None, why: str
) -> None:
    """The error occurs before any row is read."""
    for name in ("rows.txt", "rows.csv"):
        (tmp_path / "raw" / name).write_bytes(b"a\n1\n")
    with pytest.raises(DataError, match=why):
        open_source(data, Source(name="rows", path=path, part=part), tmp_path)


# ---- Amount of work


def test_the_amount_of_work_comes_from_the_sources(tmp_path: Path, dataset: Path) -> None:
    """Unneeded workers cost a second, missing ones hours; an unknown amount counts as large."""
    folder = tmp_path / "raw"
    for name, size in {"a.jsonl": 100, "b.jsonl.gz": 10, "c.csv.ZST": 7}.items():
        (folder / name).write_bytes(b"x" * size)
    (folder / "folder").mkdir()
    (folder / "folder/d.jsonl").write_bytes(b"x" * 1000)
    of_dataset = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())

    def work(*paths: str, **keys: Any) -> int:
        sources = [Source(name=path[:9], **(keys or {"path": path})) for path in paths]
        return work_bytes(section(sources=tuple(sources)), tmp_path)

    assert work("a.jsonl") == 100
    assert work("a.jsonl", "b.jsonl.gz", "c.csv.ZST") == 100 + 5 * 10 + 5 * 7
    assert work("both") == of_dataset > 0
    assert work("no.jsonl", "folder", "x" * 300, "a\0b", "a.jsonl") == 100
    assert work("rows", hub="org/rows", revision=REVISION, part="train") == 10**9


# ---- The Hub


class Hub:
    """A stand-in for the Hub: `datasets.load_dataset` reads folders as if they were downloaded."""

    def __init__(self, folder: Path, load: Callable[..., Any]) -> None:
        self.folder, self.cached, self.failure = folder, REVISION, ""
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._load = load

    def load_dataset(self, *args: Any, **options: Any) -> Any:
        """Return what the real function gives for a folder; the cache is named after a revision."""
        self.calls.append((args, options))
        if self.failure:
            raise ConnectionError(self.failure)
        return self._load(str(self.folder / args[0]), cache_dir=str(self.folder / "cache" / self.cached), **options)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Create a Hub with the dataset org/rows, and an empty working folder."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "hub/org/rows").mkdir(parents=True)
    lines = "".join(json.dumps({"a": f"row {number}"}) + "\n" for number in range(2_500))
    (tmp_path / "hub/org/rows/train.jsonl").write_text(lines, encoding="utf-8")
    hub = Hub(tmp_path / "hub", datasets.load_dataset)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


@pytest.fixture
def open_hub(tmp_path: Path, data: DataConfig, hub: Hub) -> OpenHub:
    """Return `open_source` for a dataset of the Hub."""

    def opened(name: str = "org/rows", part: str = "train", **more: Any) -> Opened:
        return open_source(data, Source(name="rows", hub=name, revision=REVISION, part=part, **more), tmp_path)

    return opened


def test_a_dataset_of_the_hub_is_read_like_a_file(open_hub: OpenHub) -> None:
    """Its revision identifies it, so it has no hash."""
    opened = open_hub()
    assert opened.where == f"hub:org/rows@{REVISION}"
    assert (opened.sha256, opened.revision) == (None, REVISION)
    assert opened.at(7) == f"hub:org/rows@{REVISION}: row 7"
    batches = list(opened.batches)
    assert batches[-1].read_bytes == opened.bytes > 0
    rows = [row for batch in batches for row in batch.rows()]
    assert rows == [Row(number + 1, {"a": f"row {number}"}) for number in range(2_500)]


@pytest.mark.parametrize("subset", [None, "default"])
def test_the_hub_gets_exactly_the_arguments_of_the_source(hub: Hub, open_hub: OpenHub, subset: str | None) -> None:
    """Without the revision the newest data would be read, and trust_remote_code would run foreign programs."""
    open_hub(subset=subset)
    assert hub.calls == [(("org/rows",), {"name": subset, "split": "train", "revision": REVISION})]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_local_folder_is_not_taken_for_a_hub_dataset(tmp_path: Path, hub: Hub, open_hub: OpenHub, kind: str) -> None:
    """`datasets` would read the local folder, which no revision fixes and DVC does not track."""
    here = tmp_path / "here/org/rows"
    here.mkdir(parents=True)
    if kind == "file":
        here.rmdir()
        here.touch()
    with pytest.raises(DataError) as caught:
        open_hub()
    assert str(caught.value) == (
        f"hub: org/rows is also a local {kind}, which would be read instead of the Hub; move it into "
        "data.directory and use path, so that DVC tracks it, or move it away"
    )
    assert not hub.calls


def test_another_cached_revision_is_refused(hub: Hub, open_hub: OpenHub) -> None:
    """Offline, `datasets` returns the data downloaded last, whatever their revision, with at most a warning."""
    hub.cached = "9" * 40
    with pytest.raises(DataError) as caught:
        open_hub()
    why = "the loaded data is not from this revision; check the connection to the Hub and the name (org/name)"
    assert str(caught.value) == f"hub:org/rows@{REVISION}: {why}"


@pytest.mark.parametrize(
    ("keys", "failure", "why"),
    [
        ({"part": "dev"}, "", "part 'dev' can't be loaded (Unknown split \"dev\". Should be one of ['train'].)"),
        ({"subset": "x"}, "", "part 'train' of subset 'x' can't be loaded (BuilderConfig 'x' not found. Available: ["),
        ({"name": "nobody/nothing"}, "", "part 'train' can't be loaded (Couldn't find any data file at /"),
        ({}, "no way\n  to the Hub", "part 'train' can't be loaded (no way to the Hub); "),
    ],
)
def test_errors_of_the_hub_are_one_line(
    hub: Hub, open_hub: OpenHub, keys: dict[str, str], failure: str, why: str
) -> None:
    """A traceback through ten libraries would hide the misspelt name."""
    hub.failure = failure
    with pytest.raises(DataError) as caught:
        open_hub(**keys)
    message = str(caught.value)
    assert message.partition(f"@{REVISION}: ")[2].startswith(why)
    assert message.endswith(
        "check its name, revision, subset and part, and the connection (private datasets need HF_TOKEN)"
    )
    assert "\n" not in message


def test_the_script_of_a_dataset_is_never_run(tmp_path: Path, hub: Hub, open_hub: OpenHub) -> None:
    """The script of a dataset could do anything on the machine."""
    (hub.folder / "org/rows/rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(DataError, match=r"can't be loaded \(Dataset scripts are no longer supported"):
        open_hub()
    assert not (tmp_path / "ran").exists()
