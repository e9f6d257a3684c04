"""Checkpoints of today's model classes, with random weights and a few layers, and the embedded tokenizer."""

from pathlib import Path
from typing import Any

from tests.builders.small_run import ROOT

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# The model types that are tested with all stages, and the names of the layers to adapt.
TEXT: dict[str, tuple[str, ...]] = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt_neox": ("query_key_value", "dense"),
    "gpt_oss": ATTENTION,
    "granite": LLAMA,
    "lfm2": ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj"),
    "olmo2": LLAMA,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": ATTENTION,
    "smollm3": LLAMA,
}
MULTIMODAL: dict[str, tuple[str, ...]] = {
    "gemma3": LLAMA,
    "gemma4": LLAMA,
    "llama4": ATTENTION,
    "mistral3": LLAMA,
    "qwen3_5": (*LLAMA, "in_proj_qkv", "out_proj"),
    "qwen3_5_moe": ATTENTION,
    "qwen3_vl": LLAMA,
}
# Defaults of transformers that are not those of published models.
KINDS_OF_LAYERS: dict[str, dict[str, Any]] = {
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
}


def small_checkpoint(kind: str, folder: Path) -> None:
    """Write a checkpoint of a model type, with its towers if it is multimodal."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    from finetune.model.language import find_language_model
    from finetune.model.shrink import shrink_config, shrink_tower

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny-base")
    config: Any = AutoConfig.for_model(kind, **KINDS_OF_LAYERS.get(kind, {}))
    small = shrink_config(config, tokenizer)
    if kind in MULTIMODAL and not find_language_model(config).has_towers:
        config.text_config, small = small, config
        if config.vision_config is not None:
            shrink_tower(config.vision_config)
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if kind in MULTIMODAL else AutoModelForCausalLM
    model = auto.from_config(small)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
