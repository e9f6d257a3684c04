"""Checks keys of params.yaml and codes of findings on the pages against the model and the table of codes."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from finetune.config.criteria import RULES
from finetune.config.evaluate import BASELINES, CANDIDATES
from finetune.config.params import Config
from finetune.config.scorers import SCORERS
from finetune.config.validate import Machine
from finetune.validate.codes import all_codes
from tests.builders.doc_text import FENCED, ROOT, SPAN, code_of, spans_of


def has_key(parts: list[str], kind: Any) -> bool:
    """Return whether this dotted key exists in a type of params.yaml; mappings with free names accept any."""
    if not parts:
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(parts[0])
        return field is not None and has_key(parts[1:], field.annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return has_key(parts, arguments[0])
    if origin is dict:
        return has_key(parts[1:], arguments[1])
    if origin in (list, tuple):
        return has_key(parts[1:] if parts[0].isdigit() or parts[0] == "N" else parts, arguments[0])
    return origin in (Union, UnionType) and any(has_key(parts, one) for one in arguments)


def sections(kind: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    """Yield the model of params.yaml and all models in it."""
    yield kind
    todo: list[Any] = [field.annotation for field in kind.model_fields.values()]
    while todo:
        one = todo.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            yield from sections(one)
        elif get_origin(one) is not Literal:
            todo += get_args(one)


def field_of(name: str) -> FieldInfo | None:
    """Return the field of this name: a section of params.yaml, or a field of a section."""
    return next((kind.model_fields[name] for kind in sections() if name in kind.model_fields), None)


def wrong_keys(text: str) -> Iterator[str]:
    """Check dotted keys, kinds of rules, scorers and sides, and complete YAML blocks against the model."""
    names = {"rule": RULES, "scorer": SCORERS, "form": BASELINES | CANDIDATES}
    for line in code_of(text):
        for key in re.findall(
            rf"(?<![\w./-])((?:{'|'.join(Config.model_fields)})(?:\.(?:[a-zN_]\w*|\d+))+)(?![\w/(]|\.\w)", line
        ):
            file = re.fullmatch(r".*\.(py|md|ya?ml|json|jsonl|tsv|html|svg|svg|pt|log|lock|sh|csv)", key)
            if not file and not has_key(key.split("."), Config):
                yield f"{key}: no key of params.yaml"
        for kind, name in re.findall(r"(?<![\w.])(rule|scorer|form): (\w+)", line):
            if name not in names[kind]:
                yield f"{kind}: {name}: no such kind"
    yield from wrong_names(text)
    for language, block in FENCED.findall(text):
        if language == "yaml":
            yield from wrong_block(YAML(typ="safe", pure=True).load(block), None)


NO_KEYS = {"num_nodes"}  # keys in code spans that are of other files: SkyPilot's
KINDS: tuple[Mapping[str, type[BaseModel]], ...] = (RULES, SCORERS, BASELINES, CANDIDATES)


def wrong_names(text: str) -> Iterator[str]:
    """Check keys without a dot in spans: `snake_case: value`, and all those of `{rule: name, key: value}`."""
    for span in spans_of(text):
        for name in re.findall(r"^[-{ ]*([a-z0-9]+(?:_[a-z0-9]+)+): ", span):
            if not field_of(name) and name not in NO_KEYS:
                yield f"{name}: no key of params.yaml"
        if re.fullmatch(r"\{(rule|scorer|form): .*\}", span):
            content = YAML(typ="safe", pure=True).load(span)
            named = str(next(iter(content.values())))
            kinds = [kind[named] for kind in KINDS if named in kind]
            known = {name for kind in kinds for name in kind.model_fields}
            yield from (f"{name}: no key of {span}" for name in content if kinds and name not in known)


def wrong_block(content: dict[str, Any], kind: type[BaseModel] | None) -> Iterator[str]:
    """Check a mapping of params.yaml: each key must exist, and complete values must be valid."""
    for name, value in content.items():
        field = kind.model_fields.get(name) if kind else field_of(name)
        if field is None:
            yield f"{name}: no key of params.yaml"
            continue
        try:
            TypeAdapter(Annotated[field.annotation, field]).validate_json(json.dumps(value))
        except ValidationError as error:
            inner = field.annotation
            if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from wrong_block(value, inner)
            else:
                yield f"{name}: {error.errors()[0]['msg']}"


@cache
def packages() -> set[str]:
    """Return names of packages, which look like codes of findings."""
    locks = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "requirements").glob("*.lock"))
    return set(re.findall(r"^([\w.-]+)==", locks, flags=re.MULTILINE))


# Hyphenated words in code that are not codes of findings: other programs, packages in no lock, images.
OTHERS = {"ssh-keygen", "extra-index-url", "liger-kernel", "dvc-gs", "dvc-s3", "dvc-ssh", "python3-venv"}
OTHERS |= {"finetune-cpu", "finetune-cuda", "deploy-unproven", *get_args(Machine)}


def wrong_codes(text: str, known: set[str]) -> Iterator[str]:
    """Check codes of findings: hyphenated words alone in a code span or as a key of findings.accept."""
    known = known | set(all_codes()) | packages() | OTHERS
    for span in [" ".join(found.split()) for found in SPAN.findall(FENCED.sub("", text))]:
        if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", span) and span not in known:
            yield f"{span}: neither a finding nor a recipe, target or package"
    for block in re.findall(r"^  accept:\n((?:    .*\n)+)", text, flags=re.MULTILINE):
        named = re.findall(r"^    ([\w-]+):", block, re.MULTILINE)
        yield from (f"{code}: no finding" for code in named if code not in all_codes())
