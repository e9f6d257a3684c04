"""All answers of a side: batches by length, kept as they come, and not asked twice after a kill."""

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
    """A side that answers with the prompt's length, and notes what it was asked."""

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
    """Seven examples of different lengths."""
    return [example("x" * (1 + at * 3 % 7)) for at in range(7)]


def test_answers_come_in_the_order_of_the_examples(examples: list[Example], tmp_path: Path) -> None:
    """Asked longest first, so that what does not fit into memory shows at once."""
    side = Scripted()
    found = answer_all(side, examples, 3, 42, tmp_path, {})
    assert [answer.text.split()[0] for answer in found] == [str(side.length(item)) for item in examples]
    lengths = {item.id: side.length(item) for item in examples}
    assert [[lengths[name] for name in batch] for batch in side.asked] == [[7, 6, 5], [4, 3, 2], [1]]
    assert side.seeds == [42, 43, 44]


def test_an_interrupted_side_goes_on_where_it_was(examples: list[Example], tmp_path: Path) -> None:
    """Two batches were answered; the second start asks the third alone, and gives what a whole run gives."""
    whole = answer_all(Scripted(), examples, 3, 42, tmp_path / "whole", {})
    with pytest.raises(KeyboardInterrupt):
        answer_all(Scripted(fail_at=2), examples, 3, 42, tmp_path / "cut", {})
    again = Scripted()
    assert answer_all(again, examples, 3, 42, tmp_path / "cut", {}) == whole
    assert len(again.asked) == 1
    assert again.seeds == [44]  # a sampled answer is the same whether or not others were asked before it


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_asked_again(examples: list[Example], tmp_path: Path, cut: int) -> None:
    """A kill in the middle of a write leaves half a line: it counts for nothing, and what follows is whole."""
    whole = answer_all(Scripted(), examples, 3, 42, tmp_path, {})
    (spool,) = tmp_path.iterdir()
    spool.write_bytes(spool.read_bytes()[:-cut])
    side = Scripted()
    assert answer_all(side, examples, 3, 42, tmp_path, {}) == whole
    assert len(side.asked) == (0 if cut == 1 else 1)
    assert answer_all(Scripted(fail_at=0), examples, 3, 42, tmp_path, {}) == whole


def test_a_damaged_line_is_asked_again(examples: list[Example], tmp_path: Path) -> None:
    """A flipped bit in a kept answer is still JSON: believed, it would be scored as the model's own words."""
    whole = answer_all(Scripted(), examples, 3, 42, tmp_path, {})
    (spool,) = tmp_path.iterdir()
    content = spool.read_bytes()
    spool.write_bytes(content.replace(b'"tokens": 3', b'"tokens": 7', 1))
    side = Scripted()
    assert answer_all(side, examples, 3, 42, tmp_path, {}) == whole
    assert len(side.asked) == 1


@pytest.mark.parametrize("changed", ["determines", "seed", "size", "settings", "described", "origin"])
def test_what_determines_the_answers_names_the_spool(examples: list[Example], tmp_path: Path, changed: str) -> None:
    """Answers of another adapter, version, seed or batch size are other answers."""
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


def test_a_failed_answer_is_kept_and_asked_again_by_the_next_start(examples: list[Example], tmp_path: Path) -> None:
    """One prompt without room does not end the run; with more room the next start answers it."""
    bad = examples[2].id
    found = answer_all(Scripted(failed=frozenset({bad})), examples, 3, 42, tmp_path, {})
    assert [answer.failed for answer in found].count("no memory") == 1
    side = Scripted()
    assert all(answer.failed is None for answer in answer_all(side, examples, 3, 42, tmp_path, {}))
    assert [bad in batch for batch in side.asked] == [True]


def test_a_spool_of_rubbish_is_no_answer(tmp_path: Path) -> None:
    """Whatever lies there: other JSON, other fields, no text at all."""
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
    """SIGKILL, for real; the second process asks what is missing and no more."""
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
