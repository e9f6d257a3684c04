"""Looks: every candidate that was tried on a test set is counted, and none twice."""

from pathlib import Path

import pytest

from finetune.artifacts import read_json
from finetune.errors import DataError
from finetune.looks import count_look


def test_each_new_candidate_is_a_look(tmp_path: Path) -> None:
    """Twenty candidates on one test set: the best of them is good by luck, unless the looks are counted."""
    path = tmp_path / "data/looks.json"
    assert [count_look(path, "set", adapter) for adapter in ("a", "b", "c")] == [1, 2, 3]
    assert read_json(path) == {"set": ["a", "b", "c"]}


def test_the_same_candidate_again_is_no_new_look(tmp_path: Path) -> None:
    """evaluate and decide both count, and a repetition learns nothing new; the file is left as it is."""
    path = tmp_path / "looks.json"
    for adapter in ("a", "b"):
        count_look(path, "set", adapter)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert [count_look(path, "set", adapter) for adapter in ("b", "a", "b")] == [2, 1, 2]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_another_test_set_is_counted_on_its_own(tmp_path: Path) -> None:
    """A fresh test set is the remedy that the verdict names, so it must start at one."""
    path = tmp_path / "looks.json"
    for adapter in ("a", "b"):
        count_look(path, "old", adapter)
    assert count_look(path, "new", "b") == 1
    assert count_look(path, "old", "c") == 3


def test_a_broken_file_is_not_started_anew(tmp_path: Path) -> None:
    """A merge conflict in it must not forget the looks that were taken."""
    path = tmp_path / "looks.json"
    path.write_text("<<<<<<< HEAD\n{}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"looks.json: broken JSON"):
        count_look(path, "set", "a")
    assert path.read_text(encoding="utf-8") == "<<<<<<< HEAD\n{}\n"


def test_a_queued_experiment_counts_in_the_tree_that_queued_it(tmp_path: Path) -> None:
    """DVC runs queued experiments in copies below .dvc/tmp/exps: counting for themselves, all were first looks."""
    for number, adapter in enumerate(("a", "b"), start=1):
        copy = tmp_path / f".dvc/tmp/exps/run{number}/data"
        copy.mkdir(parents=True)
        (copy / "looks.json").write_text("{}", encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(copy.parent)
            assert count_look(Path("data/looks.json"), "test", adapter) == number
    assert read_json(tmp_path / "data/looks.json") == {"test": ["a", "b"]}
