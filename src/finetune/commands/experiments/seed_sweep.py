"""`finetune seeds`: repeat the run of params.yaml with several seeds, each as a DVC experiment, and report the spread.

Runs are executed one after another in the working tree, where an interrupted training resumes from its checkpoint (a
queued copy has no `work/`). Each finished run is recorded in `data/seeds.json` with a hash of its data and code as DVC
recorded them, so that the same command resumes an interrupted sweep. At the end, params.yaml and the results are
restored.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.commands.experiments.seed_spread import (
    criteria_of,
    criteria_rows,
    describe_gain,
    figures_of,
    gains_of,
    spread_row,
    subjects_of,
)
from finetune.config.params import Config, load_config
from finetune.config.train import TrainParams
from finetune.console import say, table
from finetune.errors import ConfigError, DataError
from finetune.files.atomic import write_lines
from finetune.files.nested import dig
from finetune.files.strict_json import read_json
from finetune.history.seed_results import adapter_inputs_hash, read_seeds, record_seed, seeds_key
from finetune.paths import Paths
from finetune.pipeline.dvc import inputs_hash, quiet_dvc, read_lock, require_identity, run_dvc, seed_of
from finetune.processes.running import require_idle
from finetune.records.io import read_predictions

DEFAULT_COUNT = 5
SPREAD_COLUMNS = ["the candidate's", "n", "least", "mean", "most", "standard deviation", "gain", "interval of one seed"]


@dataclass
class Series:
    """The requested seeds of one run; `done` are those that this command ran itself.

    `lock` is the dvc.lock to restore at the end: the previous one, or that of the run with params.yaml's own seed.
    """

    root: Path
    config: Config
    seeds: Sequence[int]
    done: set[int] = field(default_factory=set)
    lock: str | None = None

    @property
    def paths(self) -> Paths:
        """The paths of the run's files."""
        return Paths(self.root)

    @property
    def key(self) -> str:
        """The key that these runs share in data/seeds.json."""
        return seeds_key(self.config.model_dump(mode="json", by_alias=True))

    @property
    def confidence(self) -> float:
        """The two-sided confidence of all printed intervals."""
        return self.config.decide.confidence

    def results(self) -> dict[str, Any]:
        """Return the recorded outcomes of the requested seeds, in their order."""
        recorded = read_seeds(self.paths.seeds, self.key)
        return {str(seed): recorded[str(seed)] for seed in self.seeds if str(seed) in recorded}

    def missing(self) -> list[int]:
        """Return the seeds without a record, or with a record of other data or code than DVC's last."""
        found, now = self.results(), inputs_hash(self.root)
        stale = {seed for seed, result in found.items() if now and result.get("made_of_sha256") != now}
        return [seed for seed in self.seeds if str(seed) not in found or (str(seed) in stale and seed not in self.done)]


def run(root: Path, count: int | None, named: Sequence[int] | None, *, force: bool) -> dict[str, Any]:
    """Run and record the missing seeds, and print the spread; return the records. Raise DataError if a run fails."""
    config = load_config(root / "params.yaml")
    series = Series(root, config, choose_seeds(config.seed, count, named))
    require_idle(series.paths)
    require_identity(root)
    missing = series.missing()
    for line in announce(series, missing):
        say(line)
    check_looks(series, missing, force=force)
    if missing:
        with workspace_kept(series):
            while missing := series.missing():
                run_seed(series, missing[0])
    show(series)
    return series.results()


def choose_seeds(present: int, count: int | None, named: Sequence[int] | None) -> list[int]:
    """Return the named seeds, or `count` from the present one on. Raise ConfigError if they are not a valid series."""
    if named is not None and count is not None:
        raise ConfigError("seeds", "give --count or --seeds, not both")
    seeds = list(named) if named is not None else [present + at for at in range(count or DEFAULT_COUNT)]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            "seeds", f"{', '.join(map(str, seeds))} contains a seed twice", "repeating a seed adds no evidence"
        )
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise ConfigError("seeds", f"{wrong[0]} is not a valid seed", "it must be between 0 and 2^32 - 1")
    return seeds


def announce(series: Series, missing: Sequence[int]) -> Iterator[str]:
    """Yield lines on which seeds will be run and which will not."""
    finished = [seed for seed in series.seeds if seed not in missing]
    if finished:
        yield f"recorded in {series.paths.seeds} for these params: {_listed(finished)}"
    recorded = series.results()
    if stale := [seed for seed in missing if str(seed) in recorded]:
        yield f"recorded with other data or code, so run again: {_listed(stale)}"
    if missing:
        yield f"to run, one after another: {_listed(missing)}; if interrupted, run the same command again to resume"


def check_looks(series: Series, missing: Sequence[int], *, force: bool) -> None:
    """Print how many looks at the test set this takes. Raise ConfigError if they are too many, except with `force`."""
    declared = series.config.decide.looks
    if not missing:
        return
    test = dig(_optional(series.paths.reports / "prepare.json"), ("prepared_sha256", "test"))
    taken = len(_optional(series.paths.looks).get(str(test), []))
    new = len([seed for seed in missing if seed != evaluated_seed(series, test)])
    remarks = f"{new} new evaluations on this test set after {taken}; {declared} are declared (decide.looks)"
    if taken + new > declared and not force:
        raise ConfigError(
            "seeds",
            f"this needs {remarks}: beyond that, no verdict can be deploy",
            (
                f"declare more (decide.looks: {taken + new}, which requires more evidence at each), run "
                "fewer seeds, use a fresh test set, or pass --force"
            ),
        )
    say(f"looks: {remarks}")


