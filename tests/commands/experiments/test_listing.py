"""`finetune exps` shows DVC's table with only the differing columns, sorted by the gate's first measure."""

from collections.abc import Callable
from typing import Any

from finetune.commands.experiments.listing import Experiment, Measure, differing_params, draw, first_measure, in_order
from finetune.commands.experiments.listing import read_experiments as read
from finetune.config.params import Config

EXACT = Measure(
    "exact_match",
    ("evaluation", "groups", "all", "candidate", "exact_match"),
    ("evaluation", "groups", "all", "baseline", "exact_match"),
    higher_is_better=True,
)


def row(name: str | None, rate: float, verdict: str | None = "deploy", **more: Any) -> dict[str, Any]:
    """Return one revision in the form of `dvc exp show --json`."""
    metrics = {} if verdict is None else {"reports/decision.json": {"data": {"verdict": verdict}}}
    params = {"params.yaml": {"data": {"seed": 1, "train": {"learning_rate": rate, "packing": [1]}}}}
    return {"rev": "0123456789", "name": name, "data": {"metrics": metrics, "params": params}, **more}


def measured(name: str, **figures: float) -> Experiment:
    """Return a finished experiment whose candidate has these figures."""
    return Experiment(name, {}, {"evaluation": {"groups": {"all": {"candidate": figures}}}})


SHOWN = [
    {"rev": "workspace", "name": None, "data": row(None, 0.1)["data"], "experiments": None},
    row(
        "main",
        0.1,
        experiments=[
            {"revs": [row("faster", 0.2)], "executor": {"state": "success"}},
            {"revs": [row("waiting", 0.3)], "executor": {"state": "queued"}},
            {"revs": [row("broken", 0.4, error={"msg": "Experiment run failed"})], "executor": None},
            {"revs": [{"rev": "abcdefghij", "name": None, "data": None}], "executor": None},
        ],
    ),
]


def test_each_revision_is_a_row_with_its_state() -> None:
    """DVC shows queued and failed runs with the figures of the tree they started from; those are dropped."""
    found = list(read(SHOWN))
    names = ["workspace", "main", "faster", "waiting (queued)", "broken (failed)", "abcdefg"]
    assert [item.name for item in found] == names
    verdicts = [item.figure(("decision", "verdict")) for item in found]
    assert verdicts == ["deploy", "deploy", "deploy", None, None, None]


def test_only_params_that_differ_are_columns() -> None:
    """Params that are equal in all runs are not columns."""
    assert differing_params(list(read(SHOWN))) == ["train.learning_rate"]


def test_the_best_by_the_gate_comes_first() -> None:
    """The workspace comes first; runs without a figure come after those with one, failed runs last."""
    rows = [Experiment("bad (failed)", {}, {}, finished=False), measured("none"), measured("low", exact_match=0.2)]
    rows += [measured("high", exact_match=0.9), measured("workspace", exact_match=0.1)]
    names = ["workspace", "high", "low", "none", "bad (failed)"]
    assert [item.name for item in in_order(rows, EXACT)] == names
    assert next(item.name for item in in_order(rows, None)) == "workspace"


def test_a_loss_is_sorted_ascending(change: Callable[..., Config]) -> None:
    """The sort order follows the direction of the metric."""
    rule = {"rule": "at_most", "metric": "loss", "group": "all", "threshold": 2.0}
    measure = first_measure(change(**{"decide.criteria": [rule]}))
    assert measure is not None
    rows = [measured("worse", loss=2.0), measured("better", loss=1.0)]
    assert [item.name for item in in_order(rows, measure)] == ["better", "worse"]


def test_a_metric_name_with_dots_is_one_key(change: Callable[..., Config]) -> None:
    """`exceptions.macro_f1` is one key of the report, not a nested one."""
    rule = {"rule": "better_than_baseline", "metric": "exceptions.macro_f1", "group": "exception-namer"}
    measure = first_measure(change(**{"decide.criteria": [rule]}))
    assert measure is not None
    sides = {"candidate": {"exceptions.macro_f1": 0.5}, "baseline": {"exceptions.macro_f1": 0.25}}
    item = Experiment("one", {}, {"evaluation": {"groups": {"exception-namer": sides}}})
    columns, rows = draw([item], measure)
    assert columns == ["experiment", "exceptions.macro_f1 of exception-namer", "baseline"]
    assert rows == [["one", "0.5", "0.25"]]


def test_a_gate_of_memory_or_latency_sorts_by_that(change: Callable[..., Config]) -> None:
    """A gate of memory or latency sorts the smallest first; its column is not shown twice."""
    for rule, title in (
        ({"rule": "memory_at_most", "limit": "2 GB"}, "memory, GB"),
        ({"rule": "latency_at_most", "seconds": 1.0, "improvement": None}, "s/answer"),
        ({"rule": "latency_quantile_at_most", "quantile": 0.95, "seconds": 1.0}, "p95 latency"),
    ):
        measure = first_measure(change(**{"decide.criteria": [rule]}))
        assert measure is not None
        assert not measure.higher_is_better
        cost = {"latency": {"candidate": {"mean_seconds": 1.0, "p95_seconds": 2.0}}, "memory": {"largest_bytes": 3e9}}
        columns, _ = draw([Experiment("one", {}, {"cost": cost})], measure)
        assert columns[1] == title
        assert len(set(columns)) == len(columns)
