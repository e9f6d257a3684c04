"""What a person sees is what was meant: text is never markup, and a pipe gets whole lines."""

import os

import pytest

from finetune.console import progress, quiet_libraries, say, table


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A path or an answer in square brackets must not vanish, colour the screen or crash the table."""
    say("params.yaml: [bold]decide[/bold] [0]")
    table("a table", ["what"], [["[red]x[/]"], ["[/nonsense]"]])
    told = capsys.readouterr().out
    for text in ("params.yaml: [bold]decide[/bold] [0]", "[red]x[/]", "[/nonsense]"):
        assert text in told


def test_a_pipe_gets_whole_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs are searched by line: an error may not be folded at 80 columns."""
    say("word " * 60)
    table("t", ["status"], [["pass"], ["fail"]])
    told = capsys.readouterr().out
    assert told.startswith("word " * 59)
    assert "\x1b" not in told


def test_progress_gives_every_item_and_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar drawn into a log file is noise."""
    assert list(progress([3, 1, 2], "counting")) == [3, 1, 2]
    assert capsys.readouterr().err == ""


def test_the_users_own_verbosity_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked for the libraries' messages gets them."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
