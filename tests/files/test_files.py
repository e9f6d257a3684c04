"""Files are complete or absent, even after a kill, on a full disk, and with a second process."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import ConfigError, DataError, InterruptedRunError
from finetune.files import atomic
from finetune.files.atomic import publish_directory, write_json, write_lines
from finetune.files.hashing import files_in, sha256_file, sha256_folder, sha256_json, sha256_tensors
from finetune.files.manifests import read_manifest, write_manifest
from finetune.files.run_lock import Holder, pipeline_lock, read_holder, read_record
from finetune.files.strict_json import read_json


def names_in(folder: Path) -> list[str]:
    """Return all names directly in a folder, including hidden ones."""
    return sorted(path.name for path in folder.iterdir())


def publish(target: Path, content: str) -> None:
    """Publish a folder with one file."""
    with publish_directory(target) as folder:
        (folder / "file").write_text(content, encoding="utf-8")


class KilledError(BaseException):
    """Simulates a kill: code after the line that raises it does not run."""


# ---- One file


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    """Rows are created while they are written; an error in row 1,000 must not destroy the previous file."""
    path = tmp_path / "folder/rows.jsonl"
    write_lines(path, ["old\n"])

    def rows() -> Iterator[str]:
        yield "new\n"
        raise RuntimeError("row 2")

    with pytest.raises(RuntimeError, match="row 2"):
        write_lines(path, rows())
    assert path.read_text(encoding="utf-8") == "old\n"
    assert names_in(path.parent) == ["rows.jsonl"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """If `finetune report` reads while decide writes, its open file stays valid: files are replaced."""
    path = tmp_path / "report.json"
    write_json(path, {"verdict": "iterate"})
    with path.open(encoding="utf-8") as reader:
        write_json(path, {"verdict": "deploy", "reasons": []})
        assert json.load(reader) == {"verdict": "iterate"}
    assert read_json(path) == {"verdict": "deploy", "reasons": []}


def test_lines_are_written_as_utf_8_without_translation(tmp_path: Path) -> None:
    """The hash of a file must be the same on every system: no CR, no local encoding."""
    path = tmp_path / "rows"
    write_lines(path, ["é\n", "\u2028\r\n"])
    assert path.read_bytes() == b"\xc3\xa9\n\xe2\x80\xa8\r\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_with_nan_is_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    """NaN is not valid JSON; DVC and browsers could not read the report."""
    path = tmp_path / "report.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json({"loss": value})
    assert read_json(path) == {"loss": 1.5}
    assert names_in(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such file; run the stage that writes it (dvc repro)"),
        (b"", "broken JSON (Expecting value: line 1 column 1 (char 0)); run the stage that writes it again"),
        (b'{"a": NaN}', "broken JSON (NaN is not JSON); run the stage that writes it again"),
        (b"[1]", "not a JSON object; run the stage that writes it again"),
    ],
)
def test_a_missing_or_broken_report_is_named(tmp_path: Path, content: bytes | None, text: str) -> None:
    """A traceback of the json module would name neither the file nor the remedy."""
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}: {text}"


# ---- A published folder


def test_a_published_folder_replaces_the_old_one(tmp_path: Path) -> None:
    """No file of the old run may remain, or its adapter would be loaded with the new config."""
    target = tmp_path / "parent/out"
    with publish_directory(target) as folder:
        (folder / "old").write_text("old", encoding="utf-8")
        assert not target.exists()
    publish(target, "new")
    assert names_in(target) == ["file"]
    assert names_in(target.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_inside_keeps_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    """If train is stopped at its last line, the previous adapter must remain."""
    target = tmp_path / "out"
    publish(target, "old")

    def fail() -> None:
        with publish_directory(target) as folder:
            (folder / "file").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert (target / "file").read_text(encoding="utf-8") == "old"
    assert names_in(tmp_path) == ["out"]


def test_a_kill_between_the_two_renames_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the renames the name does not exist; the old folder is restored even if the next attempt fails."""
    target = tmp_path / "out"
    publish(target, "old")
    replace = Path.replace

    def killed_at_the_second(self: Path, other: Path) -> Path:
        if self.name == ".out.partial":
            raise KilledError
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", killed_at_the_second)
    with pytest.raises(KilledError):
        publish(target, "new")
    assert not target.exists()
    monkeypatch.undo()

    with pytest.raises(RuntimeError), publish_directory(target):
        raise RuntimeError
    assert (target / "file").read_text(encoding="utf-8") == "old"
    publish(target, "newer")
    assert (target / "file").read_text(encoding="utf-8") == "newer"
    assert names_in(tmp_path) == ["out"]


