"""Hostile params and recipes: each is read, or refused with a documented error."""

from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.config.loading import read_yaml
from finetune.config.params import load_config, parse_config
from finetune.config.recipes import use, with_recipe
from finetune.errors import ConfigError
from tests.builders.fuzzing import fuzz, refusal
from tests.records.test_formats import junk

ROOT = Path(__file__).resolve().parents[2]

HOSTILE_TEXT = [
    *(
        "&a [*a, *a]",
        "*a",
        "*nobody",
        "&a",
        "<<: *a",
        "!!python/object:os.system x",
        "!!binary x",
        "!!set {a, b}",
        "!x y",
    ),
    *("!!timestamp 2026-99-99", "2026-11-22", "1e999", "-.inf", ".nan", "0x", "0o9", "1_000", "12:30:45", "~", "yes"),
    *(
        "[" * 3000,
        "{a: " * 3000,
        "- " * 2000,
        "? ",
        ": ",
        "|",
        ">-",
        "'",
        '"',
        "\\",
        '"\\ud800"',
        '"\\x"',
        "%YAML 1.1\n---",
    ),
    *(
        "---",
        "...",
        "\t",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
        "#",
        "9" * 5000,
        "!!int a",
        "!!float z",
        "!!null x",
        "@",
        "`",
    ),
]


@st.composite
def mangled(draw: st.DrawFn, text: str) -> bytes:
    """Return a text with a few pieces replaced, removed or repeated, and hostile ones inserted."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 20, 400])))
        put = draw(st.sampled_from(HOSTILE_TEXT) | st.text(max_size=6) | st.just(text[start:end] * 2))
        text = text[:start] + put + text[end:]
    return text.encode("utf-8", "surrogatepass")


SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def bomb(levels: int) -> bytes:
    """Return a few lines that expand to 9 to the power of `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, levels)]
    return "\n".join(lines).encode()


@fuzz(80)
@given(content=mangled(SHIPPED) | st.binary(max_size=60) | st.sampled_from(HOSTILE_TEXT).map(str.encode))
@example(content=bomb(30))
@example(content=b"a: &a [*a]\n")
@example(content=b"a: &a\n  b: *a\n")
@example(content=("[" * 5000).encode())
def test_arbitrary_params_give_a_config_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    """For any content there is no traceback and no endless work, and the error names the file."""
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    message = refusal(ConfigError, lambda: load_config(path))
    assert not message or message.startswith(str(path))
    assert len(message) < 100_000


JUNK = (
    junk
    | st.sampled_from(
        [10**400, -1, 0, 1e-320, date(2026, 11, 22), b"x", float("nan"), [], {}, [[]], {"": {}}, "x" * 10_000]
    )
    | st.dictionaries(st.integers() | st.none() | st.booleans() | st.dates() | st.text(max_size=3), junk, max_size=3)
)


def places_in(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return every key and item of a nested value."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = [(*place, key) for key, _ in inside]
    return found + [
        deeper
        for key, value in (content.items() if isinstance(content, dict) else enumerate(content))
        if isinstance(value, dict | list)
        for deeper in places_in(value, (*place, key))
    ]


PLACES = places_in(read_yaml(ROOT / "params.yaml"))


@fuzz(600)
@given(data=st.data())
def test_an_arbitrary_value_is_accepted_or_reported_by_key(params: dict[str, Any], data: st.DataObject) -> None:
    """One or two keys have arbitrary values, are missing, or have an unknown neighbour."""
    content, touched = deepcopy(params), []
    for place in data.draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=2, unique=True)):
        at: Any = content
        try:
            for key in place[:-1]:
                at = at[key]
            how = data.draw(st.sampled_from(["value", "value", "value", "gone", "stranger"]))
            if how == "gone":
                del at[place[-1]]
            elif how == "stranger" and isinstance(at, dict):
                at[data.draw(st.text(max_size=5) | st.integers() | st.none())] = 1
            else:
                at[place[-1]] = data.draw(JUNK)
        except (KeyError, IndexError, TypeError):
            continue  # the first change has removed the second one's place
        touched.append(place)
    message = refusal(ConfigError, lambda: parse_config(content, "params.yaml"))
    assert not message or (message.startswith("params.yaml: ") and touched)


@pytest.mark.parametrize("name", [None, 5])
def test_a_key_that_is_not_text_is_reported(params: dict[str, Any], name: Any) -> None:
    """With `5: ...` among the scorers, whose names are free, pydantic's location is not a kind of scorer."""
    params["evaluate"]["scorers"][name] = 1
    message = refusal(ConfigError, lambda: parse_config(params, "params.yaml"))
    assert message.startswith(f"params.yaml: evaluate.scorers.{name}")


@fuzz(50)
@given(
    content=mangled((ROOT / "recipes/cpu.yaml").read_text(encoding="utf-8")) | st.binary(max_size=40), own=st.booleans()
)
def test_arbitrary_recipes_are_applied_or_refused(tmp_path: Path, content: bytes, own: bool) -> None:
    """A refused recipe leaves params.yaml unchanged; an applied one gives readable params."""
    (tmp_path / "recipes").mkdir(exist_ok=True)
    (tmp_path / "recipes/x.yaml").write_bytes(content)
    params = tmp_path / "params.yaml"
    params.write_text(SHIPPED, encoding="utf-8")
    try:
        if own:
            with_recipe(tmp_path / "recipes", "x", params)
        else:
            use(tmp_path / "recipes", "x", params)
            load_config(params)
    except ConfigError:
        assert params.read_text(encoding="utf-8") == SHIPPED
