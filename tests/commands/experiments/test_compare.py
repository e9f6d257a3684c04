"""`finetune compare` compares two runs on one test set pair by pair, and refuses runs that cannot be compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.experiments.comparison import compare_sides, cost_of, differing
from finetune.commands.experiments.differences import compare_answers
from finetune.commands.experiments.loading import ComparedRun, read_run
from finetune.commands.experiments.tables import look_sentence, print_comparison
from finetune.config.scorers import LOSS, Metric
from finetune.errors import DataError
from finetune.records.examples import Answer, Prediction
from finetune.statistics.proportions import mcnemar_exact, tango
from tests.builders.runs_repository import build, copy_of, experiment, finetune, run

EXACT = Metric("exact_match", "binary", "exact_match")
SCORERS = {"exact_match": {"scorer": "exact_match", "of": None}}
LOOKS = {"taken": 3, "declared": 5, "a": 1, "b": 3}


def prediction(number: int, right: float, *, cluster: str | None = None, agent: str = "namer") -> Prediction:
    """Return one example with both sides right or both wrong."""
    answer = Answer("text", 2, True, 1.0 if right else 3.0, scores={"exact_match": right, "chrf": right / 2 + 0.1})
    return Prediction(f"row{number}", agent, "rows", cluster or f"c{number}", "task", "text", 2, answer, answer)


def side(name: str, rights: list[float], **more: Any) -> ComparedRun:
    """Return a run whose candidate is right at the given positions."""
    evaluation = {"test_sha256": "t" * 64, "adapter_sha256": name * 64, "groups": {"all": {}, "namer": {}}}
    evaluation |= {"scorers": SCORERS, "generation": {"max_new_tokens": 16}, **more}
    predictions = [prediction(number, right) for number, right in enumerate(rights)]
    return ComparedRun(
        name, {"train": {"learning_rate": 0.1 if name == "a" else 0.2}}, {"evaluation": evaluation}, predictions
    )


A = side("a", [1.0] * 20 + [0.0] * 20)
B = side("b", [1.0] * 15 + [0.0] * 5 + [1.0] * 12 + [0.0] * 8)


def test_binary_scores_are_compared_as_a_paired_table() -> None:
    """15 right in both, 5 only in A, 12 only in B: Tango's interval of B - A and McNemar's exact test."""
    found = compare_answers(EXACT, (A.predictions, "candidate"), (B.predictions, "candidate"), 0.95, 0)
    assert found.crossed is not None
    assert (found.crossed.both, found.crossed.only_first, found.crossed.only_second, found.crossed.neither) == (
        15,
        5,
        12,
        8,
    )
    assert found.interval == tango(12, 5, 40, 0.95, "two-sided")
    assert found.crossed.p == mcnemar_exact(12, 5, "two-sided")
    assert found.better is None
    assert (found.first, found.second) == (0.5, 0.675)


def test_the_better_side_follows_the_direction() -> None:
    """For a loss, less is better: a difference above 0 favours A."""
    worse = side("b", [1.0] * 2 + [0.0] * 38)
    pair = (A.predictions, "candidate"), (worse.predictions, "candidate")
    loss = compare_answers(LOSS, *pair, 0.95, 0)  # type: ignore[arg-type]
    right = compare_answers(EXACT, *pair, 0.95, 0)  # type: ignore[arg-type]
    assert loss.interval.lower > 0 > right.interval.upper
    assert loss.better == right.better == "first"


def test_clusters_are_resampled_as_units() -> None:
    """Ten answers to one prompt are one piece of evidence: the interval is wider, and McNemar's test is not used."""
    rights = [float(number % 3 == 0) for number in range(120)], [float(number % 3 != 1) for number in range(120)]
    alone = [[prediction(number, right) for number, right in enumerate(row)] for row in rights]
    grouped = [
        [
            replace(item, cluster=f"c{at // 4}")
            for at, item in enumerate(sorted(row, key=lambda one: int(one.id[3:]) % 3))
        ]
        for row in alone
    ]
    single = compare_answers(EXACT, (alone[0], "candidate"), (alone[1], "candidate"), 0.95, 0)
    wide = compare_answers(EXACT, (grouped[0], "candidate"), (grouped[1], "candidate"), 0.95, 0)
    assert wide.crossed is not None and wide.crossed.p is None
    assert wide.clusters == 30
    assert wide.interval.method.startswith("Tango score, effective sample size")
    assert wide.interval.upper - wide.interval.lower > 1.5 * (single.interval.upper - single.interval.lower)


