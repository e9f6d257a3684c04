"""A base model of the same architecture with random weights, small enough to train on any laptop in seconds.

Layers and widths are reduced; the characteristics of the architecture are kept: its classes, its biases, norms and
activations, grouped attention, rotary embeddings, tied or untied head. Tokenizer and template are the real ones if
available, else the embedded tokenizer with the template's marks added.
"""

import copy
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.errors import BaseModelError
from finetune.model.tokens import load_tokenizer, render, set_template, template_marks
from finetune.records.examples import Message

EMBEDDED = Path("models/tiny-base")
LAYERS, HIDDEN, INTERMEDIATE, HEADS = 2, 128, 256, 4  # multiples required by nf4 on a CPU (64 in, 32 out)


def shrink_config(config: Any, tokenizer: Any, layers: int = LAYERS) -> Any:
    """Return the transformers config of the small base, with the minimum width and the given depth."""
    small = copy.deepcopy(config)
    heads = config.num_attention_heads
    shared = heads // (getattr(config, "num_key_value_heads", None) or heads)  # query heads per key head
    cut = {
        "num_hidden_layers": layers,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": max(HEADS // shared, 1),
        "head_dim": HIDDEN // HEADS,
        "vocab_size": len(tokenizer),
        "max_window_layers": layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in cut.items():
        if getattr(config, name, None) is not None or name.endswith("token_id"):
            setattr(small, name, value)
    if getattr(config, "layer_types", None):
        small.layer_types = list(config.layer_types)[:layers]
    return small


def build_small_base(config: Any, tokenizer: Any, folder: Path, seed: int, layers: int = LAYERS) -> Any:
    """Write the small base with random weights and its tokenizer into a folder; return its transformers config.

    Raises BaseModelError if the architecture cannot be reduced in this way.
    """
    import torch
    from transformers import AutoModelForCausalLM

    small = shrink_config(config, tokenizer, layers)
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(small, trust_remote_code=False)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        what = f"{type(config).__name__} can't be cut to {layers} layers: {str(error).splitlines()[0]}"
        raise BaseModelError(
            "base-class-unknown", "base", what, "rehearse with a base of another architecture"
        ) from None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return small


def rehearsal_tokenizer(model: ModelConfig, root: Path) -> tuple[Any, bool]:
    """Return the base's own tokenizer and True; if it is not available, a substitute and False.

    The substitute is the embedded tokenizer with this recipe's template: the template's marks and the padding token
    become separate tokens, and the mark that ends an answer becomes the end token, as in the real one.
    """
    try:
        return load_tokenizer(model, fetch=False), True
    except BaseModelError as error:
        if error.problem.code != "base-missing":
            raise
    stand_in = model.model_copy(update={"base": str(root / EMBEDDED), "chat_template": None, "pad_token": None})
    tokenizer = load_tokenizer(stand_in)
    if model.chat_template is not None:
        set_template(tokenizer, model)
        tokenizer.add_tokens(template_marks(tokenizer), special_tokens=True)
        if end := _end_mark(tokenizer):
            tokenizer.eos_token = end
    if model.pad_token is not None:
        tokenizer.add_tokens([model.pad_token], special_tokens=True)
        tokenizer.pad_token = model.pad_token
    return tokenizer, False


def _end_mark(tokenizer: Any) -> str | None:
    """Return the control token that ends an answer, if the template has a special one."""
    turns = [Message("user", "asked"), Message("assistant", "answered")]
    rendered = render(tokenizer, turns, (), tokenize=False)
    after = rendered.rsplit("answered", 1)[-1].strip()
    return after if after in tokenizer.get_added_vocab() else None
