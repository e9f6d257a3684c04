"""Translate pydantic's errors to this tool's form: key, problem, value found, and what to write."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune.errors import Problem

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Tagged:
    """A place in params.yaml where one key, the tag, selects one of several kinds of section."""

    place: tuple[str | None, ...]  # None is any key or position
    tag: str
    kinds: Mapping[str, type[BaseModel]]

    def holds(self, place: Location) -> bool:
        """Return whether a place is at or under this one."""
        parts = zip(self.place, place, strict=False)
        return len(place) >= len(self.place) and all(mine in (None, other) for mine, other in parts)


def describe_errors(
    error: ValidationError, model: type[BaseModel], where: str, tagged: Sequence[Tagged]
) -> list[Problem]:
    """Return one problem per mistake in the file `where`; pydantic adds the kind to the places of tagged sections."""
    items = error.errors(include_url=False)
    # A list with an invalid item is also reported as too short; only the item's own error is useful.
    wrong_inside = {item["loc"][:at] for item in items for at in range(len(item["loc"]))}
    kept = [item for item in items if item["type"] != "too_short" or item["loc"] not in wrong_inside]
    return [_describe(dict(item), model, where, tagged) for item in kept]


def _describe(item: dict[str, Any], model: type[BaseModel], where: str, tagged: Sequence[Tagged]) -> Problem:
    kind, found = item["type"], item.get("input")
    section, location = model, tuple(item["loc"])
    here = next((place for place in tagged if place.holds(location)), None)
    at = len(here.place) if here else 0
    if here and len(location) > at and str(location[at]) in here.kinds:  # decide, criteria, 0, at_least, threshold
        section, location = here.kinds[str(location[at])], (*location[:at], *location[at + 1 :])
    if here and kind in ("union_tag_not_found", "union_tag_invalid"):
        location = (*location, here.tag)
    place = f"{where}: {'.'.join(str(part) for part in location) or '(top level)'}"
    if here and kind == "union_tag_invalid" and isinstance(found, dict):
        return Problem("value-invalid", place, f"must be {item['ctx']['expected_tags']}", f"found {found[here.tag]!r}")
    if kind in ("missing", "union_tag_not_found"):
        return Problem("key-missing", place, "is missing", "add it; settings that affect results have no defaults")
    if kind == "extra_forbidden":
        known = list(section.model_fields) if section is not model else _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return Problem("key-unknown", place, "unknown key", f"did you mean {near[0]}?" if near else "remove it")
    if kind == "value_error":
        cause = item["ctx"]["error"]
        message, remedy = cause.args if len(cause.args) == 2 else (str(cause), "")
        return Problem("value-invalid", place if location else where, message, remedy)
    message = re.sub(r"^(Input|String|Value|Tuple) should", "must", item["msg"])
    return Problem("value-invalid", place, message, f"found {found!r}")


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys of the section at `location`."""
    current = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        models = _models_in(field.annotation) if field else []
        if not models:
            return []
        current = models[0]
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
