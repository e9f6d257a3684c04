"""The structure of a base model (layers, widths, parameters), from its config alone, before it is loaded."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from finetune.errors import BaseModelError
from finetune.model.base_config import OTHER, in_a_line
from finetune.model.language import LanguageModel, build, find_language_model, is_linear, supported_attention
from finetune.model.quantization import find_method

BOUNDLESS = 2**20  # positions of a base whose config sets no limit, e.g. with ALiBi
EXPERT_DIMENSIONS = 3  # of the weights of all experts of a layer, in transformers 5


@dataclass(frozen=True)
class Layers:
    """Weights of the same name and shape; the paths are those of the class that is built."""

    name: str
    inputs: int
    outputs: int
    paths: tuple[str, ...]
    experts: int = 1

    @property
    def count(self) -> int:
        """The number of these weights."""
        return len(self.paths)

    @property
    def parameters(self) -> int:
        """The number of their parameters, without biases."""
        return self.inputs * self.outputs * self.experts * self.count


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
    linears: tuple[Layers, ...]  # without the head
    experts: tuple[Layers, ...] = ()  # their names end with the parameter: `mlp.experts.down_proj`
    active_experts: int = 1  # of each layer, for one token
    routers: bool = False  # whether the class has a load-balancing loss
    embeddings: str = "model.embed_tokens"  # the path of the input embeddings
    head: str = "lm_head"
    sizes: tuple[tuple[str, int], ...] = ()  # every module with parameters and how many, e.g. ("model.norm", 576)
    quantized: tuple[str, int] | None = None  # the method and bits with which the checkpoint is stored
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
        return describe(language, model)
    except Exception as error:  # a width of zero, an unknown activation, no attention: various classes
        what = f"no decoder can be built from its {type(config).__name__} ({type(error).__name__}: {in_a_line(error)})"
        raise BaseModelError("base-class-unknown", "base", what, OTHER) from None


def describe(language: LanguageModel, model: Any) -> Architecture:
    """Count the parts of a model of this class, with or without weights."""
    text, head, embeddings = language.text, model.get_output_embeddings(), model.get_input_embeddings()
    linears, experts = defaultdict(list), defaultdict(list)
    paths = {id(module): path for path, module in model.named_modules()}
    for path, module in model.named_modules():
        if module is head:
            continue
        if is_linear(module):
            linears[path.rsplit(".", 1)[-1], *input_and_output(module)].append(path)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == EXPERT_DIMENSIONS and "experts" in path:
                key = f"{path.split('.', _depth(path))[-1]}.{name}", *parameter.shape
                experts[key].append(f"{path}.{name}")
    heads, active = getattr(text, "num_attention_heads", None) or 0, getattr(text, "num_experts_per_tok", None) or 1
    return Architecture(
        model_type=language.config.model_type,
        class_name=type(model).__name__,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=_width(text, active if experts else 0),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=_of_first_layer(text, "head_dim") or text.hidden_size // max(heads, 1),
        vocabulary=text.vocab_size,
        tied=bool(model.config.tie_word_embeddings),
        max_positions=getattr(text, "max_position_embeddings", None) or BOUNDLESS,
        stored=str(language.config.dtype or "float32").removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linears=tuple(Layers(*shape, tuple(found)) for shape, found in linears.items()),
        experts=tuple(
            Layers(name, rows, columns, tuple(found), many) for (name, many, rows, columns), found in experts.items()
        ),
        active_experts=active,
        routers=hasattr(text, "output_router_logits"),
        embeddings=paths[id(embeddings)],
        head=paths.get(id(head), ""),
        sizes=tuple(
            (path, size)
            for path, module in model.named_modules()
            if path and (size := sum(parameter.numel() for parameter in module.parameters()))
        ),
        quantized=find_method(language.config),
        attention=supported_attention(language),
    )


def _width(text: Any, experts: int) -> int:
    """Return the width of the MLP: of a dense layer, or of the active experts together, whichever is larger."""
    dense = int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    return max(dense, experts * int(getattr(text, "moe_intermediate_size", None) or 0))


def _depth(path: str) -> int:
    """Return how many names of a path lead to a decoder layer: 3 in `model.layers.0.mlp.experts`."""
    parts = path.split(".")
    return next((at + 1 for at, part in enumerate(parts) if part.isdigit()), 0)


def input_and_output(layer: Any) -> tuple[int, int]:
    """Return the widths of a linear layer, quantized or not; GPT-2's layers have transposed weights."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    inputs, outputs = layer.weight.shape
    return inputs, outputs


def _of_first_layer(text: Any, name: str) -> Any:
    """Return a value of a config that may vary between layers (Gemma 4); None if there is none."""
    try:
        return getattr(text, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError
        return getattr(text.per_layer_config[0], name, None)
