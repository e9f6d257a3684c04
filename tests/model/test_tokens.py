"""The mask: exactly the assistant's text and its end token are trained on."""

from pathlib import Path
from typing import Any

import pytest
import trl

from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.model.tokens import IGNORED, load_tokenizer, render, set_template, tokenize, tokenize_prompt
from finetune.records.examples import Message, Tool
from tests.builders.small_run import ROOT
from tests.builders.tokenized_rows import tokenizer_with

CONVERSATION = (
    Message("system", "Name the class."),
    Message("user", "message: <b>invalid</b> mode"),
    Message("assistant", "ValueError"),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Return the embedded base's tokenizer."""
    from finetune.config.params import parse_config
    from tests.builders.small_run import ROOT, params

    return load_tokenizer(parse_config(params(), "params").model, ROOT / "models/tiny-base")


def test_mask_decodes_to_the_answer_and_its_end_token(tokenizer: Any) -> None:
    """A mask shifted by one token would train on the prompt, or never on the end token."""
    found = tokenize(tokenizer, CONVERSATION)
    kept = [token for token, label in zip(found.input_ids, found.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(kept) == "ValueError<|im_end|>"
    assert found.supervised == len(kept)
    assert all(label in (IGNORED, token) for token, label in zip(found.input_ids, found.labels, strict=True))


def test_every_assistant_turn_is_supervised(tokenizer: Any) -> None:
    """All answers of a conversation are trained on."""
    more = (*CONVERSATION, Message("user", "and now?"), Message("assistant", "TypeError"))
    found = tokenize(tokenizer, more)
    kept = [token for token, label in zip(found.input_ids, found.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(kept) == "ValueError<|im_end|>TypeError<|im_end|>"


def test_the_prompt_ends_where_the_answer_begins(tokenizer: Any) -> None:
    """Generation must start from exactly the tokens that precede the answer in training."""
    whole, prompt = tokenize(tokenizer, CONVERSATION), tokenize_prompt(tokenizer, CONVERSATION[:-1])
    first = next(at for at, label in enumerate(whole.labels) if label != IGNORED)
    assert whole.input_ids[:first] == prompt


def test_padding_is_not_the_end_token(tokenizer: Any) -> None:
    """If they were equal, a padded end would be masked and the model would never stop."""
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_template_without_marks_is_refused(tmp_path: Path, config: Config) -> None:
    """Without generation marks every token would be masked; the error comes before training, with a remedy."""
    marked = (ROOT / "models/tiny-base/chat_template.jinja").read_text(encoding="utf-8")
    plain = tmp_path / "plain.jinja"
    plain.write_text(marked.replace("{%- generation %}", "").replace("{%- endgeneration %}", ""), encoding="utf-8")
    model = config.model.model_copy(update={"base": str(ROOT / "models/tiny-base"), "chat_template": str(plain)})
    with pytest.raises(ConfigError, match="does not mark assistant turns"):
        load_tokenizer(model)


# ---- Named variants of a template

CHAT_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARKED = sorted(CHAT_TEMPLATES.glob("*_training.jinja"))
TOOL = {"type": "function", "function": {"name": "find_rain", "description": "Rain", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("path", MARKED, ids=lambda path: path.stem.removesuffix("_training"))
def test_each_variant_renders_as_in_transformers(path: Path, config: Config) -> None:
    """The joined template gives what apply_chat_template gives for the variants, to the last line end."""
    text, other = path.read_text(encoding="utf-8"), (ROOT / "models/templates/chatml.jinja").read_text(encoding="utf-8")
    for variants in ({"default": text, "tool_use": text + "\n"}, {"default": other, "tool_use": f"  {text}"}):
        for tools in ((), (TOOL,)):
            native, joined = tokenizer_with(path), tokenizer_with(path)
            native.chat_template, joined.chat_template = variants, dict(variants)
            set_template(joined, config.model)
            assert rendered(joined, tools) == rendered(native, tools)


def rendered(tokenizer: Any, tools: tuple[Tool, ...]) -> str:
    """Return the rendered conversation, or the template's error."""
    try:
        return str(render(tokenizer, CONVERSATION, tools, tokenize=False))
    except ConfigError as error:
        return str(error)


def test_rows_with_tools_use_the_variant_for_tools(tmp_path: Path, config: Config) -> None:
    """TRL's marked version of each variant is used, in training, in prompts and in the published tokenizer."""
    found = tokenizer_with(CHAT_TEMPLATES / "qwen2_5.jinja")
    plain = (CHAT_TEMPLATES / "llama3.jinja").read_text(encoding="utf-8")
    found.chat_template, found.bos_token = (
        {"default": plain, "tool_use": found.chat_template, "rag": "{{ rag }}"},
        "<s>",
    )
    set_template(found, config.model)
    found.save_pretrained(tmp_path)
    for tokenizer in (found, load_tokenizer(config.model, tmp_path)):
        assert "<tools>" in tokenizer.decode(tokenize_prompt(tokenizer, CONVERSATION[:-1], [TOOL]))
        assert "<|start_header_id|>" in tokenizer.decode(tokenize_prompt(tokenizer, CONVERSATION[:-1]))
        assert tokenize(tokenizer, CONVERSATION, [TOOL]).supervised
        assert tokenize(tokenizer, CONVERSATION).supervised


def test_an_unmarked_variant_for_tools_rejects_them(config: Config) -> None:
    """Rows without tools don't need it; rows with tools would have no trained tokens, so the error says why."""
    found = tokenizer_with(CHAT_TEMPLATES / "qwen2_5.jinja")
    found.chat_template = {"default": found.chat_template, "tool_use": "{{ messages }} {{ tools }}"}
    set_template(found, config.model)
    assert tokenize(found, CONVERSATION).supervised
    with pytest.raises(ConfigError, match="the variant tool_use does not mark assistant turns"):
        tokenize(found, CONVERSATION, [TOOL])


def test_missing_base_is_a_one_line_error(config: Config) -> None:
    """A missing base is a user error without a traceback."""
    model = config.model.model_copy(update={"base": "models/nothing-here"})
    with pytest.raises(
        ConfigError,
        match=(
            r"^params.yaml: model.base: the tokenizer of models/nothing-here does not load: [^\n]+; "
            r"download it while connected"
        ),
    ):
        load_tokenizer(model)
