"""Pydantic's errors in the words of this tool: key, what is wrong, what was found, what to write."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]


def describe_errors(error: ValidationError, model: type[BaseModel], rules: Mapping[str, type[BaseModel]]) -> list[str]:
    """One line a mistake; `rules` are the kinds of criterion, whose names pydantic puts into the place of an error."""
    items = error.errors(include_url=False)
    # A list with a wrong item counts as too short as well: the item's own error says what is wrong.
    wrong_inside = {item["loc"][:at] for item in items for at in range(len(item["loc"]))}
    told = [item for item in items if item["type"] != "too_short" or item["loc"] not in wrong_inside]
    return [_describe(dict(item), model, rules) for item in told]


def _describe(item: dict[str, Any], model: type[BaseModel], rules: Mapping[str, type[BaseModel]]) -> str:
    kind, found, place = item["type"], item.get("input"), tuple(item["loc"])
    section, location = (model, place)
    if place[:2] == ("decide", "criteria") and len(place) > 3:  # decide, criteria, 0, at_least, threshold
        section, location = rules[str(place[3])], (*place[:3], *place[4:])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        location = (*location, "rule")
    key = ".".join(str(part) for part in location) or "(top level)"
    if kind == "union_tag_invalid" and isinstance(found, dict):
        return f"{key}: must be {item['ctx']['expected_tags']}; found {found['rule']!r}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{key}: is missing; nothing that changes a result has a default, so write it"
    if kind == "extra_forbidden":
        known = list(section.model_fields) if section is not model else _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else "remove it")
    if kind == "value_error":
        return f"{key}: {item['ctx']['error']}"
    message = re.sub(r"^(Input|String|Value|Tuple) should", "must", item["msg"])
    return f"{key}: {message}; found {found!r}"


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys of the section at `location`."""
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
