"""The structure of a base model (layers, widths, parameters), from its config alone, before it is loaded."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from finetune.config.model import AdapterConfig
from finetune.errors import BaseModelError
from finetune.model.base_config import OTHER, in_a_line
from finetune.model.language import LanguageModel, build, find_language_model, is_linear, supported_attention

BOUNDLESS = 2**20  # positions of a base whose config sets no limit, e.g. with ALiBi


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
    attention: tuple[str, ...] = ("flash_attention_2", "sdpa", "eager")  # implementations of the class


def measure_architecture(config: Any) -> Architecture:
    """Build the model on torch's meta device, which uses no memory, and count; takes seconds even for a large one.

    Raises BaseModelError if the config does not describe a decoder-only transformer.
    """
    import torch

    try:
        language = find_language_model(config)
        with torch.device("meta"):
            model = build(language)
        return _count_parts(language, model)
    except Exception as error:  # a width of zero, an unknown activation, no attention: various classes
        what = f"no decoder can be built from its {type(config).__name__} ({type(error).__name__}: {in_a_line(error)})"
        raise BaseModelError("base-class-unknown", "base", what, OTHER) from None


def _count_parts(language: LanguageModel, model: Any) -> Architecture:
    shapes = Counter(
        (name.rsplit(".", 1)[-1], *input_and_output(module))
        for name, module in model.named_modules()
        if is_linear(module)
    )
    text = language.text
    heads = text.num_attention_heads
    return Architecture(
        model_type=language.config.model_type,
        class_name=type(model).__name__,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=_of_first_layer(text, "head_dim") or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        tied=bool(model.config.tie_word_embeddings),
        max_positions=getattr(text, "max_position_embeddings", None) or BOUNDLESS,
        stored=str(language.config.dtype or "float32").removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linears=tuple(LinearLayers(name, rows, columns, count) for (name, rows, columns), count in shapes.items()),
        attention=supported_attention(language),
    )


def input_and_output(layer: Any) -> tuple[int, int]:
    """Return the widths of a linear layer; GPT-2's layers have transposed weights."""
    rows, columns = layer.weight.shape
    return (columns, rows) if hasattr(layer, "in_features") else (rows, columns)


def _of_first_layer(text: Any, name: str) -> Any:
    """Return a value of a config that may vary between layers (Gemma 4); None if there is none."""
    try:
        return getattr(text, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError
        return getattr(text.per_layer_config[0], name, None)


def trainable_parameters(architecture: Architecture, adapter: AdapterConfig) -> int:
    """Count the parameters that PEFT trains: two matrices of rank r per target layer; for DoRA, also magnitudes."""
    count, targets = 0, adapter.targets(linear.name for linear in architecture.linears)
    for linear in architecture.linears:
        if linear.name in targets:
            magnitudes = linear.outputs if adapter.use_dora else 0
            count += (adapter.r * (linear.inputs + linear.outputs) + magnitudes) * linear.count
    if "embed_tokens" in targets:
        magnitudes = architecture.hidden if adapter.use_dora else 0
        count += adapter.r * (architecture.vocabulary + architecture.hidden) + magnitudes
    return count
