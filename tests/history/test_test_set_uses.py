"""Test-set uses: every candidate evaluated on a test set is counted once."""

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.files.strict_json import read_json
from finetune.history.test_set_uses import beside_git, count_look


def test_each_new_candidate_is_counted(tmp_path: Path) -> None:
    """Of twenty candidates on one test set the best is good by chance, so the uses are counted."""
    path = tmp_path / "data/looks.json"
    assert [count_look(path, "set", adapter) for adapter in ("a", "b", "c")] == [1, 2, 3]
    assert read_json(path) == {"set": ["a", "b", "c"]}


def test_a_repeated_candidate_is_not_counted_again(tmp_path: Path) -> None:
    """evaluate and decide both count, but a repetition adds nothing; the file is unchanged."""
    path = tmp_path / "looks.json"
    for adapter in ("a", "b"):
        count_look(path, "set", adapter)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert [count_look(path, "set", adapter) for adapter in ("b", "a", "b")] == [2, 1, 2]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_another_test_set_is_counted_separately(tmp_path: Path) -> None:
    """The verdict recommends a fresh test set, so its count starts at one."""
    path = tmp_path / "looks.json"
    for adapter in ("a", "b"):
        count_look(path, "old", adapter)
    assert count_look(path, "new", "b") == 1
    assert count_look(path, "old", "c") == 3


def test_checking_out_an_old_commit_keeps_the_count(tmp_path: Path) -> None:
    """`dvc exp apply` and `git checkout` restore an old file: the best of twenty would count as the first use."""
    (tmp_path / ".git").mkdir()
    path = tmp_path / "data/looks.json"
    for adapter in ("a", "b", "c"):
        count_look(path, "set", adapter)
    path.write_text('{"set": ["c"], "other": ["x"]}', encoding="utf-8")
    assert count_look(path, "set", "c") == 3
    assert read_json(path) == {"set": ["a", "b", "c"], "other": ["x"]}
    path.unlink()
    assert count_look(path, "set", "d") == 4


def test_uses_of_a_colleague_are_added(tmp_path: Path) -> None:
    """Uses that arrive through git are added after those of this clone."""
    (tmp_path / ".git").mkdir()
    path = tmp_path / "looks.json"
    count_look(path, "set", "mine")
    path.write_text('{"set": ["theirs", "mine"]}', encoding="utf-8")
    assert count_look(path, "set", "new") == 3
    assert read_json(path) == {"set": ["mine", "theirs", "new"]}


def test_worktrees_of_one_repository_share_the_count(tmp_path: Path) -> None:
    """A second worktree does not start a new count."""
    main = tmp_path / "main/.git"
    (main / "worktrees/two").mkdir(parents=True)
    (main / "worktrees/two/commondir").write_text("../..\n", encoding="utf-8")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/.git").write_text(f"gitdir: {main}/worktrees/two\n", encoding="utf-8")
    assert beside_git(tmp_path / "two/data/looks.json") == main / "finetune/looks.json"
    assert count_look(tmp_path / "main/data/looks.json", "set", "a") == 1
    assert count_look(tmp_path / "two/data/looks.json", "set", "b") == 2
    assert beside_git(Path("/nowhere/looks.json")) is None


def test_a_broken_file_is_not_replaced(tmp_path: Path) -> None:
    """After a merge conflict in it, the uses must not be forgotten."""
    path = tmp_path / "looks.json"
    path.write_text("<<<<<<< HEAD\n{}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"looks.json: broken JSON"):
        count_look(path, "set", "a")
    assert path.read_text(encoding="utf-8") == "<<<<<<< HEAD\n{}\n"


def test_a_queued_experiment_counts_in_the_tree_that_queued_it(tmp_path: Path) -> None:
    """DVC runs queued experiments in copies below .dvc/tmp/exps: counted there, all would be first uses."""
    for number, adapter in enumerate(("a", "b"), start=1):
        copy = tmp_path / f".dvc/tmp/exps/run{number}/data"
        copy.mkdir(parents=True)
        (copy / "looks.json").write_text("{}", encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(copy.parent)
            assert count_look(Path("data/looks.json"), "test", adapter) == number
    assert read_json(tmp_path / "data/looks.json") == {"test": ["a", "b"]}
