"""`finetune seeds` compares the gain with the spread over seeds; it repeats no run and loses none."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.experiments.seed_spread import (
    Spread,
    criteria_of,
    criteria_rows,
    describe_gain,
    gains_of,
    spread_row,
)
from finetune.commands.experiments.seed_sweep import Series, check_looks, choose_seeds, warnings_of
from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.files.strict_json import read_json
from finetune.history.seed_results import read_seeds, record_seed, seeds_key
from finetune.pipeline.dvc import inputs_hash, seed_of
from tests.builders.runs_repository import build, copy_of, environment, finetune, run
from tests.builders.waiting import PATIENCE, wait_for

RESULT = {"adapter_sha256": "a", "test_sha256": "t", "verdict": "iterate", "criteria": {}}
KEPT_TEST = [
    {"name": "rows", "path": "cpython/interactions.jsonl", "format": "interactions", "split": "train"},
    {"name": "asked", "path": "cpython/test.jsonl", "format": "interactions", "split": "test"},
    {"name": "watched", "path": "cpython/validation.jsonl", "format": "interactions", "split": "validation"},
]


def dumped(config: Config) -> dict[str, Any]:
    """Return the settings that the key covers."""
    return config.model_dump(mode="json", by_alias=True)


# ---------------------------------------------------------------------------------- data/seeds.json


def test_runs_that_differ_in_their_seed_share_a_key(change: Callable[..., Config]) -> None:
    """The gate, the planned machine and accepted findings do not change the key either."""
    key = seeds_key(dumped(change()))
    for keys in ({"seed": 1}, {"decide.confidence": 0.9}, {"machine": "h100"}, {"findings.accept": {"x": "known"}}):
        assert seeds_key(dumped(change(**keys))) == key
    for keys in ({"train.learning_rate": 0.1}, {"adapter.r": 4}, {"evaluate.max_new_tokens": 1}, {"recipe": "other"}):
        assert seeds_key(dumped(change(**keys))) != key


def test_outcomes_are_kept_by_key_and_seed(tmp_path: Path) -> None:
    """Outcomes are in ascending order, a repetition replaces the first; those of other runs stay."""
    path = tmp_path / "data/seeds.json"
    assert read_seeds(path, "k") == {}
    for seed in (10, 9):
        record_seed(path, "k", seed, RESULT)
    record_seed(path, "other", 1, RESULT)
    record_seed(path, "k", 9, RESULT | {"verdict": "deploy"})
    assert list(read_seeds(path, "k")) == ["9", "10"]
    assert read_seeds(path, "k")["9"]["verdict"] == "deploy"
    assert set(read_json(path)) == {"k", "other"}


def test_a_queued_run_records_in_the_tree_that_queued_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC removes its copy of the tree with everything written there."""
    copy = tmp_path / ".dvc/tmp/exps/run1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    record_seed(Path("data/seeds.json"), "k", 1, RESULT)
    assert read_json(tmp_path / "data/seeds.json") == {"k": {"1": RESULT}}
    assert read_seeds(Path("data/seeds.json"), "k") == {"1": RESULT}


def test_the_committed_file_is_a_json_object() -> None:
    """decide depends on the file, so a fresh clone must contain it."""
    assert isinstance(read_json(Path(__file__).parents[3] / "data/seeds.json"), dict)


# ---------------------------------------------------------------------------------- the spread


def test_the_deviation_has_its_own_interval() -> None:
    """For five normal values with standard deviation 1, chi-square's quantiles (0.4844, 11.1433) give 0.599 … 2.874."""
    spread = Spread((0.0, 1.0, 2.0, 3.0, 4.0))
    assert spread.deviation == pytest.approx(1.5811, abs=1e-4)
    assert spread.deviation_bounds(0.95) == pytest.approx((0.5991 * 1.5811, 2.8736 * 1.5811), abs=1e-3)
    assert Spread((1.0,)).deviation is None is Spread((1.0,)).deviation_bounds(0.95)


@pytest.mark.parametrize(
    ("candidate", "baseline", "higher", "told"),
    [
        (
            [0.50, 0.54, 0.52],
            0.49,
            True,
            "the gain (+0.0300) is within the variation between seeds (0.0400 over 3",
        ),
        ([0.50, 0.54, 0.52], 0.47, True, None),
        ([0.50, 0.54, 0.52], 0.51, True, "1 of 3 seeds show no gain; the mean gain is +0.0100"),
        ([0.50, 0.54, 0.52], 0.60, True, "no mean gain over 3 seeds (-0.0800)"),
        ([0.50, 0.54, 0.52], 0.60, False, None),
        (
            [1.0, 1.2, 1.1],
            1.25,
            False,
            "the gain (-0.1500) is within the variation between seeds (0.2000 over 3",
        ),
        ([0.5], 0.5, True, None),
    ],
)
def test_a_gain_within_the_spread_is_reported(
    candidate: list[float], baseline: float, higher: bool, told: str | None
) -> None:
    """The best of five seeds looks like progress; for a loss, a decrease is a gain."""
    gain = Spread(tuple(value - baseline for value in candidate))
    found = describe_gain("x", Spread(tuple(candidate)), gain, higher_is_better=higher)
    assert found is None if told is None else found is not None and told in found


