"""The mask: exactly the assistant's text and its end token are trained on."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.model.tokens import IGNORED, load_tokenizer, tokenize, tokenize_prompt
from finetune.records.examples import Message
from tests.builders.small_run import ROOT

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
