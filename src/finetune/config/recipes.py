"""Recipes: files with complete sections that replace those of params.yaml and leave the others unchanged.

Recipes do not inherit from each other and sections are not merged, so the run uses exactly what the recipe contains.
Sections are replaced in the text, so that comments on both sides are kept.
"""

import difflib
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from finetune.config.loading import read_yaml
from finetune.config.params import Config, load_config, parse_config
from finetune.console import say, table
from finetune.errors import ConfigError
from finetune.files.atomic import write_lines

RECIPE_SECTIONS = frozenset({"recipe", "machine", "environment", "runtime", "model", "adapter", "train"})
TOP_LEVEL_KEY = re.compile(r"^(\w+):")


def recipe_path(folder: Path, name: str) -> Path:
    """Return the recipe's file. Raise ConfigError with the most similar name if it does not exist."""
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in known:
        return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]}?" if near else f"known recipes: {', '.join(known)}"
    raise ConfigError(f"recipe {name!r}", f"no such file {folder / name}.yaml", advice)


def use(folder: Path, name: str, params: Path) -> None:
    """Replace in `params` exactly the sections of the recipe, after checking that the result is valid."""
    path = recipe_path(folder, name)
    composed = composed_text(path, params)
    parse_config(YAML(typ="safe", pure=True).load(composed), f"{params} with {path}")
    write_lines(params, [composed])
    held = ", ".join(key for key in split_sections(read_text(path)) if key)
    say(f"{params} now runs recipe {name} (replaced: {held}); see git diff {params}")


def with_recipe(folder: Path, name: str, params: Path) -> Config:
    """Return the Config that `use` would produce, without changing `params`."""
    path = recipe_path(folder, name)
    content = read_yaml(params)
    if not isinstance(content, dict):
        raise ConfigError(params, "is empty or not a mapping", f"recipe {name} replaces only some of its sections")
    return parse_config(content | load_recipe(path), f"{params} with {path}")


def read_recipe(name: str | None, root: Path) -> Config:
    """Return the Config of a recipe with the user's own sections; without a name, that of params.yaml."""
    params = root / "params.yaml"
    return load_config(params) if name is None else with_recipe(root / "recipes", name, params)


def composed_text(recipe: Path, params: Path) -> str:
    """Return the text of `params` with the recipe's sections. Raise ConfigError with file and line of a mistake."""
    for file in (params, recipe):
        read_yaml(file)
    return compose(read_text(params), read_text(recipe), str(recipe))


def compose(params: str, recipe: str, recipe_name: str) -> str:
    """Replace sections of params.yaml's text by the recipe's; everything else is kept byte for byte."""
    own, new = split_sections(params), split_sections(recipe)
    held = set(new) - {""}
    check_sections(held, recipe_name)
    missing = sorted(RECIPE_SECTIONS - set(own))
    if missing:
        raise ConfigError(
            f"params.yaml: {missing[0]}", "is missing, so the recipe's section can't be inserted", "add the key"
        )
    return "".join(_with_gap(new[key], own[key]) if key in held else own[key] for key in own)


def split_sections(text: str) -> dict[str, str]:
    """Split the text before each top-level key and the comments directly above it; the preamble has the key ''."""
    parts: dict[str, list[str]] = {"": []}
    current = parts[""]
    pending: list[str] = []
    for line in text.splitlines(keepends=True):
        match = TOP_LEVEL_KEY.match(line)
        if match:
            current = parts.setdefault(match[1], [])
            current += [*pending, line]
            pending = []
        elif line.startswith("#"):
            pending.append(line)
        else:
            current += [*pending, line]
            pending = []
    current += pending
    return {key: "".join(lines) for key, lines in parts.items()}


def _with_gap(block: str, replaced: str) -> str:
    """Return the block with as many trailing empty lines as the one that it replaces."""
    gap = len(replaced) - len(replaced.rstrip("\n"))
    return block.rstrip("\n") + "\n" * gap


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(path, "no such file", "run from the root of the repository") from None


def show(folder: Path, params: Path) -> dict[str, Any]:
    """Print the recipes, marking the current one, and how params.yaml differs from it; return both."""
    current = read_yaml(params) or {}
    rows, changed = [], []
    for path in sorted(folder.glob("*.yaml")):
        recipe = load_recipe(path)
        mark = "*" if path.stem == current.get("recipe") else ""
        rows.append([mark, path.stem, recipe["environment"], str(recipe["model"]["base"]), summary_of(path)])
    table("recipes (* = current params.yaml)", ["", "recipe", "environment", "base model", "for"], rows)
    name = current.get("recipe")
    if name in {path.stem for path in folder.glob("*.yaml")}:
        changed = differences(read_yaml(folder / f"{name}.yaml"), current)
    for line in changed:
        say(f"  changed: {line}")
    say("./finetune use NAME writes one to params.yaml")
    keys = ("recipe", "environment", "base_model", "summary")
    return {"recipes": [dict(zip(keys, row[1:], strict=True)) for row in rows], "in_params": name, "changed": changed}


def load_recipe(path: Path) -> dict[str, Any]:
    """Return a recipe's sections. Raise ConfigError if one is missing or superfluous."""
    recipe = read_yaml(path)
    check_sections(set(recipe) if isinstance(recipe, dict) else set(), str(path))
    return dict(recipe)


def check_sections(held: set[str], name: str) -> None:
    """Raise ConfigError unless a recipe has exactly the sections of a recipe."""
    if held != RECIPE_SECTIONS:
        wrong = ", ".join(sorted(held ^ RECIPE_SECTIONS))
        raise ConfigError(
            name, f"a recipe has the sections {', '.join(sorted(RECIPE_SECTIONS))}", f"unexpected: {wrong}"
        )


def summary_of(path: Path) -> str:
    """Return the first comment line of a recipe, which states its purpose."""
    first = read_text(path).splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def differences(recipe: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """Return the keys in the recipe's sections that differ in params, as `key: recipe -> params`."""
    found = []
    for section in (name for name in Config.model_fields if name in recipe):
        old, new = recipe[section], params.get(section)
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            found += [f"{section}.{key}: {old.get(key)} -> {new.get(key)}" for key in keys]
        elif old != new:
            found.append(f"{section}: {old} -> {new}")
    return found
