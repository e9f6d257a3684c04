"""`finetune chat` shows both models' answers to the exact prompt, and prints answers without terminal escapes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from finetune.commands import chat
from finetune.commands.chat import Session, answer, choose_agent, indented, system_prompts, talk
from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.paths import Paths
from finetune.records.examples import Example, Message
from finetune.records.io import to_json_lines

ROOT = Path(__file__).resolve().parents[2]
HARD = "a \"quoted\" 'word' for $5 and $HOME\n`id`; $(shell touch pwned) # two lines \\"


@dataclass
class Found:
    """The return value of generate."""

    tokens: list[int]
    finished: bool


class Model:
    """A model that records whether its adapter is active."""

    on = True

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        self.on = False
        yield
        self.on = True


class Tokenizer:
    """A tokenizer with one token per letter."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(map(chr, tokens))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """Return a session whose base answers `base` and whose candidate repeats the prompt's last three letters."""

    def generate(session: Session, side: str, ids: list[int], settings: dict[str, Any], streamer: Any = None) -> Found:
        if chr(ids[-1]) == "!":
            raise KeyboardInterrupt
        if side == "base":
            return Found([ord(letter) for letter in "base"], finished=False)
        return Found(ids[-3:], finished=True)

    monkeypatch.setattr(chat, "generate_one", generate)
    monkeypatch.setattr(chat, "prompt_ids", lambda session, prompt: [ord(letter) for letter in prompt])
    prompts = {"namer": "Name it.", "other": None}
    return Session(Model(), Tokenizer(), {"max_new_tokens": 4}, prompts, "namer", 64)


def test_both_answers_are_shown(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer shows its length and whether it was cut; a prompt longer than in training gives a warning."""
    answer(session, "find the key")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" s")[0][:-4] for line in lines[::2]] == ["base (4 tokens, ", "candidate (3 tokens, "]
    assert "cut off at 4 (--max-new-tokens)" in lines[0] and "cut off" not in lines[2]
    assert lines[1::2] == ["  base", "  key"]
    answer(session, "x" * 61)
    assert "the prompt has 61 tokens: with the answer it may exceed the 64 tokens trained on" in capsys.readouterr().out


def test_escape_sequences_in_an_answer_are_not_printed() -> None:
    """A model trained on hostile rows may answer with escape sequences."""
    assert indented("\x1b[2Jgone\tfor\n[bold]good") == "  \ufffd[2Jgone    for\n  [bold]good"
    assert indented("") == "  (nothing)"


def test_a_session_continues_after_a_stopped_answer(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the answer or drops the line, an unknown agent is reported, an empty line ends the session."""
    given: Iterator[Any] = iter(["stop!", KeyboardInterrupt, "/agent nobody", "/agent other", "and on", "", "never"])

    def typed(mark: str) -> str:
        line = next(given)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return str(line)

    monkeypatch.setattr("builtins.input", typed)
    talk(session)
    output = capsys.readouterr().out
    assert "stopped" in output
    assert "no agent is named 'nobody'; known agents: namer, other; none uses no system prompt" in output
    assert "agent other, system prompt: none; others: namer" in output
    assert output.endswith("  on\n")
    assert next(given) == "never"


def test_a_pipe_has_one_prompt_per_line(
    session: Session, config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe, every line is a prompt: there are no commands, and an empty line does not end the session."""
    monkeypatch.setattr(chat, "open_session", lambda *_: session)
    monkeypatch.setattr("sys.stdin", StringIO("first\n\n/agent other\r\n"))
    chat.run(config, Paths(Path("nowhere")), None, None, None)
    output = capsys.readouterr().out
    assert session.agent == "namer"
    assert [line for line in output.splitlines() if line.startswith("> ")] == ["> first", "> /agent other"]


def test_an_agents_prompt_equals_that_of_the_test_split(
    change: Callable[..., Config], example: Callable[..., Example], tmp_path: Path
) -> None:
    """The labels in the prompt come from prepare, not from params.yaml; an agent without a prompt has none."""
    config, paths = change(**{"data.system_prompts": {"namer": "Name it.", "rare": "Rare."}}), Paths(tmp_path)
    assert system_prompts(config, paths) == {"namer": "Name it.", "rare": "Rare."}
    rows = [example("one", system="Name it.\nLabels: a, b."), example("two", agent="bare", system=None)]
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/test.jsonl").write_text("".join(to_json_lines(rows)), encoding="utf-8")
    assert system_prompts(config, paths) == {"namer": "Name it.\nLabels: a, b.", "rare": "Rare.", "bare": None}
    none = change(**{"data.system_prompts": {}, "data.default_system_prompt": "Help."})
    assert system_prompts(none, Paths(tmp_path / "empty")) == {"none": "Help."}


def test_an_unknown_agent_is_reported_before_loading_the_model(config: Config, tmp_path: Path) -> None:
    """The agent is checked first, because loading a large base takes minutes."""
    assert choose_agent({"a": "x", "b": None}, None) == "a"
    assert choose_agent({"a": "x"}, "none") == "none"
    with pytest.raises(ConfigError, match="no agent is named 'nobody'"):
        chat.run(config, Paths(tmp_path), "hello", "nobody", None)


def test_the_system_prompt_precedes_the_users_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns equal those that prepare writes for training."""
    seen: list[list[Message]] = []
    monkeypatch.setattr("finetune.model.tokens.tokenize_prompt", lambda _, messages: seen.append(messages) or [1])
    session = Session(None, None, {}, {"namer": "Name it.", "other": None}, "namer", 8)
    chat.prompt_ids(session, "what?")
    session.agent = "other"
    chat.prompt_ids(session, "what?")
    assert seen == [[Message("system", "Name it."), Message("user", "what?")], [Message("user", "what?")]]
