"""Types of the fixtures in tests/conftest.py."""

from collections.abc import Callable

from finetune.config.params import Config
from finetune.records.examples import Example

Change = Callable[..., Config]
MakeExample = Callable[..., Example]
