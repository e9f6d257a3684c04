"""Base and adapter as one plain 16-bit model: `finetune merge` publishes it, and evaluate runs it if it is deployed."""

import shutil
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.console import gigabytes
from finetune.errors import ConfigError, DataError, MachineError
from finetune.model.adapter import adapts_embeddings


def sixteen_bit(model: ModelConfig) -> ModelConfig:
    """Return the unquantized base in 16 bits: in float16 if the run was, else in bfloat16."""
    dtype = "float16" if model.dtype == "float16" else "bfloat16"
    return model.model_copy(update={"dtype": dtype, "quantization": "none"})


def as_folder(folder: Path) -> dict[str, Any]:
    """Return what changes in the section `model` for a merged model, which contains added tokens already."""
    return {"base": str(folder), "revision": None, "add_tokens": ()}


def untie(base: Any, adapter: Path) -> Any:
    """Give the base a separate loss head if it shares one with embeddings that have an adapter."""
    import torch

    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is not None and head.weight is embeddings.weight and adapts_embeddings(base, adapter):
        head.weight = torch.nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
    return base


def merge(model: Any) -> Any:
    """Add the adapter to the base's weights. Raise DataError if the sum is not finite.

    Raises ConfigError if transformers has no class for the language model alone: the result would lack its towers.
    """
    language = getattr(model, "language", None)
    if language is not None and language.has_towers:
        message = f"{type(model.get_base_model()).__name__} can't be merged without its other parts"
        raise ConfigError("params.yaml: model.base", message, "deploy the adapter with its base")
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's own check
        first = str(error).strip().split("\n", 1)[0]
        raise DataError("out/adapter", f"can't be merged: {first}", "train again with a lower learning rate") from None


def save_model(model: Any, folder: Path) -> None:
    """Write weights (safetensors) and configs. Raise MachineError if the disk is full."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{folder.parent}",
            f"{gigabytes(needed)} are needed, but only {gigabytes(free)} are free",
            "free disk space",
        )
    settings = model.generation_config
    if not settings.do_sample and {settings.temperature, settings.top_p} - {None, 1.0}:
        settings.do_sample = True  # transformers refuses to save sampling settings while sampling is off
    model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes it readable only for the owner
