"""Settings and helpers of the fuzz tests.

`FUZZ_EXAMPLES=2000 python -m pytest tests/fuzz` searches longer, with new cases each time."""

import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings

from finetune.errors import FinetuneError

MORE = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(examples: int) -> settings:
    """Return settings with this number of fixed examples by default; FUZZ_EXAMPLES sets more, with random ones."""
    return settings(
        max_examples=MORE or examples,
        derandomize=not MORE,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def refusal(kind: type[FinetuneError], act: Callable[[], object]) -> str:
    """Return the text of the documented error that occurs, or an empty text if there is none. Other errors fail."""
    try:
        act()
    except kind as error:
        return str(error)
    return ""
