"""How far one set of answers lies from another to the same prompts, and how sure that is.

Nothing is read or written. Right-or-wrong scores are compared by Tango's score interval and the exact McNemar test,
means by a paired BCa bootstrap, figures of the whole set (macro-F1, BLEU, loss) by a bootstrap in which both sides are
drawn together. Where one cluster has several examples, Tango's interval is that of as many as they are worth, and whole
clusters are drawn.
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

Answers = tuple[Sequence[Prediction], Role]  # whose answers, of which predictions


@dataclass(frozen=True)
class Crossed:
    """Right-or-wrong scores of both sides, example by example, and the exact McNemar test of them (two-sided)."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p: float | None  # None: examples of one cluster are no independent pairs


@dataclass(frozen=True)
class Difference:
    """second - first, with the figures themselves; both answered the same examples."""

    metric: Metric
    examples: int
    clusters: int
    first: float
    second: float
    interval: Interval
    crossed: Crossed | None

    @property
    def better(self) -> Literal["first", "second"] | None:
        """Which side the whole interval favours; None where it favours neither."""
        if self.interval.refused or self.interval.lower <= 0 <= self.interval.upper:
            return None
        return "second" if (self.interval.lower > 0) == self.metric.higher_is_better else "first"

    def to_json(self) -> dict[str, Any]:
        """For machines; a bound that is not finite is null."""
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
    """second - first of one metric, two-sided; both hold the same examples in the same order.

    Raises UnmeasuredError where the metric can't be known of a side.
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
    """The table of right and wrong of both sides."""
    old, new = (np.array(scores_of(metric, *answers)) > 0 for answers in (first, second))
    only_first, only_second = int((old & ~new).sum()), int((new & ~old).sum())
    p = mcnemar_exact(only_second, only_first, "two-sided") if independent else None
    return Crossed(int((old & new).sum()), only_first, only_second, int((~old & ~new).sum()), p)
