"""The base's chat template: every defect is a finding, never a traceback."""

import json
from pathlib import Path

import pytest

from finetune.config.params import parse_config
from finetune.validate.checks.base_model import check_tokenizer
from tests.builders.checked_base import base as base
from tests.builders.checked_base import edit, examine, found
from tests.builders.checked_base import whole as whole
from tests.builders.checked_settings import finding_text
from tests.builders.small_run import ROOT, params

TURNS = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(base: Path, text: str) -> None:
    """Set the chat template of the base."""
    (base / "chat_template.jinja").write_text(text, encoding="utf-8")


# ---- The template


def test_the_shipped_template_has_no_finding(base: Path) -> None:
    """The shipped template has no finding; each of the next tests changes one thing in it."""
    template(base, TURNS)
    assert found() == []


@pytest.mark.parametrize("text", [None, ""])
def test_a_base_without_a_template_is_a_finding(base: Path, text: str | None) -> None:
    """The base model was never tuned for chat."""
    if text is None:
        (base / "chat_template.jinja").unlink()
    else:
        template(base, text)
    (finding,) = examine().findings
    assert finding_text(finding, "template-missing") == (
        "params.yaml: model.chat_template: base has no chat template; "
        "use an instruct model, or one of models/templates/*.jinja"
    )


@pytest.mark.parametrize("name", ["nowhere.jinja", "base"])
def test_an_unusable_template_file_is_a_finding(base: Path, name: str) -> None:
    """Cases: a mistyped name, and a folder."""
    (finding,) = examine(model__chat_template=name).findings
    assert (finding.code, finding.message) == ("template-missing", f"{name}: no such file")


def test_a_template_that_is_not_utf_8_is_a_finding(base: Path) -> None:
    """The finding names the file, whether it belongs to the user or to the base."""
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
        # Every token would be masked; TRL has marked versions only of common templates.
        (UNMARKED, "template-unmarked", "the chat template of base does not mark assistant turns"),
        # transformers fails at an empty text with a negative number, or not at all.
        ("{% generation %}{% endgeneration %}", "template-broken", NOTHING),
        ("{# {% generation %} #}\n", "template-broken", NOTHING),
        # A model that was never taught to stop writes up to the limit.
        (ENDLESS, "end-token-unsupervised", "the last supervised token of an answer is "),
        # Only the first answer is marked, as in templates that keep the rest for the reasoning.
        (FIRST_ALONE, "mask-wrong", ONE_LOST),
    ],
)
def test_a_template_with_wrong_supervision_is_a_finding(base: Path, text: str, code: str, what: str) -> None:
    """Every answer must be supervised with its end token, and nothing else."""
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
def test_a_failing_template_is_reported_with_its_error(base: Path, text: str, why: str) -> None:
    """A Jinja template is a program and may raise any error."""
    template(base, text)
    (finding,) = examine().findings
    assert finding.code == "template-broken"
    start = "the chat template rejects these turns (user, assistant, user, assistant): "
    if why != "Encountered unknown tag":
        assert finding.message.startswith(start + why)


def test_marks_that_are_not_single_tokens_are_a_finding(base: Path) -> None:
    """Marks of another model's template are split into pieces that the base does not know and never stops at."""
    template(base, TURNS.replace("<|im_start|>", "<|begin|>"))
    (finding,) = examine().findings
    assert finding_text(finding, "template-foreign") == (
        "params.yaml: model.chat_template: <|begin|> in the template are not single tokens of the base; "
        "use the template of the base (null, or one of models/templates/*.jinja); if the base was trained with these "
        "marks as plain text, list them in the template (models/templates/README.md)"
    )


@pytest.mark.parametrize(("plain", "codes"), [("", ["template-foreign"]), ("{#- plain text: <|begin|> [X] -#}\n", [])])
def test_marks_that_the_template_lists_as_plain_text_need_no_token(base: Path, plain: str, codes: list[str]) -> None:
    """Llama 2 was trained with the pieces of [INST]: it has no such token."""
    template(base, plain + TURNS.replace("<|im_start|>", "<|begin|>"))
    assert found() == codes


def test_the_template_of_llama_2_fits_its_tokenizer(base: Path, tmp_path: Path) -> None:
    """Llama 2 has the tokens <s> and </s>, but none for [INST]; Mistral 7B v0.3 has one, so there it is required."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    for name, foreign in (("llama2", []), ("mistral", ["template-foreign"])):
        tokenizer.chat_template = (ROOT / f"models/templates/{name}.jinja").read_text(encoding="utf-8")
        model = parse_config(params(), "params.yaml").model
        findings = check_tokenizer(model, tokenizer, None)
        assert [one.code for one in findings if one.code != "end-token-unknown"] == foreign  # the base has other ends


def test_an_end_at_which_generation_does_not_stop_is_a_finding(base: Path) -> None:
    """The model would continue after its answer; the base's generation config may also define the end token."""
    template(base, TURNS.replace("<|im_end|>{% endg", "<|endoftext|>{% endg"))
    (finding,) = [finding for finding in examine().findings if finding.code != "tokens-untrained"]  # with padding
    assert finding_text(finding, "end-token-unknown") == (
        "params.yaml: model.chat_template: answers end with '<|endoftext|>', but generation "
        "stops at '<|im_end|>'; use a template that ends answers with one of these"
    )
    ends = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    edit(base / "generation_config.json", eos_token_id=[ends["eos_token_id"], ends["pad_token_id"]])
    assert "end-token-unknown" not in found()