def test_tables_have_one_column_per_seed() -> None:
    """Verdict and criteria have one column per seed; a row omits seeds without the figure."""
    figures = {"exact_match": {"baseline": 0.2, "candidate": 0.6, "lower": 0.3, "upper": None}}
    results = {
        "1": {"verdict": "deploy", "criteria": {"c": {"status": "pass", "estimate": 0.6}}, "figures": figures},
        "2": {"verdict": "iterate", "criteria": {}},
    }
    assert criteria_rows(results) == [["verdict", "deploy", "iterate"], ["c", "pass 0.6", ""]]
    known = gains_of(results, "exact_match")
    assert known is not None
    row = spread_row("exact_match", *known, 0.95)
    assert row == ["exact_match", "1", "0.600", "0.600", "0.600", "", "+0.400 (+0.400 … +0.400)", "+0.300 … open"]
    assert gains_of(results, "loss") is None


def test_the_worse_of_two_outcomes_of_a_criterion_is_used() -> None:
    """A latency criterion with a required improvement has two outcomes."""
    lines = [{"criterion": "latency", "status": status, "estimate": 1.0} for status in ("pass", "inconclusive")]
    assert criteria_of({"criteria": lines}) == {"latency": {"status": "inconclusive", "estimate": 1.0}}


# ---------------------------------------------------------------------------------- which seeds, how many looks


def test_seeds_are_given_or_counted_from_the_current_one() -> None:
    """By default there are five seeds; a seed given twice would count as evidence twice."""
    assert choose_seeds(7, None, None) == [7, 8, 9, 10, 11]
    assert choose_seeds(7, 2, None) == [7, 8]
    assert choose_seeds(7, None, [3, 1]) == [3, 1]
    for count, named, told in (
        (2, [1], "not both"),
        (None, [1, 1], "contains a seed twice"),
        (None, [2**32], "not a valid seed"),
    ):
        with pytest.raises(ConfigError, match=told):
            choose_seeds(7, count, named)


