"""Console output: text is never interpreted as markup, and a pipe gets complete lines."""

import os

import pytest

from finetune.console import progress, quiet_libraries, say, table


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A path or an answer in square brackets must neither vanish, nor colour the screen, nor break the table."""
    say("params.yaml: [bold]decide[/bold] [0]")
    table("a table", ["what"], [["[red]x[/]"], ["[/nonsense]"]])
    output = capsys.readouterr().out
    for text in ("params.yaml: [bold]decide[/bold] [0]", "[red]x[/]", "[/nonsense]"):
        assert text in output


def test_a_pipe_gets_complete_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs are searched by line, so an error must not be wrapped at 80 columns."""
    say("word " * 60)
    table("t", ["status"], [["pass"], ["fail"]])
    output = capsys.readouterr().out
    assert output.startswith("word " * 59)
    assert "\x1b" not in output


def test_progress_gives_every_item_and_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A progress bar would be noise in a log file."""
    assert list(progress([3, 1, 2], "counting")) == [3, 1, 2]
    assert capsys.readouterr().err == ""


def test_the_users_verbosity_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's setting for the libraries' messages is kept."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
