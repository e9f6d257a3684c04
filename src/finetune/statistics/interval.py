"""The form of intervals, and checks of the arguments of all intervals and tests.

Reads and writes no files. If the data allow no bound, the interval is open and gives the reason (`Interval.refused`).
scipy is imported on first use: it takes 0.8 s, which light commands should not spend.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Bound = Literal["two-sided", "lower", "upper"]

Alternative = Literal["two-sided", "greater", "less"]

Range = tuple[float, float]

Floats = NDArray[np.float64]

Indices = NDArray[np.intp]

Values = Sequence[float] | NDArray[Any]

Labels = Sequence[Any] | NDArray[Any]

REALS = (-math.inf, math.inf)

SCIPY_SIDE = {"two-sided": "two-sided", "lower": "greater", "upper": "less"}


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds; a one-sided interval is open to the end of the parameter's range."""

    estimate: float
    lower: float
    upper: float
    confidence: float
    method: str
    refusal: str = ""  # why the data allow no bound; there is no method then, and a criterion is inconclusive

    @property
    def refused(self) -> bool:
        """Whether the data allow no bound."""
        return bool(self.refusal)

    def as_record(self) -> dict[str, float | str | None]:
        """Return the fields for a JSON report; an infinite bound is None, because JSON has no infinity."""
        fields = asdict(self).items()
        return {name: None if value in REALS else value for name, value in fields}


def _smallest(is_enough: Callable[[int], bool], least: int) -> int:
    """Return the smallest n from `least` on that is enough, given that all larger ones are too."""
    low = high = least
    while not is_enough(high):
        low, high = high + 1, 2 * high
    return low + bisect_left(range(low, high), True, key=is_enough)


def tail_error(confidence: float, side: Bound) -> float:
    """Return the error probability of one bound. A confidence below 0.5 is most likely an alpha passed by mistake."""
    if side not in get_args(Bound):
        raise ValueError(f"side is {side!r}; it is one of {', '.join(get_args(Bound))}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0.5 and 1 (0.95 for an error of 5%)")
    return (1 - confidence) / 2 if side == "two-sided" else 1 - confidence


def _check_lower(name: str, share: float, confidence: float, side: Bound) -> None:
    _check_share(name, share)
    tail_error(confidence, side)
    if side == "upper":
        raise ValueError(f"side is 'upper'; only a lower bound can reach a {name}")


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name} is {share}; it must be between 0 and 1, both excluded")


def check_counts(**counts: int) -> None:
    """Raise ValueError for an invalid count; the one named n must be at least 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 0:
            raise ValueError(f"{name} is {count}; a count is a whole number of 0 or more")
        if name == "n" and count == 0:
            raise ValueError("n is 0; at least one example is needed")


def check_alternative(alternative: Alternative) -> None:
    """Raise ValueError for an unknown alternative."""
    if alternative not in get_args(Alternative):
        raise ValueError(f"alternative is {alternative!r}; it is one of {', '.join(get_args(Alternative))}")


def as_finite(name: str, values: Values) -> Floats:
    """Return the values as `(n,)` floats. Raise ValueError if there are none, for another shape, or if not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; at least one number in one row is needed")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}[{at}] is {array[at]}; every value is a finite number")
    return array


def as_codes(name: str, labels: Labels, n: int) -> Indices:
    """Return labels as numbers from 0 on, `(n,)`. Raise ValueError for another shape or a missing label."""
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}; it needs one label for each of {n} examples")
    # Examples without a label could belong to one cluster or to different ones; this is unknown.
    lacking = [at for at, label in enumerate(labels) if label is None or label != label]
    if lacking:
        raise ValueError(f"{name}[{lacking[0]}] is {labels[lacking[0]]}; every example needs a label")
    return np.unique(array, return_inverse=True)[1]


def as_pairs(candidate: Values, baseline: Values) -> tuple[Floats, Floats]:
    """Return both through `as_finite`. Raise ValueError if their lengths differ."""
    new, old = as_finite("candidate", candidate), as_finite("baseline", baseline)
    if len(new) != len(old):
        raise ValueError(f"candidate has {len(new)} values and baseline {len(old)}; each example needs both")
    return new, old