def test_more_test_set_uses_than_declared_need_force(
    change: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five seeds are five uses of the test set, which share the error probability."""
    shares = {"method": "exact", "train": 1.0, "validation": 0.0, "test": 0.0, "stratify_by": "agent"}
    config = change(**{"data.sources": KEPT_TEST, "data.split": shares, "decide.looks": 5})
    series = Series(tmp_path, config, [1, 2, 3])
    for path, content in (
        (series.paths.reports / "prepare.json", {"prepared_sha256": {"test": "t"}}),
        (series.paths.looks, {"t": ["a", "b", "c"]}),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        check_looks(series, [1, 2, 3], force=False)
    assert str(caught.value) == (
        "seeds: this needs 3 new evaluations on this test set after 3; 5 are declared "
        "(decide.looks): beyond that, no verdict can be deploy; declare more (decide.looks: 6, "
        "which requires more evidence at each), run fewer seeds, use a fresh test set, or pass "
        "--force"
    )
    check_looks(series, [1, 2, 3], force=True)
    check_looks(series, [1, 2], force=False)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "looks: 2 new evaluations on this test set after 3; 5 are declared (decide.looks)"
    )


def test_an_evaluated_seed_needs_no_new_test_set_use(change: Callable[..., Config], tmp_path: Path) -> None:
    """The published adapter with these params was evaluated already: its run comes from DVC's cache."""
    shares = {"method": "exact", "train": 1.0, "validation": 0.0, "test": 0.0, "stratify_by": "agent"}
    config = change(**{"data.sources": KEPT_TEST, "data.split": shares, "decide.looks": 2, "seed": 1})
    series = Series(tmp_path, config, [1, 2])
    made = {name: dumped(config)[name] for name in ("environment", "seed", "model", "adapter", "train")}
    for path, content in (
        (series.paths.reports / "prepare.json", {"prepared_sha256": {"test": "t"}}),
        (series.paths.adapter / "manifest.json", {"params": made, "adapter_sha256": "a"}),
        (series.paths.looks, {"t": ["a"]}),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    check_looks(series, [1, 2], force=False)
    series.paths.looks.write_text('{"t": ["b"]}', encoding="utf-8")
    with pytest.raises(ConfigError):
        check_looks(series, [1, 2], force=False)


def test_results_of_several_test_sets_or_codes_are_reported() -> None:
    """The spread then includes more than the effect of the seed."""
    results = {"1": {"test_sha256": "s", "made_of_sha256": "x"}, "2": {"test_sha256": "t", "made_of_sha256": "y"}}
    told = list(warnings_of(results))
    assert told[0].startswith("the seeds were run with different data or code")
    assert told[1].startswith("2 test sets: the spread includes differences between test sets")


# ---------------------------------------------------------------------------------- through DVC


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, shipped_params: dict[str, Any]) -> Path:
    """Create a repository whose pipeline has run once, with the seed of params.yaml."""
    return build(tmp_path_factory.mktemp("seeds") / "repository", shipped_params)


def trained(root: Path) -> list[str]:
    """Return the trained seeds in order."""
    return (root / "trained.log").read_text(encoding="utf-8").split()


@pytest.mark.slow
def test_seeds_run_once_and_restore_the_tree(repository: Path, tmp_path: Path) -> None:
    """An existing run comes from DVC; afterwards params, adapter and lock are restored, and decide saw all seeds."""
    root = copy_of(repository, tmp_path / "copy")
    before = {name: (root / name).read_bytes() for name in ("params.yaml", "out/adapter/weights")}
    told = finetune(root, "seeds", "--count", "2")
    assert trained(root) == ["42", "43"]
    (results,) = read_json(root / "data/seeds.json").values()
    assert list(results) == ["42", "43"]
    judged = {"policy", "confidence"}
    assert set(results["42"]) == {*RESULT, "made_of_sha256", "makings_sha256", "figures"} | judged
    assert results["42"]["criteria"]["exact_match at least 0.5"]["status"] == "pass"
    assert results["42"]["figures"]["exact_match"]["baseline"] == pytest.approx(0.2)
    assert "seed 42 " in told and "spread over 2 seeds" in told
    assert {name: (root / name).read_bytes() for name in before} == before
    assert read_json(root / "reports/decision.json")["known"] == 1  # a key of data/seeds.json, which was {} before
    assert run(root, "git", "status", "--short").split() == ["M", "data/seeds.json", "M", "dvc.lock"]
    assert "up to date" in run(root, "dvc", "status")
    assert "tiny-seed43-" in run(root, "dvc", "exp", "list")

    assert "to run" not in finetune(root, "seeds", "--count", "2")
    assert trained(root) == ["42", "43"]


@pytest.mark.slow
def test_a_failed_seed_keeps_earlier_results(repository: Path, tmp_path: Path) -> None:
    """Seed 13 runs out of memory: seed 12 is recorded, the tree is restored, and the message says how to continue."""
    root = copy_of(repository, tmp_path / "copy")
    before = (root / "params.yaml").read_bytes(), (root / "out/adapter/weights").read_bytes()
    told = finetune(root, "seeds", "--seeds", "12,13,14", code=3)
    assert "error: seed 13: its run failed; the reason is printed above; earlier seeds are recorded" in told
    (results,) = read_json(root / "data/seeds.json").values()
    assert list(results) == ["12"]
    assert ((root / "params.yaml").read_bytes(), (root / "out/adapter/weights").read_bytes()) == before


@pytest.mark.slow
def test_ctrl_c_waits_for_the_stage_and_restores_params(repository: Path, tmp_path: Path) -> None:
    """The whole process group gets the signal, as from a terminal; the exit code means that a restart resumes."""
    root = copy_of(repository, tmp_path / "copy")
    stages = (root / "stages.py").read_text(encoding="utf-8")
    slow = stages.replace("def train():\n", "def train():\n    import time; Path('begun').touch(); time.sleep(3600)\n")
    (root / "stages.py").write_text(slow, encoding="utf-8")
    before = (root / "params.yaml").read_bytes()
    command = [sys.executable, "-m", "finetune", "seeds", "--seeds", "50"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=root, env=environment(), start_new_session=True, text=True, **pipes)  # type: ignore[call-overload]
    wait_for((root / "begun").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 5, told
    assert "interrupted; finished seeds are recorded; run the same command again to resume" in told
    assert (root / "params.yaml").read_bytes() == before


def test_a_seed_of_other_data_is_run_again(repository: Path, tmp_path: Path, config: Config) -> None:
    """With other rows, half of the spread would be that of the data. No run is repeated within one call."""
    series = Series(tmp_path, config, [1, 2, 3])
    lock = (repository / "dvc.lock").read_text(encoding="utf-8")
    (tmp_path / "dvc.lock").write_text(lock, encoding="utf-8")
    for seed in (1, 2):
        record_seed(series.paths.seeds, series.key, seed, RESULT | {"made_of_sha256": inputs_hash(tmp_path)})
    assert series.missing() == [3]
    (tmp_path / "dvc.lock").write_text(lock.replace("data/raw", "data/row"), encoding="utf-8")
    assert series.missing() == [1, 2, 3]
    series.done.add(2)
    assert series.missing() == [1, 3]


def test_a_lock_gives_seed_and_hash_of_data_and_code(repository: Path, tmp_path: Path) -> None:
    """A lock gives the seed of its adapter, and a hash of data and code that excludes seed and decide's own inputs."""
    lock = (repository / "dvc.lock").read_text(encoding="utf-8")
    assert seed_of(lock) == 42
    assert inputs_hash(tmp_path) is None
    found = inputs_hash(repository)
    for text, same in ((lock.replace("seed: 42", "seed: 43"), True), (lock.replace("data/raw", "data/row"), False)):
        (tmp_path / "dvc.lock").write_text(text, encoding="utf-8")
        assert (inputs_hash(tmp_path) == found) is same