def test_leftovers_of_a_kill_are_not_published(tmp_path: Path) -> None:
    """A SIGKILL runs no clean-up: the next run neither fails because of the partial folder nor uses its files."""
    target = tmp_path / "out"
    publish(target, "old")
    for state in ("partial", "replaced"):
        (tmp_path / f".out.{state}/deep").mkdir(parents=True)
        (tmp_path / f".out.{state}/deep/half").write_text("half", encoding="utf-8")
    publish(target, "new")
    assert [path.relative_to(tmp_path).as_posix() for path in files_in(tmp_path)] == ["out/file"]


def test_files_are_synced_before_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that reaches the disk before the data leaves empty files after a power failure."""
    target, synced = tmp_path / "out", []
    monkeypatch.setattr(atomic.os, "fsync", lambda number: synced.append(target.exists()))
    publish(target, "new")
    assert synced == [False, False, True]  # the file, its folder, and after the rename the parent folder


# ---- Hashes and manifests


def test_a_folder_hash_covers_names_and_contents(tmp_path: Path) -> None:
    """It identifies the prepared data: renaming, moving or changing a file changes it; file times do not."""
    (tmp_path / "a/deep").mkdir(parents=True)
    (tmp_path / "a/deep/file").write_text("text", encoding="utf-8")
    first = sha256_folder(tmp_path / "a")
    os.utime(tmp_path / "a/deep/file", (0, 0))
    assert sha256_folder(tmp_path / "a") == first
    (tmp_path / "a/deep/file").rename(tmp_path / "a/deep/other")
    renamed = sha256_folder(tmp_path / "a")
    (tmp_path / "a/deep/other").write_text("texT", encoding="utf-8")
    assert len({first, renamed, sha256_folder(tmp_path / "a")}) == 3


def test_a_json_hash_ignores_the_order_of_keys() -> None:
    """In JSON the order of keys is irrelevant, but not the order of a list."""
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1, "b": [1, 2]}) != sha256_json({"a": 1, "b": [2, 1]})


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Create a folder with two files and their manifest."""
    folder = tmp_path / "adapter"
    with publish_directory(folder) as partial:
        (partial / "weights").write_bytes(bytes(100))
        (partial / "tokenizer").mkdir()
        (partial / "tokenizer/vocab").write_text("a b c", encoding="utf-8")
        write_manifest(partial, {"adapter_sha256": "abc"})
    return folder


def test_a_manifest_accounts_for_every_file(published: Path) -> None:
    """Content and files are returned; an unchanged folder raises no error."""
    manifest = read_manifest(published)
    assert manifest["adapter_sha256"] == "abc"
    assert manifest["files"] == {
        name: {"bytes": size, "sha256": sha256_file(published / name)}
        for name, size in (("tokenizer/vocab", 5), ("weights", 100))
    }


def test_a_manifest_detects_one_changed_byte(published: Path) -> None:
    """A change of one byte, with the same name and size, is another adapter."""
    path = published / "weights"
    path.write_bytes(bytes(99) + b"\x01")
    with pytest.raises(DataError) as caught:
        read_manifest(published)
    assert str(caught.value) == (f"{path}: differs from the published file (wrong hash); run its stage again")


def test_a_manifest_detects_truncation(published: Path) -> None:
    """The disk may have been full when the folder was copied."""
    os.truncate(published / "weights", 50)
    with pytest.raises(DataError, match="weights: differs from the published file"):
        read_manifest(published)


def test_a_manifest_detects_a_missing_file(published: Path) -> None:
    """The complete text is checked, as it is what users see of a partially copied adapter."""
    path = published / "tokenizer/vocab"
    path.unlink()
    with pytest.raises(DataError) as caught:
        read_manifest(published)
    manifest = published / "manifest.json"
    assert str(caught.value) == f"{path}: is missing, although {manifest} lists it; run the stage that writes it again"


