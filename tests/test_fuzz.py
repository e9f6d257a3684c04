"""Hostile params, recipes, data and files of earlier runs: each is read, or refused by an error that is documented.

`FUZZ_EXAMPLES=2000 python -m pytest tests/test_fuzz.py` searches longer, with new cases each time.
"""

import gzip
import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune.artifacts import MANIFEST, read_json, read_manifest, sha256_file, write_json, write_manifest
from finetune.config import load_config, parse_config, read_yaml
from finetune.config_data import Format
from finetune.config_evaluate import RecordedForm
from finetune.config_types import SPLITS
from finetune.errors import ConfigError, DataError, FinetuneError
from finetune.evaluate.answers import read_spool
from finetune.evaluate.recorded import open_recorded
from finetune.looks import count_look
from finetune.paths import Paths
from finetune.prepare import stage as prepare
from finetune.prepare.containers import detect_container, read_batches
from finetune.prepare.formats import FORMATS
from finetune.recipes import use, with_recipe
from finetune.records import Example
from finetune.seeds import read_seeds, record_seed
from finetune.train.checkpoints import Checkpoints
from tests.test_prepare_containers import WRITERS
from tests.test_prepare_formats import ROWS, fields, junk, nearly

ROOT = Path(__file__).resolve().parents[1]
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