def evaluated_seed(series: Series, test: str | None) -> int | None:
    """Return the seed of the published adapter if it was trained with these params and evaluated on this test set."""
    manifest = _optional(series.paths.adapter / "manifest.json")
    made, now = manifest.get("params") or {}, series.config.model_dump(mode="json", by_alias=True)
    same = all(made.get(name) == now[name] for name in TrainParams.model_fields if name != "seed")
    seen = _optional(series.paths.looks).get(str(test), [])
    seed = made.get("seed")
    return seed if same and manifest.get("adapter_sha256") in seen and isinstance(seed, int) else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def run_seed(series: Series, seed: int) -> None:
    """Run one seed as a DVC experiment and record its outcome."""
    series.done.add(seed)
    name = f"{series.config.recipe}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    say(f"seed {seed}: experiment {name}")
    code = run_dvc(series.root, ["exp", "run", "--name", name, "-S", f"seed={seed}"])
    if code:
        raise DataError(
            f"seed {seed}",
            "its run failed; the reason is printed above",
            "earlier seeds are recorded; run the same command again to resume with this one",
        )
    if seed == series.config.seed:
        series.lock = read_lock(series.root)
    result = outcome(series, seed)
    record_seed(series.paths.seeds, series.key, seed, result)
    say(f"seed {seed}: {result['verdict']}; recorded in {series.paths.seeds}")


def outcome(series: Series, seed: int) -> dict[str, Any]:
    """Build the record of the run in the working tree."""
    paths, config = series.paths, series.config
    evaluation, decision = (read_json(paths.reports / f"{name}.json") for name in ("evaluation", "decision"))
    if evaluation["adapter_sha256"] != decision["adapter_sha256"]:
        raise DataError(
            f"seed {seed}", "reports/decision.json and evaluation.json name different adapters", "run it again"
        )
    metrics = config.evaluate.metrics
    subjects = subjects_of(config.decide, metrics)
    predictions = read_predictions(paths.predictions)
    return {
        "adapter_sha256": evaluation["adapter_sha256"],
        "test_sha256": evaluation["test_sha256"],
        "made_of_sha256": inputs_hash(series.root),
        "makings_sha256": adapter_inputs_hash(read_json(paths.adapter / "manifest.json")),
        **{key: decision[key] for key in ("policy", "confidence")},
        "verdict": decision["verdict"],
        "criteria": criteria_of(decision),
        "figures": figures_of(subjects, metrics, predictions, series.confidence, config.seed),
    }


@contextmanager
def workspace_kept(series: Series) -> Iterator[None]:
    """Restore params.yaml byte for byte on exit, together with its own results and a new decision on all records.

    DVC leaves the results of the last seed in place. Only decide is run to restore them: all else is in DVC's cache.
    """
    params, series.lock = series.root / "params.yaml", read_lock(series.root)
    text, own = params.read_text(encoding="utf-8"), series.config.seed
    whole = False
    try:
        yield
        whole = True
    finally:
        write_lines(params, [text])
        if series.lock is not None:
            write_lines(series.root / "dvc.lock", [series.lock])
            quiet_dvc(series.root, "checkout", "--force")
            if whole and seed_of(series.lock) == own:
                quiet_dvc(series.root, "repro", "--single-item", "decide")
        kept = "" if series.lock is None else ", and so are the results in the working tree"
        say(f"params.yaml is restored{kept}")


def show(series: Series) -> None:
    """Print verdict and criteria of each seed, the spread of each metric beside its gain, and an interpretation."""
    results = series.results()
    table("verdicts by seed", ["", *(f"seed {seed}" for seed in results)], criteria_rows(results))
    metrics, confidence = series.config.evaluate.metrics, series.confidence
    rows, remarks = [], []
    for subject, (name, _) in subjects_of(series.config.decide, metrics).items():
        known = gains_of(results, subject)
        if known is not None:
            candidate, gain, bounds = known
            rows.append(spread_row(subject, candidate, gain, bounds, confidence))
            remarks.append(describe_gain(subject, candidate, gain, higher_is_better=metrics[name].higher_is_better))
    title = f"spread over {len(results)} seeds, and gain over the baseline"
    table(f"{title} (intervals: {100 * confidence:.4g}%, two-sided)", SPREAD_COLUMNS, rows)
    for line in filter(None, remarks):
        say(line)
    if len(results) > 1 and not any(remarks):
        say("every gain exceeds the variation between seeds")
    for line in warnings_of(results):
        say(f"warning: {line}")


def warnings_of(results: dict[str, Any]) -> Iterator[str]:
    """Yield the differences between the runs besides their seed."""
    if len({result.get("made_of_sha256") for result in results.values()}) > 1:
        yield "the seeds were run with different data or code; run the command again to update them"
    sets = len({result["test_sha256"] for result in results.values()})
    if sets > 1:
        yield (
            f"{sets} test sets: the spread includes differences between test sets, and nothing is paired; "
            "run the command again"
        )
    if len(results) == 1:
        yield "a single seed shows no spread"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
