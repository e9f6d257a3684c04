"""Load a base's weights into its class, and compare their names and shapes with what the config says."""

from typing import Any

import torch

from finetune.config.model import ModelConfig
from finetune.model.language import LanguageModel, decoder_path


def load_weights(language: LanguageModel, model: ModelConfig, device: str, **options: Any) -> tuple[Any, str | None]:
    """Return the model, and how its files differ from its config, or None. On the device `meta`, no memory is used.

    Transformers gives missing weights random values and leaves out the others, with a warning only. Parts beside the
    decoder's layers may be left out: towers, and layers for other purposes.
    """
    base, loaded = language.auto_class.from_pretrained(
        model.base,
        revision=model.revision,
        config=language.config,
        key_mapping=language.key_mapping,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported below
        dtype=getattr(torch, model.dtype),
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    return base, _difference(base, loaded)


def _difference(base: Any, loaded: dict[str, Any]) -> str | None:
    left_out = sorted(loaded["unexpected_keys"])
    if missing := sorted(loaded["missing_keys"]):
        instead = f"; its files have {left_out[0]}" if left_out else ""
        return f"no weights for {missing[0]} ({len(missing)} such){instead}"
    if mismatched := sorted(loaded["mismatched_keys"]):
        name, found, expected = mismatched[0]
        shapes = (" x ".join(map(str, shape)) for shape in (found, expected))
        return f"weights of {next(shapes)} for {name}, which is {next(shapes)} in its config.json"
    prefix = f"{layers_path(base)}."
    if extra := [name for name in left_out if name.startswith(prefix)]:
        return f"weights for {extra[0]} ({len(extra)} such), which its config.json does not have"
    return None


def layers_path(base: Any) -> str:
    """Return the path of the list of the decoder's layers, e.g. `model.layers`."""
    decoder, count = decoder_path(base), base.config.get_text_config(decoder=True).num_hidden_layers
    lists = (
        name
        for name, module in base.get_submodule(decoder).named_children()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    )
    return f"{decoder}.{next(lists, 'layers')}"
