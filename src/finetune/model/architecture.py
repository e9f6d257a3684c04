"""The structure of a base model (layers, widths, parameters), from `config.json` alone, before it is loaded.

`config.json` is searched in the base's folder, in the Hugging Face cache at the pinned revision, and in the metadata
that this repository contains (`models/architectures`). No network is used, and no code of a model is run.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.model import AdapterConfig, ModelConfig
from finetune.errors import BaseModelError

FACTS = Path("models/architectures")  # <organization>/<name>/config.json
HEAD = "lm_head"  # the loss head, which bitsandbytes leaves unquantized
BOUNDLESS = 2**20  # positions of a base whose config sets no limit, e.g. with ALiBi
OTHER = "use a base that transformers supports, or fix that file"
AGAIN = "fix it or download it again"


@dataclass(frozen=True)
class LinearLayers:
    """All linear layers of one name, e.g. `q_proj`."""

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def parameters(self) -> int:
        """The number of their weights, without biases."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a decoder-only language model that planning needs."""

    model_type: str
    class_name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # loss head and input embeddings share one matrix
    max_positions: int
    parameters: int
    stored: str  # the dtype of the files, according to config.json
    linears: tuple[LinearLayers, ...]


def find_architecture(model: ModelConfig, root: Path) -> Any:
    """Return the transformers config of the base. Raise BaseModelError if no valid `config.json` is available."""
    content = read_facts(model, root)
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = content.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unknown_class(model, f"has the model_type {model_type!r}, which is not a causal language model")
    known, named = as_names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]), content.get("architectures") or []
    unknown = [name for name in ([named] if isinstance(named, str) else named) if name not in known]
    if unknown:
        raise unknown_class(model, f"has the class {unknown[0]}, but {model_type} has {' and '.join(known)}")
    try:
        return AutoConfig.for_model(model_type, **content)
    except Exception as error:  # the checks in transformers raise various classes
        raise unknown_class(model, f"is not one of {model_type}: {_in_a_line(error)}") from None


def as_names(known: Any) -> tuple[str, ...]:
    """Return the class names of a model type, which may be one or several."""
    return (known,) if isinstance(known, str) else tuple(known)


def read_facts(model: ModelConfig, root: Path) -> dict[str, Any]:
    """Read the first `config.json` found: in the base's folder, in the cache, in this repository's metadata."""
    path = find_config_file(model, root)
    if path is None:
        what = f"no config.json in the folder {model.base}, in the Hugging Face cache at this revision, or in "
        what, fix = f"{model.base}: {what}{FACTS / model.base}", "download the base, or put its config.json there"
        raise BaseModelError("base-missing", "base", what, fix)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        what = f"{model.base}: {path} can't be read as JSON ({error})"
        raise BaseModelError("base-incomplete", "base", what, AGAIN) from None
    if not isinstance(content, dict):
        raise BaseModelError("base-incomplete", "base", f"{model.base}: {path} is not a JSON object", AGAIN)
    return content


def find_config_file(model: ModelConfig, root: Path) -> Path | None:
    """Return the path of the base's `config.json`, or None."""
    local = root / model.base / "config.json"  # an absolute model.base is unchanged
    if local.is_file():
        return local
    if model.revision is not None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(model.base, "config.json", revision=model.revision)
        except HFValidationError:  # a path, which is not a name on the Hub
            cached = None
        if isinstance(cached, str):
            return Path(cached)
    shipped = root / FACTS / model.base / "config.json"
    return shipped if shipped.is_file() else None


def unknown_class(model: ModelConfig, what: str) -> BaseModelError:
    """Build the error for a `config.json` that no model can be built from."""
    return BaseModelError("base-class-unknown", "base", f"{model.base}: its config.json {what}", OTHER)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def measure_architecture(config: Any) -> Architecture:
    """Build the model on torch's meta device, which uses no memory, and count; takes seconds even for a large one.

    Raises BaseModelError if the config does not describe a decoder-only transformer.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return _count_parts(config, model)
    except Exception as error:  # a width of zero, an unknown activation, no attention: various classes
        what = f"no decoder can be built from its {type(config).__name__} ({type(error).__name__}: {_in_a_line(error)})"
        raise BaseModelError("base-class-unknown", "base", what, OTHER) from None


def _count_parts(config: Any, model: Any) -> Architecture:
    import torch

    shapes = Counter(
        (name.rsplit(".", 1)[-1], module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    text = config.get_text_config()
    heads = text.num_attention_heads
    return Architecture(
        model_type=config.model_type,
        class_name=type(model).__name__,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        tied=bool(model.config.tie_word_embeddings),
        max_positions=getattr(text, "max_position_embeddings", None) or BOUNDLESS,
        stored=str(config.dtype or "float32").removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linears=tuple(LinearLayers(*shape, count) for shape, count in shapes.items()),
    )


def trainable_parameters(architecture: Architecture, adapter: AdapterConfig) -> int:
    """Count the parameters that PEFT trains: two matrices of rank r per target layer; for DoRA, also magnitudes."""
    count = 0
    for linear in architecture.linears:
        if linear.name in adapter.target_modules:
            magnitudes = linear.outputs if adapter.use_dora else 0
            count += (adapter.r * (linear.inputs + linear.outputs) + magnitudes) * linear.count
    if "embed_tokens" in adapter.target_modules:
        magnitudes = architecture.hidden if adapter.use_dora else 0
        count += adapter.r * (architecture.vocabulary + architecture.hidden) + magnitudes
    return count
