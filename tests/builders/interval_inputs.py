"""Inputs for the tests of intervals."""

import numpy as np
from hypothesis import strategies as st

from finetune.statistics.interval import Bound

SIDES: tuple[Bound, ...] = ("two-sided", "lower", "upper")
sides = st.sampled_from(SIDES)


def scores(n: int, seed: int = 0) -> np.ndarray:
    """Return skewed positive values."""
    return np.random.default_rng(seed).lognormal(sigma=0.5, size=n)
