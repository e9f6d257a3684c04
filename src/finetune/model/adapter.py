"""The LoRA adapter: put on a base, published in plain PEFT form, loaded again."""

import json
from pathlib import Path
from typing import Any

from finetune.artifacts import sha256_tensors
from finetune.config import AdapterConfig
from finetune.errors import ConfigError, DataError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def lora_config(adapter: AdapterConfig) -> Any:
    """PEFT's LoraConfig for a causal language model."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(adapter.target_modules),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        bias="none",
    )


def add_adapter(base: Any, adapter: AdapterConfig) -> Any:
    """The base with a fresh adapter, the only part with gradients; ConfigError where a target module hits nothing."""
    from peft import get_peft_model

    leaves = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    missing = [name for name in adapter.target_modules if name not in leaves]
    if missing:
        raise ConfigError(
            f"params.yaml: adapter.target_modules: {', '.join(missing)} match nothing in "
            f"{type(base).__name__}; its modules are {', '.join(sorted(name for name in leaves if 'proj' in name))}"
        )
    return keep_float32(get_peft_model(base, lora_config(adapter)))


def keep_float32(model: Any) -> Any:
    """Cast every trainable parameter to float32.

    TRL turns the adapter of a quantized base into bfloat16, and PEFT's loading turns it back: a resumed run would be
    another run. In float32 throughout, both give the same bits, at the same speed.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    return model


def count_parameters(model: Any) -> dict[str, int]:
    """Trainable and total parameters."""
    from peft import PeftModel

    assert isinstance(model, PeftModel)
    trainable, total = model.get_nb_trainable_parameters()
    return {"trainable": trainable, "total": total}


def save_adapter(model: Any, base_name: str, folder: Path) -> str:
    """Write the adapter in plain PEFT form and give its canonical hash.

    PEFT writes the base's local path and sets in random order; the published config names the base as params.yaml does,
    with sorted keys and lists, so that the same run writes the same bytes.
    """
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; decide writes the real one
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes it for the owner alone
    path = folder / CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base_name
    content["target_modules"] = sorted(content["target_modules"])
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sha256_tensors(folder / WEIGHTS)


def load_adapter(base: Any, folder: Path) -> Any:
    """The base with a published adapter on it, for inference; DataError where it does not fit."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, str(folder), is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise DataError(f"{folder}: does not fit the base: {first}") from None