def test_another_test_set_is_refused() -> None:
    """Answers to different questions cannot be paired."""
    with pytest.raises(DataError) as caught:
        compare_sides(A, side("b", [1.0] * 40, test_sha256="u" * 64), 0.95, 0, LOOKS)
    assert str(caught.value) == (
        "compare: a was measured on test set tttttttttttt, b on uuuuuuuuuuuu; answers to "
        "different questions can't be paired. A change of seed, data files or data section draws "
        "different splits: run both on the same split"
    )


def test_weak_points_of_a_comparison_are_reported() -> None:
    """Warnings: different decoding, another scorer of the same name, the same adapter twice."""
    scorers = {
        "exact_match": {"scorer": "contains", "of": None, "ignore_case": True},
        "chrf": {"scorer": "chrf", "of": None},
    }
    other = side("b", [1.0] * 40, scorers=scorers, generation={"max_new_tokens": 32}, adapter_sha256="a" * 64)
    found = compare_sides(A, other, 0.95, 0, LOOKS)
    assert found.warnings == [
        (
            "answers were generated with different settings, so a difference may not come from the "
            "adapters (generation.max_new_tokens: 16 in A, 32 in B)"
        ),
        "both runs have the same adapter",
        "not compared: the scorer exact_match is configured differently in B",
        "not compared: the scorer chrf is used in one run only",
    ]
    assert {item.metric.name for item in found.found} == {"loss", "perplexity"}


def test_a_group_of_all_examples_is_not_repeated() -> None:
    """If one agent has all examples, its rows would repeat those of the total."""
    assert {item.group for item in compare_sides(A, B, 0.95, 0, LOOKS).found} == {"all"}


def test_a_missing_score_is_reported() -> None:
    """With a missing score, the means would be of different examples."""
    broken = replace(A.predictions[3], candidate=replace(A.predictions[3].candidate, scores={"exact_match": None}))
    rows = [*A.predictions[:3], broken, *A.predictions[4:]]
    found = compare_sides(A, replace(B, predictions=rows), 0.95, 0, LOOKS).found
    assert [item.why_not for item in found if item.why_not] == [
        "exact_match has no score for the candidate's answer to row3"
    ]


def test_params_and_cost_are_listed_side_by_side() -> None:
    """Different params are listed by dotted key; a list counts as one value."""
    assert differing({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 3, "c": [1]}}) == [("a.b", 1, 3), ("d", 2, None)]
    cheap = replace(A, reports={**A.reports, "train_cost": {"wall_seconds": 12.5}})
    assert cost_of(cheap, B) == [("training, seconds", 12.5, None)]


def test_the_text_report_explains_the_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    """The output has tables, the meaning of the intervals, and the cost of choosing on the test set."""
    print_comparison(compare_sides(A, B, 0.95, 0, LOOKS), as_markdown=True)
    told = capsys.readouterr().out
    assert "| all | exact_match | 40 | 0.5000 | 0.6750 | +0.1750 | -0.0286 … +0.3661 | 15 | 5 | 12 | 8 | 0.14 |" in told
    assert "no difference is established" in told
    assert "| train.learning_rate | 0.1 | 0.2 |" in told
    assert look_sentence(LOOKS) in told
    assert look_sentence(LOOKS).startswith("looks at this test set: 3 of 5 declared (decide.looks); A was look 1, B")


# ---------------------------------------------------------------------------------- through git and DVC


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, shipped_params: dict[str, Any]) -> Path:
    """Create a repository with a better experiment, one with another test set, and its workspace."""
    root = build(tmp_path_factory.mktemp("compare") / "repository", shipped_params)
    experiment(root, "better", "train.learning_rate=0.9")
    experiment(root, "elsewhere", "data.split.test=0.14", "data.split.train=0.79")
    return root


