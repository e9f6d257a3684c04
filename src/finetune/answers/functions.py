"""A user-defined function in `scorers/` as a scorer: imported once, called for every answer.

    scorers.example.share_of_words("KeyError raised", "KeyError", {"id": "9f2c…", "messages": […], …}) -> 0.5

The code belongs to the user and runs with the user's rights, like the rest of the working tree.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune.answers.matching import UnscorableError
from finetune.errors import ConfigError
from finetune.records.examples import Example

FOLDER = "scorers"


def load_function(dotted: str, place: str, root: Path) -> Callable[..., Any]:
    """Load the function `scorers.module.name` of the tree at `root`. Raise ConfigError at `place` if it fails."""
    name, _, attribute = dotted.rpartition(".")
    with _importing_from(root):
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the user's file may raise anything; it is reported
            raise ConfigError(place, f"{name} can't be imported ({type(error).__name__}: {error})") from None
    if not _lies_in(module, root / FOLDER):
        raise ConfigError(
            place, f"{name} was imported from {module.__file__}, not from {FOLDER}/", "rename one of the modules"
        )
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(place, f"{name} has no function {attribute}")
    found: Callable[..., Any] = function
    return found


@contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Import modules from `root` first, ignoring those already imported from another tree."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == FOLDER and not _lies_in(module, root / FOLDER):
            del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(root.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(root.resolve()))


def _lies_in(module: ModuleType, folder: Path) -> bool:
    places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places if place)


def call_function(function: Callable[..., Any], lowest: float, highest: float, answer: str, example: Example) -> float:
    """Return the function's score. Raise UnscorableError if it raises or returns no number between the bounds."""
    try:
        found = function(answer, example.completion, deepcopy(example.to_json()))
    except (Exception, SystemExit) as error:
        raise UnscorableError(f"{type(error).__name__}: {error!s:.200}") from None
    if not isinstance(found, bool | int | float):
        raise UnscorableError(f"returned {type(found).__name__}, not a number")
    if not (math.isfinite(found) if isinstance(found, float) else True) or not lowest <= found <= highest:
        raise UnscorableError(f"returned {found!r:.40}, which is outside {lowest:g} to {highest:g}")
    return float(found)
