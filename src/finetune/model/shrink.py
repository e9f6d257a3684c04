"""A base model of the same architecture with random weights, small enough to train on any laptop in seconds.

Layers and widths are reduced; the characteristics of the architecture are kept: its classes, its biases, norms and
activations, grouped attention, rotary embeddings, tied or untied head. Tokenizer and template are the real ones if
available, else the embedded tokenizer with the template's marks added.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.errors import BaseModelError
from finetune.model.language import find_language_model
from finetune.model.quantization import forget_quantization
from finetune.model.tokens import load_tokenizer, render, set_template, template_marks
from finetune.records.examples import Message

EMBEDDED = Path("models/tiny-base")
LAYERS, HIDDEN, INTERMEDIATE, HEADS = 2, 128, 256, 4  # multiples required by nf4 on a CPU (64 in, 32 out)
HEAD_DIM = HIDDEN // HEADS
EXPERTS = 4
# Sizes that only some architectures have: mixtures of experts, linear attention, embeddings of single layers.
OTHER_SIZES = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), EXPERTS),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), INTERMEDIATE // 2),
    "intermediate_size_mlp": INTERMEDIATE,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 32),  # also the width of a layer of gates
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), HEAD_DIM),
    "mamba_n_heads": 2 * HIDDEN // HEAD_DIM,
    "mamba_d_head": HEAD_DIM,
    "mamba_d_state": HEAD_DIM,
    "attention_hidden_size": HIDDEN,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 64,
}


def shrink_config(config: Any, tokenizer: Any, layers: int = LAYERS) -> Any:
    """Return the transformers config of the small base, with the minimum width and the given depth.

    Of a multimodal checkpoint, it is the config of its language model if there is a class for that alone, and
    otherwise the config of the checkpoint with towers of one layer.
    """
    language = find_language_model(copy.deepcopy(config))
    text = language.text
    forget_quantization(text, language.config)
    content = text.to_dict()
    if content.pop("per_layer_config", None) is not None:  # widths of single layers (Gemma 4)
        content["global_head_dim"] = HEAD_DIM
    kept = kinds_of_layers(content.get("layer_types"), layers)
    heads = getattr(text, "num_attention_heads", None) or 1  # Mamba has none
    shared = heads // (getattr(text, "num_key_value_heads", None) or heads)  # query heads per key head
    cut = {
        "num_hidden_layers": len(kept),
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": max(HEADS // shared, 1),
        "head_dim": HEAD_DIM,
        "vocab_size": len(tokenizer),
        "vocab_size_per_layer_input": len(tokenizer),
        "max_window_layers": len(kept),
        **OTHER_SIZES,
        "num_experts_per_tok": min(content.get("num_experts_per_tok") or 1, 2),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in cut.items():
        spelled = text.attribute_map.get(name, name)
        if content.get(spelled) is not None or name.endswith("token_id"):
            content[spelled] = value
    if not hasattr(text, "num_attention_heads") and content.get("num_heads"):  # Mamba 2
        content["num_heads"] = 2 * HIDDEN // HEAD_DIM
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if content.get(name):
            content[name] = [content[name][at] for at in kept]
    if content.get("moe_layers"):
        content["moe_layers"] = [at for at, whole in enumerate(kept) if whole in content["moe_layers"]]
    if (content.get("rope_parameters") or {}).get("mrope_section"):  # of half a head: time, height and width
        content["rope_parameters"]["mrope_section"] = [HEAD_DIM // 4, HEAD_DIM // 8, HEAD_DIM // 8]
    small = type(text).from_dict(content)
    if not language.has_towers:
        return small
    language.config.text_config = small
    shrink_tower(language.config.vision_config)
    return language.config


def kinds_of_layers(kinds: Sequence[str] | None, layers: int) -> list[int]:
    """Return the indices of the layers to keep: the first ones, and more until each kind is among them."""
    kept = list(range(layers))
    for kind in dict.fromkeys(kinds or ()):
        at = list(kinds or ()).index(kind)
        if at not in kept:
            kept.append(at)
    return kept


def shrink_tower(vision: Any) -> None:
    """Reduce a tower for images to one layer that gives embeddings of the small base's width, in place."""
    for name, value in {"depth": 1, "num_hidden_layers": 1, "out_hidden_size": HIDDEN}.items():
        if getattr(vision, name, None) is not None:
            setattr(vision, name, value)
    if getattr(vision, "deepstack_visual_indexes", None):
        vision.deepstack_visual_indexes = [0]
    if getattr(vision, "fullatt_block_indexes", None):
        vision.fullatt_block_indexes = [0]


def build_small_base(config: Any, tokenizer: Any, folder: Path, seed: int, layers: int = LAYERS) -> Any:
    """Write the small base with random weights and its tokenizer into a folder; return its transformers config.

    Raises BaseModelError if the architecture cannot be reduced in this way.
    """
    import torch

    small = shrink_config(config, tokenizer, layers)
    torch.manual_seed(seed)
    try:
        model = find_language_model(small).auto_class.from_config(small, trust_remote_code=False)
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
    model = model.model_copy(update={"add_tokens": ()})  # each stage adds them
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
