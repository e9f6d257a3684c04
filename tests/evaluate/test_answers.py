"""Answers of a side: batched by length, stored as they come, and not generated again after a kill."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.evaluate.answers import answer_all, read_spool
from finetune.records.examples import Answer, Example

ROOT = Path(__file__).resolve().parents[2]


class Scripted:
    """A side that answers with the prompt's length and records its requests."""

    def __init__(self, fail_at: int | None = None, failed: frozenset[str] = frozenset()) -> None:
        self.described: dict[str, Any] = {"name": "scripted"}
        self.origin: dict[str, Any] = {"dtype": "float32"}
        self.settings: dict[str, Any] = {"max_new_tokens": 4}
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []
        self.fail_at, self.failed = fail_at, failed

    def length(self, example: Example) -> int:
        return len(example.prompt[-1].content)

    def answer(self, examples: Sequence[Example], seed: int) -> list[Answer]:
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append([example.id for example in examples])
        self.seeds.append(seed)
        return [
            Answer("", None, None, failed="no memory") if example.id in self.failed else self.one(example)
            for example in examples
        ]

    def one(self, example: Example) -> Answer:
        return Answer(f"{self.length(example)} \ud800\u2028", 3, finished=True, reference_nll=0.1 + 0.2)


@pytest.fixture
def examples(example: Callable[..., Example]) -> list[Example]:
    """Return seven examples of different lengths."""
    return [example("x" * (1 + at * 3 % 7)) for at in range(7)]


def test_answers_come_in_the_order_of_the_examples(examples: list[Example], tmp_path: Path) -> None:
    """The longest prompts come first, so that a lack of memory shows at once."""
    side = Scripted()
    found = answer_all(side, examples, 3, 42, tmp_path, {})
    assert [answer.text.split()[0] for answer in found] == [str(side.length(item)) for item in examples]
    lengths = {item.id: side.length(item) for item in examples}
    assert [[lengths[name] for name in batch] for batch in side.asked] == [[7, 6, 5], [4, 3, 2], [1]]
    assert side.seeds == [42, 43, 44]


def test_an_interrupted_side_resumes(examples: list[Example], tmp_path: Path) -> None:
    """After two answered batches, the second start answers only the third; the result equals a complete run."""
    whole = answer_all(Scripted(), examples, 3, 42, tmp_path / "whole", {})
    with pytest.raises(KeyboardInterrupt):
        answer_all(Scripted(fail_at=2), examples, 3, 42, tmp_path / "cut", {})
    again = Scripted()
    assert answer_all(again, examples, 3, 42, tmp_path / "cut", {}) == whole
    assert len(again.asked) == 1
    assert again.seeds == [44]  # a sampled answer does not depend on earlier ones


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_partial_line_is_generated_again(examples: list[Example], tmp_path: Path, cut: int) -> None:
    """A kill during a write leaves a partial line: it is ignored, and later lines are intact."""
    whole = answer_all(Scripted(), examples, 3, 42, tmp_path, {})
    (spool,) = tmp_path.iterdir()
    spool.write_bytes(spool.read_bytes()[:-cut])
    side = Scripted()
    assert answer_all(side, examples, 3, 42, tmp_path, {}) == whole
    assert len(side.asked) == (0 if cut == 1 else 1)
    assert answer_all(Scripted(fail_at=0), examples, 3, 42, tmp_path, {}) == whole


def test_a_damaged_line_is_generated_again(examples: list[Example], tmp_path: Path) -> None:
    """A flipped bit in a stored answer may still be JSON; it must not be scored as the model's answer."""
    whole = answer_all(Scripted(), examples, 3, 42, tmp_path, {})
    (spool,) = tmp_path.iterdir()
    content = spool.read_bytes()
    spool.write_bytes(content.replace(b'"tokens": 3', b'"tokens": 7', 1))
    side = Scripted()
    assert answer_all(side, examples, 3, 42, tmp_path, {}) == whole
    assert len(side.asked) == 1


@pytest.mark.parametrize("changed", ["determines", "seed", "size", "settings", "described", "origin"])
def test_the_spools_name_depends_on_all_settings(examples: list[Example], tmp_path: Path, changed: str) -> None:
    """Another adapter, version, seed or batch size gives other answers."""
    answer_all(Scripted(), examples, 3, 42, tmp_path, {"versions": "1"})
    side = Scripted()
    size, seed, determines = 3, 42, {"versions": "1"}
    if changed == "determines":
        determines = {"versions": "2"}
    elif changed == "seed":
        seed = 43
    elif changed == "size":
        size = 2
    elif changed == "origin":
        side.origin["dtype"] = "bfloat16"
    elif changed == "settings":
        side.settings["max_new_tokens"] = 5
    else:
        side.described["adapter_sha256"] = "b"
    answer_all(side, examples, size, seed, tmp_path, determines)
    assert sum(len(batch) for batch in side.asked) == len(examples)


def test_a_failed_answer_is_stored_and_retried_at_the_next_start(examples: list[Example], tmp_path: Path) -> None:
    """A prompt that does not fit into memory does not end the run; the next start tries it again."""
    bad = examples[2].id
    found = answer_all(Scripted(failed=frozenset({bad})), examples, 3, 42, tmp_path, {})
    assert [answer.failed for answer in found].count("no memory") == 1
    side = Scripted()
    assert all(answer.failed is None for answer in answer_all(side, examples, 3, 42, tmp_path, {}))
    assert [bad in batch for batch in side.asked] == [True]


def test_invalid_spool_content_is_ignored(tmp_path: Path) -> None:
    """Cases: other JSON, other fields, and bytes that are not text."""
    path = tmp_path / "spool"
    path.write_bytes(b'[1]\n{"a": {"text": 1, "what": 2}}\n\xff\xfe\n{"b": 3}\n' + json.dumps({"c": {}}).encode())
    assert read_spool(path) == {}


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = ["src", "."]
from tests.evaluate.test_answers import Scripted
from finetune.evaluate.answers import answer_all
from finetune.records.examples import Example, Message
class Waiting(Scripted):
    def answer(self, examples, seed):
        if len(self.asked) == int(sys.argv[2]):
            print("waiting", flush=True)
            time.sleep(3600)
        return super().answer(examples, seed)
turns = [(Message("user", "x" * at), Message("assistant", "y")) for at in range(80)]
examples = [Example(f"id{at}", "s", at, "a", talk) for at, talk in enumerate(turns)]
side = Waiting()
answer_all(side, examples, 2, 1, Path(sys.argv[1]), {})
print(len(side.asked))
"""


@pytest.mark.slow
def test_a_killed_process_loses_one_batch_at_most(tmp_path: Path) -> None:
    """After a SIGKILL, the second process generates only the missing answers."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    first = subprocess.Popen([*command, "10"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "waiting\n"  # in its eleventh batch
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (spool,) = tmp_path.iterdir()
    assert len(read_spool(spool)) == 20
    second = subprocess.run([*command, "-1"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert int(second.stdout) == (80 - 20) // 2
    assert len(read_spool(spool)) == 80
