"""The sections `model` and `adapter` of params.yaml: the frozen base model, and the weights trained on it."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.config.types import PositiveInt, Revision, Section, Text

Environment = Literal["cpu", "cuda", "apple"]
ALL_LINEAR = "all-linear"  # PEFT's spelling
HEAD = "lm_head"  # the loss head's name in most base models


class ModelConfig(Section):
    """The frozen base model and its number format in memory."""

    base: Text
    revision: Revision | None
    chat_template: Text | None  # a file in the repository that replaces the base's own
    pad_token: Text | None  # a token of the base's vocabulary that replaces the base's own
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["none", "nf4"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]  # auto: flash_attention_2 if supported, else sdpa


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class AdapterConfig(Section):
    """The LoRA weights; keys have PEFT's names."""

    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(_one_or_many)]  # or all-linear
    use_rslora: bool
    use_dora: bool
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"]

    def targets(self, linear_layers: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the layers to adapt; `all-linear` means these linear layers without the head."""
        if ALL_LINEAR not in self.target_modules:
            return self.target_modules
        others = (name for name in self.target_modules if name != ALL_LINEAR)
        return tuple(sorted({*linear_layers, *others} - {HEAD}))