@pytest.mark.parametrize("names", [("main", "better"), ("workspace", "better")])
def test_experiments_branches_and_the_workspace_are_found(repository: Path, names: tuple[str, str]) -> None:
    """Reports and answers are read from DVC's cache; the working tree does not change."""
    found = json.loads(finetune(repository, "compare", *names, "--json"))
    assert [found[key]["name"] for key in "ab"] == list(names)
    (exact,) = [row for row in found["differences"] if (row["group"], row["metric"]) == ("all", "exact_match")]
    assert exact["pairs"]["only_first"] == 0 < exact["pairs"]["only_second"]
    assert exact["better"] == "second"
    assert found["params"] == {"train.learning_rate": {"a": 0.5, "b": 0.9}}
    assert found["cost"]["peak memory, bytes"] == {"a": 2e9, "b": 2e9}
    assert run(repository, "git", "status", "--short") == ""


@pytest.mark.parametrize(
    ("names", "code", "told"),
    [
        (
            ("main", "nowhere"),
            2,
            "error: 'nowhere' is not an experiment, branch, tag or commit of this repository; ./finetune exps",
        ),
        (("main", "elsewhere"), 3, "error: compare: main was measured on test set"),
        (("main~1", "main"), 3, "error: main~1: has no reports/evaluation.json: its pipeline did not finish"),
    ],
)
def test_missing_runs_are_reported(
    repository: Path, names: tuple[str, str], code: int, told: str, tmp_path: Path
) -> None:
    """An unknown name is a usage error; another test set and an unfinished run are invalid data."""
    if names[0] == "main~1":
        repository = copy_of(repository, tmp_path / "copy")
        run(repository, "git", "rm", "-q", "--cached", "dvc.lock")
        run(repository, "git", "commit", "-qm", "no lock")
        run(repository, "git", "add", "dvc.lock")
        run(repository, "git", "commit", "-qm", "lock")
    assert told in finetune(repository, "compare", *names, code=code)


def test_a_missing_artefact_names_the_pull_command(repository: Path, tmp_path: Path) -> None:
    """A clone has the name of the experiment, but not its files."""
    copy = copy_of(repository, tmp_path / "copy")
    run(copy, "rm", "-rf", ".dvc/cache/files")
    assert (
        "error: better: params.yaml" not in (told := finetune(copy, "compare", "workspace", "better", code=3))
        and (
            "is not in DVC's cache here; download it if a remote has it (dvc fetch --all-commits; "
            "for an experiment: dvc exp pull origin better), or reproduce it (dvc exp apply better "
            "(or git checkout better for a commit), then make repro)"
        )
        in told
    )


def test_params_edited_after_the_run_are_reported(repository: Path, tmp_path: Path) -> None:
    """Otherwise the params table would show values that did not produce the answers; gate params do not matter."""
    copy = copy_of(repository, tmp_path / "copy")
    assert json.loads(finetune(copy, "compare", "main", "workspace", "--json"))["warnings"] == [
        "both runs have the same adapter"
    ]
    text = (copy / "params.yaml").read_text(encoding="utf-8")
    edited = text.replace('"learning_rate": 0.5', '"learning_rate": 0.7').replace('"looks": 5', '"looks": 6')
    (copy / "params.yaml").write_text(edited, encoding="utf-8")
    assert json.loads(finetune(copy, "compare", "main", "workspace", "--json"))["warnings"] == [
        "both runs have the same adapter",
        "workspace: params.yaml has changed since its run (train); make repro brings it up to date",
    ]


def test_changed_answers_are_refused(repository: Path, tmp_path: Path) -> None:
    """The report contains the hash of its answers."""
    copy = copy_of(repository, tmp_path / "copy")
    path = copy / "out/predictions.jsonl"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    path.write_text(text.replace("TypeError", "KeyError", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"predictions\.jsonl differs from the file that evaluation\.json records"):
        read_run("workspace", copy)


def test_exps_lists_runs_sorted(repository: Path) -> None:
    """The same repository is shown as a table, the better run before the branch."""
    told = finetune(repository, "exps")
    assert "experiments, best exact_match first" in told
    assert told.index("workspace") < told.index("better") < told.index("main")