def test_a_folder_without_a_manifest_is_refused(published: Path) -> None:
    """The manifest is written last, so without it the folder is incomplete."""
    (published / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest.json: no such file; run the stage that writes it"):
        read_manifest(published)


# ---- Tensors


def write_tensors(path: Path, header: Mapping[str, Any], data: bytes) -> Path:
    """Write a safetensors file manually, to control the order of its header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [1, 1], "data_offsets": [8, 12]}
DATA = struct.pack("<3f", 1.0, 2.0, 3.0)


def test_the_canonical_hash_ignores_the_header(tmp_path: Path) -> None:
    """PEFT writes the same tensors in a different order each run: the files differ, the adapter does not."""
    one = write_tensors(tmp_path / "one", {"a": A, "b": B}, DATA)
    other = write_tensors(tmp_path / "other", {"__metadata__": {"format": "pt"}, "b": B, "a": A}, DATA)
    moved = {"a": A | {"data_offsets": [4, 12]}, "b": B | {"data_offsets": [0, 4]}}
    third = write_tensors(tmp_path / "third", moved, DATA[8:] + DATA[:8])
    assert len({sha256_file(path) for path in (one, other, third)}) == 3
    assert len({sha256_tensors(path) for path in (one, other, third)}) == 1


@given(bit=st.integers(0, 8 * len(DATA) - 1))
def test_the_canonical_hash_covers_every_bit(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    """Reproducibility is claimed bit for bit, so the hash must cover every bit."""
    folder = tmp_path_factory.mktemp("bits")
    changed = bytearray(DATA)
    changed[bit // 8] ^= 1 << bit % 8
    one = write_tensors(folder / "one", {"a": A, "b": B}, DATA)
    other = write_tensors(folder / "other", {"a": A, "b": B}, bytes(changed))
    assert sha256_tensors(one) != sha256_tensors(other)


def test_the_canonical_hash_covers_names_dtypes_and_shapes(tmp_path: Path) -> None:
    """The same bytes with another name, type or shape are another adapter."""
    headers = [
        {"a": A, "b": B},
        {"a": A, "c": B},
        {"b": A, "a": B},
        {"a": A | {"shape": [1, 2]}, "b": B},
        {"a": A | {"dtype": "I32"}, "b": B},
    ]
    files = [write_tensors(tmp_path / str(at), header, DATA) for at, header in enumerate(headers)]
    assert len({sha256_tensors(path) for path in files}) == len(files)


def test_a_truncated_tensor_file_is_a_data_error(tmp_path: Path) -> None:
    """A partially copied adapter is a user error, without a traceback of a Rust library."""
    path = write_tensors(tmp_path / "one", {"a": A, "b": B}, DATA[:-1])
    with pytest.raises(DataError) as caught:
        sha256_tensors(path)
    assert str(caught.value).startswith(f"{path}: not a complete safetensors file (")


# ---- The lock

HOLDER = """
import sys, time
from pathlib import Path
from finetune.files.run_lock import pipeline_lock
with pipeline_lock(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds `tmp_path/work/pipeline.lock`."""
    source = str(Path(atomic.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "work/pipeline.lock")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_lock_keeps_a_second_process_out(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """Two trains in one folder would write the same checkpoint; the error names the holder immediately."""
    path = tmp_path / "work/pipeline.lock"
    with pytest.raises(ConfigError) as caught, pipeline_lock(path, "evaluate"):
        pass
    who = f"stage train (process {holder.pid})"
    assert str(caught.value) == f"{path}: {who} is running in this folder; wait for it or stop it, then try again"
    assert holder.poll() is None


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A lock that outlives a SIGKILL would have to be removed manually, with the risk of removing live ones."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with pipeline_lock(tmp_path / "work/pipeline.lock", "train"):
        assert read_holder(tmp_path / "work/pipeline.lock") == Holder("train", os.getpid())


def test_the_lock_is_released_after_a_failure(tmp_path: Path) -> None:
    """Otherwise the process itself could not run its next stage."""
    path = tmp_path / "work/pipeline.lock"
    with pytest.raises(RuntimeError), pipeline_lock(path, "train"):
        raise RuntimeError
    with pipeline_lock(path, "evaluate"):
        assert (tmp_path / "work/pipeline.holder").exists()
    assert not (tmp_path / "work/pipeline.holder").exists()


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (None, "done", None),
        (KeyboardInterrupt(), "interrupted", None),
        (InterruptedRunError("train", "was stopped"), "interrupted", None),
        (DataError("rows.jsonl:62", "broken JSON"), "failed", "bad-data"),
        (OSError("no space left"), "failed", None),
    ],
)
def test_the_lock_records_how_its_holder_ended(
    tmp_path: Path, error: BaseException | None, outcome: str, code: str | None
) -> None:
    """`finetune status` reads the record after the process ended, instead of guessing from a log."""
    path = tmp_path / "pipeline.lock"
    before = time.time()
    with suppress(BaseException), pipeline_lock(path, "train"):
        held = read_record(path)
        if error is not None:
            raise error
    assert held is not None and (held.stage, held.outcome) == ("train", "running")
    record = read_record(path)
    assert record is not None and (record.stage, record.outcome) == ("train", outcome)
    assert (record.problem and record.problem.code) == code
    assert before <= record.at <= time.time()
