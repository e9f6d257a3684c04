"""Check that an answer is JSON, and valid against a JSON schema in `scorers/`.

    '{"city": "Bern"}' against {"type": "object", "required": ["city"]} -> 1   '{"city": "Bern"' -> 0

As in the standard, `format` is an annotation and is not checked. Nothing is ever fetched: a `$ref` must refer to the
same file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune.answers.functions import FOLDER
from finetune.answers.matching import UnscorableError
from finetune.errors import ConfigError
from finetune.files.strict_json import parse_json

PROBES: tuple[Any, ...] = (None, {}, [], "", 0)  # a schema with infinite recursion fails on any of them
PATTERN_SECONDS = 1.0  # a schema's pattern that takes longer is backtracking


def schema_file(name: str, place: str, root: Path) -> Callable[[str], bool]:
    """Compile a schema file in `scorers/`, by its path there. Raise ConfigError at the key `place` on failure."""
    folder = (root / FOLDER).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(f"{place}.schema_file", f"{name} is not in {FOLDER}/", "put the file there")
    try:
        return compile_schema(path)
    except ValueError as error:
        raise ConfigError(f"{place}.schema_file", f"{FOLDER}/{name} {error}") from None


def compile_schema(path: Path | None) -> Callable[[str], bool]:
    """Return a function that validates answers by the file's schema (None: any JSON). Raise ValueError if bad."""
    validator = None if path is None else read_validator(path)

    def is_valid(answer: str) -> bool:
        try:
            value = parse_json(answer)
            return validator is None or bool(validator.is_valid(value))
        except (ValueError, RecursionError):
            return False
        except TimeoutError:
            raise UnscorableError(f"a pattern of the schema takes longer than {PATTERN_SECONDS:g} s on it") from None

    return is_valid


def read_validator(path: Path) -> Any:
    """Return the validator of a schema file. Raise ValueError if it is not a schema or refers to another file."""
    try:
        schema = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    return make_validator(schema)


def make_validator(schema: Any) -> Any:
    """Return jsonschema's validator for the schema's draft (default: 2020-12). Raise ValueError for a bad schema."""
    import regex
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import SchemaError
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    if not isinstance(schema, dict):
        raise ValueError("is not a JSON schema: it must be an object")
    kind = validators.validator_for(schema, default=None if "$schema" in schema else Draft202012Validator)
    if kind is None:
        raise ValueError(f"has an unsupported $schema: {schema['$schema']!r:.100}")
    try:
        kind.check_schema(schema)
        check_references(schema, REGISTRY)
        limited = {name: check for name, check in LIMITED.items() if name in kind.VALIDATORS}
        validator = validators.extend(kind, limited)(schema, registry=REGISTRY)
        for probe in PROBES:
            validator.is_valid(probe)
    except SchemaError as error:
        raise ValueError(f"is not a JSON schema: {error.json_path}: {error.message:.200}") from None
    except Unresolvable as error:
        raise ValueError(
            f"refers to {error.ref!r:.100}, which it does not contain; references are not downloaded"
        ) from None
    except RecursionError:
        raise ValueError("refers to itself endlessly") from None
    except regex.error as error:
        raise ValueError(f"has an invalid pattern ({error})") from None
    return validator


def check_references(schema: Any, registry: Any) -> None:
    """Resolve every $ref and compile every pattern. Raise Unresolvable for a $ref to another file, or regex.error."""
    import regex
    from referencing import Resource
    from referencing.jsonschema import DRAFT202012

    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    base = root.id() or ""
    todo = [(root, registry.with_resource(base, root).resolver(base))]
    while todo:
        resource, resolver = todo.pop()
        content = resource.contents if isinstance(resource.contents, dict) else {}
        for key in ("$ref", "$dynamicRef"):
            if key in content:
                resolver.lookup(content[key])
        for pattern in [*content.get("patternProperties", ()), content.get("pattern", "")]:
            regex.compile(pattern)
        todo += [(sub, resolver.in_subresource(sub)) for sub in resource.subresources()]


# Keywords with patterns: jsonschema uses Python's `re`, which may not terminate on a hostile answer.


def _found(pattern: str, text: str) -> bool:
    import regex

    return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None


def _pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not _found(wanted, instance):
        yield ValidationError(f"does not match {wanted!r}")


def _pattern_properties(validator: Any, wanted: dict[str, Any], instance: Any, _: Any) -> Iterator[Any]:
    for pattern, schema in wanted.items() if isinstance(instance, dict) else ():
        for key, value in instance.items():
            if _found(pattern, key):
                yield from validator.descend(value, schema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items() if isinstance(instance, dict) else ():
        if key not in named and not any(_found(pattern, key) for pattern in patterns):
            yield from validator.descend(value, wanted, path=key)


LIMITED = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
