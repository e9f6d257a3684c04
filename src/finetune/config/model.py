"""The sections `model` and `adapter` of params.yaml: the frozen base model, and the weights trained on it."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.types import PositiveInt, Revision, Section, Text

Environment = Literal["cpu", "cuda", "apple"]


class ModelConfig(Section):
    """The frozen base model and its number format in memory."""

    base: Text
    revision: Revision | None
    chat_template: Text | None  # a file in the repository that replaces the base's own
    pad_token: Text | None  # a token of the base's vocabulary that replaces the base's own
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["none", "nf4"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]  # auto: flash_attention_2 if supported, else sdpa


class AdapterConfig(Section):
    """The LoRA weights; keys have PEFT's names."""

    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)]
    use_rslora: bool
    use_dora: bool
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16"]
