"""The base's chat template: whatever is wrong with it is a finding, never a traceback."""

import json
from pathlib import Path

import pytest

from tests.builders.checked_base import base as base
from tests.builders.checked_base import edit, examine, found
from tests.builders.checked_base import whole as whole
from tests.builders.checked_settings import told

TURNS = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(base: Path, text: str) -> None:
    """Give the base another chat template."""
    (base / "chat_template.jinja").write_text(text, encoding="utf-8")


# ---- The template


def test_our_own_template_is_right(base: Path) -> None:
    """The counterpart of the next tests: each changes one thing in it."""
    template(base, TURNS)
    assert found() == []


@pytest.mark.parametrize("text", [None, ""])
def test_a_base_without_a_template_is_a_finding(base: Path, text: str | None) -> None:
    """A base model that was never tuned to talk."""
    if text is None:
        (base / "chat_template.jinja").unlink()
    else:
        template(base, text)
    (finding,) = examine().findings
    assert told(finding, "template-missing") == (
        "params.yaml: model.chat_template: base has no chat template; "
        "use an instruct model, or one of models/templates/*.jinja"
    )


@pytest.mark.parametrize("name", ["nowhere.jinja", "base"])
def test_a_template_file_that_is_none_is_a_finding(base: Path, name: str) -> None:
    """A name mistyped, or a folder."""
    (finding,) = examine(model__chat_template=name).findings
    assert (finding.code, finding.message) == ("template-missing", f"{name}: no such file")


def test_a_template_that_is_not_utf_8_is_a_finding(base: Path) -> None:
    """Whoever's file it is: the user's or the base's."""
    Path("own.jinja").write_bytes(b"\xff\xfe")
    (finding,) = examine(model__chat_template="own.jinja").findings
    assert str(finding) == "params.yaml: model.chat_template: own.jinja is not UTF-8; save it as UTF-8"
    (base / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert found() == ["base-incomplete"]


UNMARKED = TURNS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
ENDLESS = TURNS.replace("{{ message.content }}<|im_end|>{% endg", "{{ message.content }}{% endg", 1)
FIRST_ALONE = TURNS.replace("message.role == 'assistant'", "loop.index == 2")
NOTHING = "the chat template renders a conversation as empty text"
ONE_LOST = "in a conversation with two answers, the two are not supervised as separate spans"


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        # Every token would be masked; TRL has marked versions of the stock templates alone.
        (UNMARKED, "template-unmarked", "the chat template of base does not mark assistant turns"),
        # transformers fails at an empty text with a negative number, or not at all.
        ("{% generation %}{% endgeneration %}", "template-broken", NOTHING),
        ("{# {% generation %} #}\n", "template-broken", NOTHING),
        # A model that was never taught to stop writes on to the limit.
        (ENDLESS, "end-token-unsupervised", "the last supervised token of an answer is "),
        # Marks around the first answer alone, as in templates that keep the rest for the reasoning.
        (FIRST_ALONE, "mask-wrong", ONE_LOST),
    ],
)
def test_a_template_that_teaches_something_else_is_a_finding(base: Path, text: str, code: str, what: str) -> None:
    """What is supervised is an answer and its end, of each answer."""
    template(base, text)
    (finding,) = examine().findings
    assert (finding.code, finding.place) == (code, "params.yaml: model.chat_template")
    assert finding.message.startswith(what)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% generation %}{% for %}", "Expected an expression, got 'end of statement block'"),
        ("{% generation %}{{ raise_exception('no!') }}", "Encountered unknown tag"),
        ("{{ raise_exception('no!') }}{% generation %}{% endgeneration %}", "no!"),
        ("{% generation %}{{ nobody.knows.it }}{% endgeneration %}", "'nobody' is undefined"),
        ("{% generation %}{{ 1 / 0 }}{% endgeneration %}", "division by zero"),
        (
            "{% macro a() %}{{ a() }}{% endmacro %}{% generation %}{{ a() }}{% endgeneration %}",
            "maximum recursion depth",
        ),
        ("{% generation %}{{ messages[9].content }}{% endgeneration %}", "list object has no element 9"),
    ],
)
def test_a_template_that_fails_is_a_finding_in_its_own_words(base: Path, text: str, why: str) -> None:
    """Jinja runs a small program, which may fail like any other."""
    template(base, text)
    (finding,) = examine().findings
    assert finding.code == "template-broken"
    start = "the chat template rejects these turns (user, assistant, user, assistant): "
    if why != "Encountered unknown tag":
        assert finding.message.startswith(start + why)


def test_marks_that_are_no_tokens_are_a_finding(base: Path) -> None:
    """Another model's template: its marks fall to pieces, which the base has never seen and never stops at."""
    template(base, TURNS.replace("<|im_start|>", "<|begin|>"))
    (finding,) = examine().findings
    assert told(finding, "template-foreign") == (
        "params.yaml: model.chat_template: <|begin|> in the template are not single tokens of the base; "
        "use the template of the base (null, or one of models/templates/*.jinja)"
    )


def test_an_end_at_which_generation_does_not_stop_is_a_finding(base: Path) -> None:
    """The answer would be right and then go on; the base's generation config may name the end as well."""
    template(base, TURNS.replace("<|im_end|>{% endg", "<|endoftext|>{% endg"))
    (finding,) = [finding for finding in examine().findings if finding.code != "tokens-untrained"]  # a row of padding
    assert told(finding, "end-token-unknown") == (
        "params.yaml: model.chat_template: answers end with '<|endoftext|>', but generation "
        "stops at '<|im_end|>'; use a template that ends answers with one of these"
    )
    ends = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    edit(base / "generation_config.json", eos_token_id=[ends["eos_token_id"], ends["pad_token_id"]])
    assert "end-token-unknown" not in found()
