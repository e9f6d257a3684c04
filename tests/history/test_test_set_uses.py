"""Looks: every candidate that was tried on a test set is counted, and none twice."""

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.files.strict_json import read_json
from finetune.history.test_set_uses import beside_git, count_look


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


def test_going_back_does_not_take_back_the_looks(tmp_path: Path) -> None:
    """`dvc exp apply` and `git checkout` bring the file of then: the best of twenty would be a first look."""
    (tmp_path / ".git").mkdir()
    path = tmp_path / "data/looks.json"
    for adapter in ("a", "b", "c"):
        count_look(path, "set", adapter)
    path.write_text('{"set": ["c"], "other": ["x"]}', encoding="utf-8")
    assert count_look(path, "set", "c") == 3
    assert read_json(path) == {"set": ["a", "b", "c"], "other": ["x"]}
    path.unlink()
    assert count_look(path, "set", "d") == 4


def test_looks_of_a_colleague_are_taken_over(tmp_path: Path) -> None:
    """What git brings and this clone has not seen counts too, after its own."""
    (tmp_path / ".git").mkdir()
    path = tmp_path / "looks.json"
    count_look(path, "set", "mine")
    path.write_text('{"set": ["theirs", "mine"]}', encoding="utf-8")
    assert count_look(path, "set", "new") == 3
    assert read_json(path) == {"set": ["mine", "theirs", "new"]}


def test_worktrees_of_one_repository_share_their_memory(tmp_path: Path) -> None:
    """A second worktree is no second test set."""
    main = tmp_path / "main/.git"
    (main / "worktrees/two").mkdir(parents=True)
    (main / "worktrees/two/commondir").write_text("../..\n", encoding="utf-8")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/.git").write_text(f"gitdir: {main}/worktrees/two\n", encoding="utf-8")
    assert beside_git(tmp_path / "two/data/looks.json") == main / "finetune/looks.json"
    assert count_look(tmp_path / "main/data/looks.json", "set", "a") == 1
    assert count_look(tmp_path / "two/data/looks.json", "set", "b") == 2
    assert beside_git(Path("/nowhere/looks.json")) is None


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
