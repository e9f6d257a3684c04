"""The sections `model` and `adapter` of params.yaml: the frozen base model, and the weights trained on it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.config.kernels import find_kernel
from finetune.config.types import Count, PositiveInt, Revision, Section, Sha256, Text

Environment = Literal["cpu", "cuda", "apple"]
ALL_LINEAR = "all-linear"  # PEFT's spelling
IMPLEMENTATIONS = ("auto", "sdpa", "eager", "flash_attention_2")  # of transformers
NAME = re.compile(r"[\w.-]+")


def _implementation_or_kernel(value: str) -> str:
    kernel = find_kernel(value)
    if kernel is not None and kernel.revision is None:
        raise ValueError(f"{value} needs its commit, as {value}@ and 40 hex digits (./finetune pin writes it)")
    if kernel is None and value not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"{value!r} is neither {known} nor a kernel, like kernels-community/flash-attn2@COMMIT")
    return value


Attention = Annotated[str, AfterValidator(_implementation_or_kernel)]


class ModelConfig(Section):
    """The frozen base model and its number format in memory."""

    base: Text
    revision: Revision | None
    chat_template: Text | None  # a file in the repository that replaces the base's own
    pad_token: Text | None  # a token of the base's vocabulary that replaces the base's own
    add_tokens: tuple[Text, ...]  # new tokens, whose embeddings are trained
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["none", "nf4", "int8", "stored"]  # stored: as the base comes
    attention: Attention  # auto: flash_attention_2 if supported, else sdpa; or a kernel of the Hub

    @property
    def number_format(self) -> str:
        """How the base is held, for tables."""
        return self.dtype if self.quantization == "none" else self.quantization.upper()


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) and NAME.fullmatch(value) else value


def _compiles(value: Any) -> Any:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


# Ends of module paths, as a list or a single name; any other string is a regular expression for complete paths.
Modules = Annotated[tuple[Text, ...] | Text, BeforeValidator(_one_or_many), AfterValidator(_compiles)]


class StartConfig(Section):
    """An adapter to continue from: a folder, `out/adapter` of an experiment, or a repository of the Hub."""

    path: Text | None = None
    experiment: Text | None = None  # or a tag or commit of this repository
    hub: Text | None = None
    revision: Revision | None = None
    sha256: Sha256  # of its tensors: adapter_sha256 in its manifest and card

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.experiment, self.hub)) != 1:
            raise ValueError("set exactly one of path, experiment and hub")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub needs revision (40 hex digits), and the others do not have one")
        return self

    @property
    def source(self) -> str:
        """The place in words, for reports."""
        if self.hub is not None:
            return f"{self.hub} at {self.revision}"
        return f"experiment {self.experiment}" if self.experiment is not None else f"folder {self.path}"


class AdapterConfig(Section):
    """The LoRA weights, and what is trained beside them; keys have PEFT's names."""

    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[Modules, Field(min_length=1)]  # or all-linear
    exclude_modules: Modules
    target_parameters: tuple[Text, ...]  # weights of experts, e.g. mlp.experts.gate_up_proj
    layers_to_transform: Annotated[tuple[Count, ...], Field(min_length=1)] | None  # indices; null: all layers
    modules_to_save: tuple[Text, ...]  # trained completely, e.g. lm_head
    trainable_token_indices: tuple[Count, ...]  # ids whose embeddings are trained
    use_rslora: bool
    use_dora: bool
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"]
    start: StartConfig | None

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform has no effect on a regular expression; put the layers into it")
        if self.layers_to_transform is not None and self.target_parameters:
            raise ValueError("layers_to_transform has no effect on target_parameters; use null, or no parameters")
        if self.start is not None and self.init_lora_weights != "default":
            raise ValueError(f"init_lora_weights: {self.init_lora_weights} has no effect with start; use default")
        return self
