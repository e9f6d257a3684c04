"""Checkpoints of today's model classes, with random weights and a few layers, and the embedded tokenizer."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.config.params import Config, params_of, parse_config
from finetune.paths import Paths
from tests.builders.small_run import ROOT, params, workspace

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
KINDS = TEXT | MULTIMODAL
STAGES = ("prepare", "validate", "train", "evaluate", "decide")
# Defaults of transformers that are not those of published models.
KINDS_OF_LAYERS: dict[str, dict[str, Any]] = {
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
}


def small_checkpoint(kind: str, folder: Path, spare: int = 0) -> Any:
    """Write a checkpoint of a model type, with its towers if it is multimodal; return its tokenizer.

    The embeddings have `spare` rows that belong to no token.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    from finetune.model.language import find_language_model
    from finetune.model.shrink import shrink_config, shrink_tower

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny-base")
    config: Any = AutoConfig.for_model(kind, **KINDS_OF_LAYERS.get(kind, {}))
    small = shrink_config(config, tokenizer)
    small.get_text_config(decoder=True).vocab_size += spare
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
    return tokenizer


def run_stages(
    root: Path, kind: str, targets: tuple[str, ...], store: Callable[[Path], Any] | None = None, **more: Any
) -> tuple[Config, Paths]:
    """Run all stages on a small checkpoint, or on what `store` writes into the folder of the base."""
    changes = {
        "model__attention": "eager" if kind == "gpt_oss" else "sdpa",
        "adapter__target_modules": list(targets),
        "adapter__lora_dropout": 0.0,
        "train__num_train_epochs": 1,
        "train__learning_rate": 2e-3,
        "decide__criteria": [{"rule": "at_least", "metric": "exact_match", "group": "all", "threshold": 0.5}],
        **more,
    }
    _, paths = workspace(root, **changes)
    shutil.rmtree(root / "base")
    if store is None:
        small_checkpoint(kind, root / "base")
    else:
        store(root / "base")
    config = parse_config(params(**changes), "params.yaml")
    for name in STAGES:
        import_module(f"finetune.{name}.stage").run(params_of(name, config), paths)
    return config, paths
