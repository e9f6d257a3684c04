"""`finetune exps`: what `dvc exp show` knows, cut to what tells experiments apart, the best first.

Reads `dvc exp show --json`; shows verdict, the figure that the gate asks for first, loss, cost and those params that
differ between the rows.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.config.criteria import LatencyAtMost, LatencyQuantileAtMost, MemoryAtMost, QualityCriterion
from finetune.config.params import Config, load_config
from finetune.console import table
from finetune.errors import ConfigError, DataError
from finetune.files.nested import dig, flatten

Place = tuple[str, ...]  # a report of reports/ and the keys in it; names of metrics have dots, so keys are never cut

WORKSPACE = "workspace"

SECONDS: Place = ("cost", "latency", "candidate", "mean_seconds")

MEMORY: Place = ("cost", "memory", "largest_bytes")

FIGURES: dict[str, Place] = {
    "verdict": ("decision", "verdict"),
    "validation loss": ("train", "validation_loss"),
    "s/answer": SECONDS,
    "memory, GB": MEMORY,
    "training, s": ("train_cost", "wall_seconds"),
}


@dataclass(frozen=True)
class Measure:
    """What the rows are sorted by: its name, its place, the baseline's place, and which end is the best."""

    name: str
    place: Place
    baseline: Place | None
    higher_is_better: bool


@dataclass(frozen=True)
class Experiment:
    """One row: its name, its params by dotted key, its reports; one that did not end well has no reports of its own."""

    name: str
    params: dict[str, Any]
    reports: Mapping[str, Any]
    finished: bool = True

    def figure(self, place: Place) -> Any:
        """What stands at a place of its reports; None where nothing does."""
        return dig(self.reports, place)


def show(params: Path = Path("params.yaml")) -> list[dict[str, Any]]:
    """Print the table of the working tree, the present commit and the experiments on it; returns the experiments."""
    try:
        measure, order = first_measure(load_config(params)), ""
    except ConfigError as error:
        measure, order = None, f"not sorted: {str(error).splitlines()[0]}"
    if measure is not None:
        order = f"best {measure.name} first"
    experiments = in_order(list(read_experiments(_ask_dvc())), measure)
    columns, rows = draw(experiments, measure)
    table(f"experiments, {order} (all columns: dvc exp show)", columns, rows)
    return [asdict(item) for item in experiments]


def first_measure(config: Config) -> Measure | None:
    """The figure that the gate's first criterion is about."""
    criterion = config.decide.criteria[0]
    if isinstance(criterion, QualityCriterion):
        place = ("evaluation", "groups", criterion.group)
        candidate, baseline = (*place, "candidate", criterion.metric), (*place, "baseline", criterion.metric)
        better = config.evaluate.metrics[criterion.metric].higher_is_better
        return Measure(criterion.subject, candidate, baseline, better)
    if isinstance(criterion, MemoryAtMost):
        return Measure("memory", MEMORY, None, higher_is_better=False)
    if isinstance(criterion, LatencyQuantileAtMost) and criterion.quantile == 0.95:
        return Measure("p95 latency", (*SECONDS[:-1], "p95_seconds"), None, higher_is_better=False)
    assert isinstance(criterion, LatencyAtMost | LatencyQuantileAtMost), criterion
    return Measure("mean latency", SECONDS, ("cost", "latency", "baseline", "mean_seconds"), higher_is_better=False)


def in_order(experiments: Sequence[Experiment], measure: Measure | None) -> list[Experiment]:
    """The workspace, then the finished ones, the best first, those without the figure behind them, then the others."""

    def rank(item: Experiment) -> tuple[int, float]:
        value = item.figure(measure.place) if measure else None
        if item.name == WORKSPACE:
            return 0, 0.0
        if not item.finished:
            return 3, 0.0
        if measure is None or not isinstance(value, int | float):
            return 2, 0.0
        return 1, -value if measure.higher_is_better else value

    return sorted(experiments, key=rank)


def draw(experiments: Sequence[Experiment], measure: Measure | None) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, without the columns in which nobody has anything."""
    places = {"verdict": FIGURES["verdict"]}
    if measure is not None:
        own = next((title for title, place in FIGURES.items() if place == measure.place), measure.name)
        places[own] = measure.place
        if measure.baseline is not None:
            places["baseline"] = measure.baseline
    places |= FIGURES
    titles = [title for title, place in places.items() if any(item.figure(place) is not None for item in experiments)]
    changed = differing_params(experiments)
    rows = [
        [item.name, *(_cell(title, item.figure(places[title])) for title in titles)]
        + [str(item.params.get(key, "")) for key in changed]
        for item in experiments
    ]
    return ["experiment", *titles, *changed], rows


def _ask_dvc() -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError("dvc exp show", last)
    return json.loads(done.stdout)


def read_experiments(shown: list[dict[str, Any]]) -> Iterator[Experiment]:
    """The rows of `dvc exp show --json`, each commit followed by its experiments; unfinished ones are named so."""
    for commit in shown:
        yield _experiment(commit, "success")
        for found in commit.get("experiments") or []:
            state = (found.get("executor") or {}).get("state") or "success"
            for item in found["revs"]:
                yield _experiment(item, str(state).lower())


def _experiment(item: dict[str, Any], state: str) -> Experiment:
    data = item.get("data") or {}
    if item.get("error") and state == "success":
        state = "failed"
    params = (((data.get("params") or {}).get("params.yaml")) or {}).get("data") or {}
    flat, finished = dict(flatten(params)), state == "success"
    if not finished:  # DVC shows the figures of the tree that it was started from
        return Experiment(f"{_name(item)} ({state})", flat, {}, finished=False)
    reports = {Path(file).stem: found.get("data") or {} for file, found in (data.get("metrics") or {}).items()}
    return Experiment(_name(item), flat, reports)


def _name(item: dict[str, Any]) -> str:
    rev = str(item["rev"])
    return str(item["name"] or (rev if rev == WORKSPACE else rev[:7]))


def differing_params(experiments: Sequence[Experiment]) -> list[str]:
    """The dotted keys whose value is not the same in all rows that have params."""
    known = [item.params for item in experiments if item.params]
    keys = list(dict.fromkeys(key for params in known for key in params))
    return [key for key in keys if len({json.dumps(params.get(key), sort_keys=True) for params in known}) > 1]


def _cell(title: str, value: Any) -> str:
    if value is None:
        return ""
    if title.startswith("memory"):
        return f"{value / 1e9:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
