"""Hostile files of earlier runs: each is read, or refused with a documented error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from finetune.config.evaluate import RecordedSpec
from finetune.errors import DataError
from finetune.evaluate.answers import read_spool
from finetune.evaluate.recorded import open_recorded
from finetune.files.atomic import write_json
from finetune.files.hashing import sha256_file
from finetune.files.manifests import MANIFEST, read_manifest, write_manifest
from finetune.history.seed_results import read_seeds, record_seed
from finetune.history.test_set_uses import count_look
from finetune.records.examples import Example
from finetune.train.checkpoints import Checkpoints
from tests.builders.fuzzing import fuzz, refusal

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
def test_arbitrary_recorded_answers_are_used_or_refused(
    tmp_path: Path, example: Callable[..., Example], rows: list[dict[str, Any]], raw: bytes
) -> None:
    """Errors about a file of recorded answers name file and line."""
    item, path = example("one"), tmp_path / "run.jsonl"
    first = {"id": item.id, "text": "x", "tokens": 1, "finished": True, "seconds": 0.5}
    path.write_bytes(
        b"".join(json.dumps(row).encode() + b"\n" for row in [first, *({**first, **r} for r in rows)]) + raw
    )
    form = RecordedSpec(form="recorded", name="v1", path="run.jsonl", sha256=sha256_file(path))
    message = refusal(DataError, lambda: open_recorded(form, tmp_path, [item]))
    assert not message or message.startswith(str(path))
    assert message or open_recorded(form, tmp_path, [item]).answers[item.id].text == "x"


@fuzz(100)
@given(content=JSON_JUNK | st.dictionaries(st.sampled_from(["test", "key"]), JSON_JUNK))
@example(content={"test": 5})
@example(content={"test": [["a"]]})
@example(content={"key": []})
@example(content={"key": {"x": {}}})
def test_arbitrary_histories_are_read_or_refused(tmp_path: Path, content: Any) -> None:
    """A git merge may break these files: the error names them, and they are not overwritten."""
    looks, seeds = tmp_path / "looks.json", tmp_path / "seeds.json"
    for path in (looks, seeds):
        path.write_text(json.dumps(content), encoding="utf-8")
    before = looks.read_text(encoding="utf-8")
    if message := refusal(DataError, lambda: count_look(looks, "test", "candidate")):
        assert message.startswith(str(looks))
        assert looks.read_text(encoding="utf-8") == before
    if message := refusal(DataError, lambda: record_seed(seeds, "key", 43, {"verdict": "iterate"})):
        assert message.startswith(str(seeds))
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
def test_arbitrary_manifests_are_read_or_refused(tmp_path: Path, content: Any, files: dict[str, Any]) -> None:
    """For an adapter an invalid manifest is an error, for a checkpoint a warning: the next good one is used."""
    store = Checkpoints(tmp_path, 3)
    for step in (3, 6):
        store.path(step).mkdir(exist_ok=True)
        (store.path(step) / "a").write_text("whole", encoding="utf-8")
        write_manifest(store.path(step), {"step": step, "best_step": 3})
    manifest = content | {"files": files} if isinstance(content, dict) else content
    (store.path(6) / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    message = refusal(DataError, lambda: read_manifest(store.path(6)))
    assert not message or message.startswith(str(store.path(6)))
    newest = store.newest()
    assert newest == store.path(3) or (newest == store.path(6) and not message)


@fuzz(100)
@given(content=st.lists(st.binary(max_size=20) | JSON_JUNK.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_arbitrary_stored_answers_are_used_or_generated_again(tmp_path: Path, content: list[bytes]) -> None:
    """Answers left by a killed evaluation are used only if they are intact."""
    path = tmp_path / "spool.jsonl"
    path.write_bytes(b"\n".join(content))
    assert read_spool(path) == {}


def test_read_json_reads_what_write_json_writes(tmp_path: Path) -> None:
    """Valid files are accepted; otherwise the other tests would prove nothing."""
    write_json(tmp_path / "a.json", {"test": ["candidate"]})
    assert count_look(tmp_path / "a.json", "test", "candidate") == 1
