"""`make exps`: DVC's table cut to what tells experiments apart."""

from typing import Any

from finetune.experiments import differing_params, read_experiments


def row(name: str | None, rate: float, verdict: str | None = "deploy", **more: Any) -> dict[str, Any]:
    """One revision as `dvc exp show --json` gives it."""
    metrics = {} if verdict is None else {"reports/decision.json": {"data": {"verdict": verdict}}}
    params = {"params.yaml": {"data": {"seed": 1, "train": {"learning_rate": rate, "packing": [1]}}}}
    return {"rev": "0123456789", "name": name, "data": {"metrics": metrics, "params": params}, **more}


SHOWN = [
    {"rev": "workspace", "name": None, "data": row(None, 0.1)["data"], "experiments": None},
    row(
        "main",
        0.1,
        experiments=[
            {"revs": [row("faster", 0.2)], "executor": {"state": "success"}},
            {"revs": [row("waiting", 0.3, None)], "executor": {"state": "queued"}},
            {"revs": [{"rev": "abcdefghij", "name": None, "data": None}], "executor": None},
        ],
    ),
]


def test_each_revision_is_a_row_and_unfinished_ones_say_so() -> None:
    """A queued run without figures must not look like a finished one."""
    found = list(read_experiments(SHOWN))
    assert [item.name for item in found] == ["workspace", "main", "faster", "waiting (queued)", "abcdefg"]
    assert [item.figures for item in found][1:4] == [{"verdict": "deploy"}, {"verdict": "deploy"}, {}]


def test_only_params_that_differ_are_columns() -> None:
    """Sixty equal columns hide the one that matters."""
    assert differing_params(list(read_experiments(SHOWN))) == ["train.learning_rate"]