# --------------------------------------------------------------------------------------------------- params, recipes

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
    """A text with a few of its pieces replaced, cut out or repeated, and hostile ones put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 20, 400])))
        put = draw(st.sampled_from(HOSTILE_TEXT) | st.text(max_size=6) | st.just(text[start:end] * 2))
        text = text[:start] + put + text[end:]
    return text.encode("utf-8", "surrogatepass")


SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def bomb(levels: int) -> bytes:
    """A few lines that stand for 9 to the power of `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, levels)]
    return "\n".join(lines).encode()


@fuzz(80)
@given(content=mangled(SHIPPED) | st.binary(max_size=60) | st.sampled_from(HOSTILE_TEXT).map(str.encode))
@example(content=bomb(30))
@example(content=b"a: &a [*a]\n")
@example(content=b"a: &a\n  b: *a\n")
@example(content=("[" * 5000).encode())
def test_any_params_are_a_config_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in the file: no traceback, no endless work, and the file is named."""
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    told = refusal(ConfigError, lambda: load_config(path))
    assert not told or told.startswith(str(path))
    assert len(told) < 100_000


JUNK = (
    junk
    | st.sampled_from(
        [10**400, -1, 0, 1e-320, date(2026, 11, 22), b"x", float("nan"), [], {}, [[]], {"": {}}, "x" * 10_000]
    )
    | st.dictionaries(st.integers() | st.none() | st.booleans() | st.dates() | st.text(max_size=3), junk, max_size=3)
)


def places_in(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and item of a nested value."""
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
def test_any_value_at_any_key_is_taken_or_told_by_its_key(params: dict[str, Any], data: st.DataObject) -> None:
    """One or two keys with anything at all, or gone, or with a stranger beside them."""
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
            continue  # the first change has taken the second one's place away
        touched.append(place)
    told = refusal(ConfigError, lambda: parse_config(content, "params.yaml"))
    assert not told or (told.startswith("params.yaml: ") and touched)


@pytest.mark.parametrize("name", [None, 5])
def test_a_key_that_is_no_text_is_told(params: dict[str, Any], name: Any) -> None:
    """`5: ...` among the scorers, whose names are free: pydantic's place for it is no kind of scorer."""
    params["evaluate"]["scorers"][name] = 1
    told = refusal(ConfigError, lambda: parse_config(params, "params.yaml"))
    assert told.startswith(f"params.yaml: evaluate.scorers.{name}")


@fuzz(50)
@given(
    content=mangled((ROOT / "recipes/cpu.yaml").read_text(encoding="utf-8")) | st.binary(max_size=40), own=st.booleans()
)
def test_any_recipe_is_applied_or_refused(tmp_path: Path, content: bytes, own: bool) -> None:
    """What is refused leaves params.yaml as it is; what is applied can be read."""
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


# -------------------------------------------------------------------------------------------------------------- data

GOOD = 12
CONTAINERS = [
    "rows.jsonl",
    "rows.jsonl.gz",
    "rows.jsonl.zst",
    "array.json",
    "array.json.gz",
    "rows.csv",
    "rows.tsv.zst",
]
CONTAINERS += ["rows.parquet", "stream.arrow", "file.arrow"]


def good_rows(format_: Format) -> list[dict[str, Any]]:
    """Sound rows that differ from each other."""
    return [numbered(ROWS[format_], number) for number in range(GOOD)]


def numbered(value: Any, number: int) -> Any:
    """The same value with a number after each sentence in it."""
    if isinstance(value, dict):
        return {key: numbered(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [numbered(item, number) for item in value]
    return f"{value} {number}" if isinstance(value, str) and value.strip()[:1].isupper() else value


def written(name: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows in a container, compressed where its name says so."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    content: bytes = WRITERS[plain](rows)
    if name.endswith(".gz"):
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if name.endswith(".zst") else content


def prepared(root: Path, change: Callable[..., Any], name: str, format_: Format) -> dict[str, Any] | None:
    """Prepare's account of a file, after its sums were checked; None where it was refused as documented."""
    config = change(
        **{
            "data.directory": "raw",
            "data.sources": [{"name": "any", "path": name, "format": format_}],
            "data.on_bad_row": "skip",
            "data.max_bad_fraction": 1.0,
            "data.duplicates.near": "ignore",
        }
    )
    paths = Paths(root)
    if told := refusal(DataError, lambda: prepare.run(config, paths)):
        assert "raw/" in told or "split is empty" in told
        return None
    account: dict[str, Any] = read_json(paths.reports / "prepare.json")["sources"]["any"]
    assert account["read"] == account["kept"] + sum(account["dropped"].values())
    assert len(lines(paths.prepared / "dropped.jsonl")) == sum(account["dropped"].values())
    assert sum(len(lines(paths.prepared / f"{split}.jsonl")) for split in SPLITS) == account["kept"]
    return account


def lines(path: Path) -> list[str]:
    """The lines of a file."""
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one run of prepare after the other."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "raw").mkdir()
    return root


@pytest.mark.parametrize("name", CONTAINERS)
@fuzz(30)
@given(
    format_=st.sampled_from(FORMATS), changed=st.lists(st.dictionaries(fields, junk | nearly, max_size=3), max_size=4)
)
def test_no_row_of_any_file_is_lost(
    ground: Path, change: Callable[..., Any], name: str, format_: Format, changed: list[dict[str, Any]]
) -> None:
    """Sound rows and hostile ones in each container: every one is kept, or dropped for a reason."""
    rows = good_rows(format_) + [ROWS[format_] | keys for keys in changed]
    try:
        content = written(name, rows)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        return  # nothing writes such a file
    for old in (ground / "raw").iterdir():
        old.unlink()
    (ground / "raw" / name).write_bytes(content)
    account = prepared(ground, change, name, format_)
    if account is not None:
        assert account["read"] == len(rows)


@pytest.mark.parametrize("name", CONTAINERS)
@fuzz(120)
@given(data=st.data())
def test_any_damage_to_a_file_is_rows_or_one_error(ground: Path, name: str, data: st.DataObject) -> None:
    """Bits flipped, bytes cut out, put in, repeated, the end missing: rows, or an error that names the file."""
    content = bytearray(written(name, [{"a": f"text {number}", "b": "x" * number} for number in range(40)]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"]))
        if how == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "repeat":
            content[at:at] = content[at : at + 50]
        else:
            del content[at:]
    path = ground / name
    path.write_bytes(content)
    told = refusal(DataError, lambda: [batch.rows() for batch in read_batches(path, detect_container(path), 10**6)])
    assert not told or told.startswith(str(path))
    assert "\n" not in told


# ------------------------------------------------------------------------------------------ what earlier runs have left

JSON_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -1]) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ANSWERED = ("id", "prompt", "text", "tokens", "finished", "failed", "seconds", "first_seconds", "candidate")


@fuzz(200)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(ANSWERED), JSON_JUNK, max_size=6), max_size=3),
    raw=st.binary(max_size=12),
)
@example(rows=[{"id": "one", "text": "x", "seconds": 10**400}], raw=b"")
def test_any_recorded_answers_are_taken_or_refused(
    tmp_path: Path, example: Callable[..., Example], rows: list[dict[str, Any]], raw: bytes
) -> None:
    """A file of somebody else's answers: file and line stand in the error."""
    item, path = example("one"), tmp_path / "run.jsonl"
    first = {"id": item.id, "text": "x", "tokens": 1, "finished": True, "seconds": 0.5}
    path.write_bytes(
        b"".join(json.dumps(row).encode() + b"\n" for row in [first, *({**first, **r} for r in rows)]) + raw
    )
    form = RecordedForm(form="recorded", name="v1", path="run.jsonl", sha256=sha256_file(path))
    told = refusal(DataError, lambda: open_recorded(form, tmp_path, [item]))
    assert not told or told.startswith(str(path))
    assert told or open_recorded(form, tmp_path, [item]).answers[item.id].text == "x"


@fuzz(100)
@given(content=JSON_JUNK | st.dictionaries(st.sampled_from(["test", "key"]), JSON_JUNK))
@example(content={"test": 5})
@example(content={"test": [["a"]]})
@example(content={"key": []})
@example(content={"key": {"x": {}}})
def test_any_counts_of_looks_and_seeds_are_read_or_refused(tmp_path: Path, content: Any) -> None:
    """Files in git, which a merge may have broken: an error that names them, and nothing is written over them."""
    looks, seeds = tmp_path / "looks.json", tmp_path / "seeds.json"
    for path in (looks, seeds):
        path.write_text(json.dumps(content), encoding="utf-8")
    before = looks.read_text(encoding="utf-8")
    if told := refusal(DataError, lambda: count_look(looks, "test", "candidate")):
        assert told.startswith(str(looks))
        assert looks.read_text(encoding="utf-8") == before
    if told := refusal(DataError, lambda: record_seed(seeds, "key", 43, {"verdict": "iterate"})):
        assert told.startswith(str(seeds))
        assert seeds.read_text(encoding="utf-8") == before
        assert refusal(DataError, lambda: read_seeds(seeds, "key"))
    else:
        assert read_seeds(seeds, "key")["43"] == {"verdict": "iterate"}


@fuzz(150)
@given(
    content=JSON_JUNK, files=st.dictionaries(st.sampled_from(["a", "../a", "/", "", "\0", "."]), JSON_JUNK, max_size=2)
)
@example(content={}, files={"a": 5})
@example(content={}, files={"a": {"bytes": 1}})
@example(content={"best_step": "x"}, files={})
@example(content={"best_step": []}, files={})
def test_any_manifest_is_read_or_refused(tmp_path: Path, content: Any, files: dict[str, Any]) -> None:
    """Of an adapter it is an error, of a checkpoint a warning: the next good one is taken."""
    store = Checkpoints(tmp_path, 3)
    for step in (3, 6):
        store.path(step).mkdir(exist_ok=True)
        (store.path(step) / "a").write_text("whole", encoding="utf-8")
        write_manifest(store.path(step), {"step": step, "best_step": 3})
    manifest = content | {"files": files} if isinstance(content, dict) else content
    (store.path(6) / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    told = refusal(DataError, lambda: read_manifest(store.path(6)))
    assert not told or told.startswith(str(store.path(6)))
    newest = store.newest()
    assert newest == store.path(3) or (newest == store.path(6) and not told)


@fuzz(100)
@given(content=st.lists(st.binary(max_size=20) | JSON_JUNK.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_any_kept_answers_are_taken_or_asked_again(tmp_path: Path, content: list[bytes]) -> None:
    """What a killed evaluation has left is believed only where it is whole."""
    path = tmp_path / "spool.jsonl"
    path.write_bytes(b"\n".join(content))
    assert read_spool(path) == {}


def test_write_json_is_what_read_json_reads(tmp_path: Path) -> None:
    """The other tests would prove nothing if sound files were refused."""
    write_json(tmp_path / "a.json", {"test": ["candidate"]})
    assert count_look(tmp_path / "a.json", "test", "candidate") == 1
