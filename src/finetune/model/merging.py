"""Base and adapter as one plain model in 16 bit: what `finetune merge` publishes and evaluate asks where that ships."""

import shutil
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.console import gigabytes
from finetune.errors import DataError, MachineError


def sixteen_bit(model: ModelConfig) -> ModelConfig:
    """The base unquantized in 16 bit: in float16 where the run was, else in bfloat16."""
    dtype = "float16" if model.dtype == "float16" else "bfloat16"
    return model.model_copy(update={"dtype": dtype, "quantization": "none"})


def untie(base: Any, manifest: dict[str, Any]) -> Any:
    """The base with a loss head of its own, where it shares one with embeddings that have an adapter."""
    import torch

    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is not None and head.weight is embeddings.weight:
        names = [name.rsplit(".", 1)[-1] for name, module in base.named_modules() if module is embeddings]
        if set(names) & set(manifest["params"]["adapter"]["target_modules"]):
            head.weight = torch.nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
            base.config.tie_word_embeddings = False
    return base


def merge(model: Any) -> Any:
    """The base with the adapter's sum in its weights; DataError where that is not finite."""
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's own check
        first = str(error).strip().split("\n", 1)[0]
        raise DataError("out/adapter", f"can't be merged: {first}", "train again with a lower learning rate") from None


def save_model(model: Any, folder: Path) -> None:
    """Write weights (safetensors) and configs; MachineError where the disk has no room for them."""
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
        settings.do_sample = True  # settings for sampling with sampling switched off: transformers refuses to save them
    model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes it for the owner alone
