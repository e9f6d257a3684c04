"""Drawings and words: scales, figures and texts are readable and contain no hidden characters."""

import re

from hypothesis import given
from hypothesis import strategies as st

from finetune.decide.report.formatting import format_value, percent, plain_markdown, plain_name, shortened, visible
from finetune.decide.report.readings import examples_counted, read_outcomes
from finetune.decide.report.svg import Scale, round_ticks
from tests.builders.report_answers import OTHER, MadeUp
from tests.builders.report_run import run as run

# ---- Drawings and words


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within_the_scale(low: float, span: float) -> None:
    """A scale has two to seven evenly spaced ticks, all within its ends."""
    ticks = round_ticks(low, low + span, 4)
    assert len(ticks) <= 7
    assert all(low - 1e-6 * span - 1e-9 <= tick <= low + span + 1e-6 * span + 1e-9 for tick in ticks)


def test_a_logarithmic_scale_has_room_for_both_ends() -> None:
    """For 47 ms and 1 s, a linear scale would draw the interval as a dot at the left end."""
    scale = Scale(0.03, 1.6, log=True)
    assert scale.at(0.03) == 2 and scale.at(1.6) == 98 and scale.at(99) == 98
    assert scale.ticks() == [0.05, 0.1, 0.2, 0.5, 1.0]


def test_figures_are_written_in_the_usual_form() -> None:
    """A share below 100% is never rounded to 100%."""
    shown = [percent(value) for value in (0.0, 0.0001, 0.5, 0.9999, 1.0, None)]
    assert shown == ["0.0%", "<0.1%", "50.0%", ">99.9%", "100.0%", "n/a"]
    assert format_value(-0.03, "points") == "\u22123.0 points" and format_value(0.31, "difference") == "+0.310"
    assert shortened("x" * 12, 10) == "xxxxxxxxxx… [2 more characters]"


@given(st.text())
def test_shown_text_has_no_hidden_characters(text: str) -> None:
    """Hidden characters are shown as escapes, and the text can be encoded as UTF-8, whatever a model wrote."""
    shown = visible(text)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)


@given(st.text())
def test_text_does_not_break_markdown(text: str) -> None:
    """Text cannot add a column, a line, a tag, a link or a mention."""
    shown = plain_markdown(text)
    assert not re.search(r"[\n<>]|(?<!\\)(?:\\\\)*[|\[\]`*]|@\w|://\w", shown)
    assert plain_markdown(3) == 3


def test_names_of_models_contain_no_path() -> None:
    """A local folder is shown by its last part, a model of the Hub by its full name."""
    local = "sha256:" + "a" * 64
    assert plain_name("/home/me/models/tiny-base/") == plain_name("models/tiny-base", local) == "tiny-base"
    assert plain_name("C:\\Users\\me\\base") == plain_name("~/base") == plain_name("../x/base") == "base"
    assert plain_name("Qwen/Qwen2-7B", "a" * 40) == "Qwen/Qwen2-7B"


def test_only_scored_examples_are_counted(run: MadeUp) -> None:
    """A scorer for one agent counts only that agent's examples, also in the total."""
    evaluation = run.run.reports.evaluation
    assert examples_counted("exact_match", "all", evaluation) == 445
    assert examples_counted("exceptions.macro_f1", "all", evaluation) == 249
    assert examples_counted("exceptions.macro_f1", OTHER, evaluation) is None
    assert [item.examples for item in read_outcomes(run.outcomes, run.run.reports.evaluation)][:3] == [249, 445, 249]
