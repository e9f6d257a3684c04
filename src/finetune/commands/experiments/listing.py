"""`finetune exps`: list the experiments of `dvc exp show` with what distinguishes them, best first.

Reads `dvc exp show --json`. Shows the verdict, the metric of the gate's first criterion, loss, cost, and the params
that differ between the rows.
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

Place = tuple[str, ...]  # a report of reports/ and the keys in it, as a tuple because names of metrics contain dots

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
    """The sort key of the rows: its name, its place, the baseline's place, and whether higher is better."""

    name: str
    place: Place
    baseline: Place | None
    higher_is_better: bool


@dataclass(frozen=True)
class Experiment:
    """One row: its name, its params by dotted key, and its reports; an unfinished experiment has no reports."""

    name: str
    params: dict[str, Any]
    reports: Mapping[str, Any]
    finished: bool = True

    def figure(self, place: Place) -> Any:
        """Return the value at a place in the reports, or None."""
        return dig(self.reports, place)


def show(params: Path = Path("params.yaml")) -> list[dict[str, Any]]:
    """Print the table of the working tree, the current commit and its experiments; return the experiments."""
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
    """Return the measure of the gate's first criterion."""
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
    """Sort: the workspace, finished experiments from best to worst, those without the measure, then unfinished ones."""

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
    """Build columns and rows, without columns that are empty in all rows."""
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
    """Yield the rows of `dvc exp show --json`, each commit followed by its experiments; unfinished ones are marked."""
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
    if not finished:  # DVC shows the metrics of the tree from which it was started
        return Experiment(f"{_name(item)} ({state})", flat, {}, finished=False)
    reports = {Path(file).stem: found.get("data") or {} for file, found in (data.get("metrics") or {}).items()}
    return Experiment(_name(item), flat, reports)


def _name(item: dict[str, Any]) -> str:
    rev = str(item["rev"])
    return str(item["name"] or (rev if rev == WORKSPACE else rev[:7]))


def differing_params(experiments: Sequence[Experiment]) -> list[str]:
    """Return the dotted keys whose values differ between the rows that have params."""
    known = [item.params for item in experiments if item.params]
    keys = list(dict.fromkeys(key for params in known for key in params))
    return [key for key in keys if len({json.dumps(params.get(key), sort_keys=True) for params in known}) > 1]


def _cell(title: str, value: Any) -> str:
    if value is None:
        return ""
    if title.startswith("memory"):
        return f"{value / 1e9:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
