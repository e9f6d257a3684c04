"""The spread of runs that differ only in their seed, beside their gain: separates an effect from chance.

Reads and writes no files. The outcome of a seed is the record that `finetune seeds` keeps: verdict, criteria, and for
each metric the baseline's value, the candidate's value and the interval of their paired difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from finetune.commands.experiments.differences import compare_answers
from finetune.config.criteria import QualityCriterion
from finetune.config.decide import DecideConfig
from finetune.config.scorers import PERPLEXITY, Metric
from finetune.records.examples import ALL, Prediction
from finetune.score.metrics import UnmeasuredError, counted

WORST_FIRST = ("fail", "unmeasured", "inconclusive", "pass")


@dataclass(frozen=True)
class Spread:
    """Values of several seeds; `deviation` is their standard deviation, with bounds that hold for normal values."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return fmean(self.values)

    @property
    def width(self) -> float:
        """The distance from the minimum to the maximum."""
        return max(self.values) - min(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation between seeds, or None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def deviation_bounds(self, confidence: float) -> tuple[float, float] | None:
        """Return the two-sided chi-square interval of the deviation; with 3 seeds it reaches up to 6 times as high."""
        if self.deviation is None:
            return None
        from scipy.stats import chi2

        free, tail = len(self.values) - 1, (1 - confidence) / 2
        low, high = (float(chi2.ppf(share, free)) for share in (1 - tail, tail))
        return self.deviation * (free / low) ** 0.5, self.deviation * (free / high) ** 0.5


def subjects_of(decide: DecideConfig, metrics: Mapping[str, Metric]) -> dict[str, tuple[str, str]]:
    """Return metric and group of each compared subject by its name: the criteria's, then each metric of all rows."""
    chosen = [item for item in decide.criteria if isinstance(item, QualityCriterion)]
    found = {item.subject: (item.metric, item.group) for item in chosen}
    others = [
        name for name in metrics if name not in found and name != PERPLEXITY.name
    ]  # a function of the loss, so redundant
    return found | {name: (name, ALL) for name in others}


def figures_of(
    subjects: Mapping[str, tuple[str, str]],
    metrics: Mapping[str, Metric],
    predictions: Sequence[Prediction],
    confidence: float,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """Return baseline, candidate and bounds of candidate - baseline (two-sided, paired) of each measured subject."""
    found: dict[str, dict[str, float | None]] = {}
    seen = set()
    for subject, (name, group) in subjects.items():
        members = counted(metrics[name], predictions, group)
        which = (name, tuple(item.id for item in members))
        if not members or which in seen:  # a metric of a single agent is equal in all groups
            continue
        seen.add(which)
        try:
            sides = (members, "baseline"), (members, "candidate")
            difference = compare_answers(metrics[name], *sides, confidence, seed)  # type: ignore[arg-type]
        except UnmeasuredError:
            continue
        bounds = difference.interval.as_record()
        found[subject] = {
            "baseline": difference.first,
            "candidate": difference.second,
            "lower": bounds["lower"],  # type: ignore[dict-item]
            "upper": bounds["upper"],  # type: ignore[dict-item]
        }
    return found


def criteria_of(decision: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return status and estimate of each criterion by its text; of two outcomes, the worse status."""
    found: dict[str, dict[str, Any]] = {}
    for item in decision["criteria"]:
        known = found.setdefault(item["criterion"], {"status": item["status"], "estimate": item["estimate"]})
        known["status"] = min(known["status"], item["status"], key=WORST_FIRST.index)
    return found


def criteria_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return rows of verdict and criteria, one column per seed."""
    texts = list(dict.fromkeys(text for result in results.values() for text in result["criteria"]))
    rows = [["verdict", *(str(result["verdict"]) for result in results.values())]]
    for text in texts:
        found = [result["criteria"].get(text) or {"status": "", "estimate": None} for result in results.values()]
        estimates = ["" if item["estimate"] is None else f" {item['estimate']:.4g}" for item in found]
        rows.append([text, *(f"{item['status']}{estimate}" for item, estimate in zip(found, estimates, strict=True))])
    return rows


def gains_of(results: Mapping[str, Mapping[str, Any]], subject: str) -> tuple[Spread, Spread, tuple[Any, Any]] | None:
    """Return candidate and gain (candidate - baseline) over the seeds, and the first seed's interval of its gain."""
    known = [figures for item in results.values() if (figures := (item.get("figures") or {}).get(subject))]
    if not known:
        return None
    candidate = Spread(tuple(item["candidate"] for item in known))
    gain = Spread(tuple(item["candidate"] - item["baseline"] for item in known))
    return candidate, gain, (known[0]["lower"], known[0]["upper"])


def spread_row(subject: str, candidate: Spread, gain: Spread, bounds: tuple[Any, Any], confidence: float) -> list[str]:
    """Return subject, n, minimum, mean and maximum of the candidate, deviation with bounds, gain and its interval."""
    around = candidate.deviation_bounds(confidence)
    deviation = "" if around is None else f"{candidate.deviation:.3f} ({around[0]:.3f} … {around[1]:.3f})"
    low, high = ("open" if bound is None else f"{bound:+.3f}" for bound in bounds)
    values = [min(candidate.values), candidate.mean, max(candidate.values)]
    gained = f"{gain.mean:+.3f} ({min(gain.values):+.3f} … {max(gain.values):+.3f})"
    return [
        subject,
        str(len(candidate.values)),
        *(f"{value:.3f}" for value in values),
        deviation,
        gained,
        f"{low} … {high}",
    ]


def describe_gain(subject: str, candidate: Spread, gain: Spread, *, higher_is_better: bool) -> str | None:
    """Describe a gain that is no larger than the spread between seeds; None if it is larger, and for a single seed."""
    if len(gain.values) < 2:
        return None
    sign = 1 if higher_is_better else -1
    lost = sum(sign * value <= 0 for value in gain.values)
    n, mean = len(gain.values), sign * gain.mean
    if mean <= 0:
        return f"{subject}: no mean gain over {n} seeds ({gain.mean:+.4f})"
    if lost:
        return f"{subject}: {lost} of {n} seeds show no gain; the mean gain is {gain.mean:+.4f}"
    if mean <= candidate.width:
        return (
            f"{subject}: the gain ({gain.mean:+.4f}) is within the variation between seeds "
            f"({candidate.width:.4f} over {n} seeds) and may be due to the seed"
        )
    return None
