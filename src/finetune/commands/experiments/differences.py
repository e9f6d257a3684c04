"""The difference between two sets of answers to the same prompts, with its uncertainty.

Reads and writes no files. Right-or-wrong scores are compared by Tango's score interval and the exact McNemar test,
means by a paired BCa bootstrap, and metrics of the complete set (macro-F1, BLEU, loss) by a bootstrap that resamples
both sides together. If clusters have several examples, Tango's interval uses the effective sample size, and the
bootstrap resamples complete clusters.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from finetune.config.scorers import Metric
from finetune.decide.quality import strata_of
from finetune.records.examples import Prediction
from finetune.reports.evaluation import Role
from finetune.score.metrics import scores_of, statistic_of
from finetune.statistics.bootstrap import paired_mean_difference, resample
from finetune.statistics.clustered import clustered_difference
from finetune.statistics.interval import Interval
from finetune.statistics.proportions import mcnemar_exact

Answers = tuple[Sequence[Prediction], Role]  # predictions, and the role whose answers in them are compared


@dataclass(frozen=True)
class Crossed:
    """Right-or-wrong scores of both sides, cross-tabulated by example, with the two-sided exact McNemar test."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p: float | None  # None if examples share clusters and are not independent pairs


@dataclass(frozen=True)
class Difference:
    """The difference second - first, with both values; both sides answered the same examples."""

    metric: Metric
    examples: int
    clusters: int
    first: float
    second: float
    interval: Interval
    crossed: Crossed | None

    @property
    def better(self) -> Literal["first", "second"] | None:
        """The side that the entire interval favours, or None."""
        if self.interval.refused or self.interval.lower <= 0 <= self.interval.upper:
            return None
        return "second" if (self.interval.lower > 0) == self.metric.higher_is_better else "first"

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON-compatible values; a bound that is not finite becomes null."""
        record = self.interval.as_record()
        return {
            "metric": self.metric.name,
            "examples": self.examples,
            "clusters": self.clusters,
            "first": self.first,
            "second": self.second,
            "difference": record.pop("estimate"),
            **record,
            "pairs": asdict(self.crossed) if self.crossed else None,
            "better": self.better,
        }


def compare_answers(metric: Metric, first: Answers, second: Answers, confidence: float, seed: int) -> Difference:
    """Return second - first of one metric, two-sided; both sides hold the same examples in the same order.

    Raises UnmeasuredError if the metric has no value for a side.
    """
    n = len(first[0])
    old, new = (statistic_of(metric, *answers) for answers in (first, second))
    ones = np.ones(n)
    labels = [item.cluster for item in first[0]]
    clusters = labels if len(set(labels)) < n else None
    crossed = cross(metric, first, second, independent=clusters is None) if metric.kind == "binary" else None
    span = metric.highest - metric.lowest
    if metric.kind in ("binary", "mean"):
        each, bounds = [scores_of(metric, *answers) for answers in (second, first)], (-span, span)
    if metric.kind == "binary":
        pairs = [[score > 0 for score in scores] for scores in each]
        interval = clustered_difference(pairs[0], pairs[1], labels, confidence, "two-sided")
    elif metric.kind == "mean":
        interval = paired_mean_difference(each[0], each[1], confidence, "two-sided", seed, clusters, bounds)
    else:
        interval = resample(
            lambda weights: new(weights) - old(weights),
            n,
            confidence,
            "two-sided",
            seed,
            strata=strata_of(first[0]),
            clusters=clusters,
            bounds=(-span, span),
        )
    return Difference(metric, n, len(set(labels)), old(ones), new(ones), interval, crossed)


def cross(metric: Metric, first: Answers, second: Answers, *, independent: bool) -> Crossed:
    """Cross-tabulate right and wrong answers of both sides."""
    old, new = (np.array(scores_of(metric, *answers)) > 0 for answers in (first, second))
    only_first, only_second = int((old & ~new).sum()), int((new & ~old).sum())
    p = mcnemar_exact(only_second, only_first, "two-sided") if independent else None
    return Crossed(int((old & new).sum()), only_first, only_second, int((~old & ~new).sum()), p)
