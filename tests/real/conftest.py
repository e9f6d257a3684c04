"""The real base model, and a complete run in float32 and in NF4, shared by all tests of this folder."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.real_base import build
from tests.builders.killed_run import Starts
from tests.builders.real_run import complete_run

Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def base() -> Path:
    """Return the folder of the base; the first time, this downloads 93 MB."""
    return build()


@pytest.fixture(scope="session")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """`runs("nf4")`: return the folder of a complete run. Both runs are made at once, with one thread each."""
    root, starts = tmp_path_factory.mktemp("real"), Starts()

    def make(quantization: str) -> Path:
        return complete_run(root / quantization, base, starts, model__quantization=quantization)

    with ThreadPoolExecutor(2) as pool:
        made = {name: pool.submit(make, name) for name in ("none", "nf4")}
    return lambda quantization: made[quantization].result()
