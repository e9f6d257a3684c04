"""How the fuzz tests search.

`FUZZ_EXAMPLES=2000 python -m pytest tests/test_fuzz_*.py` searches longer, with new cases each time.
"""

import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings

from finetune.errors import FinetuneError

MORE = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(examples: int) -> settings:
    """So many examples in the tests of every day, the same each time; more and others where they are asked for."""
    return settings(
        max_examples=MORE or examples,
        derandomize=not MORE,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def refusal(kind: type[FinetuneError], act: Callable[[], object]) -> str:
    """The text of the documented error that this ends with; nothing where it goes through. Any other error fails."""
    try:
        act()
    except kind as error:
        return str(error)
    return ""
