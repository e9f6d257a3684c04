"""The language model of a checkpoint, found from its config: text-only bases, and those with vision or audio towers.

The config of a multimodal checkpoint contains the config of its language model. If transformers has a class for it
(Gemma 3, Llama 4, Mistral 3, Qwen3.5), only the weights of that class are built and loaded. If not (Qwen3-VL), the
complete class is built, and its towers are removed.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# The decoder's and the head's names in files of multimodal checkpoints, and in a class for text alone.
IN_TEXT_CLASS = {
    r"^(model\.language_model|language_model\.model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


@dataclass(frozen=True)
class LanguageModel:
    """The configs of a language model and of the checkpoint that contains it, one object for a text-only base."""

    config: Any  # of the class that is built
    checkpoint: Any

    @property
    def text(self) -> Any:
        """The config with layers and widths."""
        return self.config.get_text_config(decoder=True)

    @property
    def has_towers(self) -> bool:
        """Whether the class that is built has parts for images or sound, which are removed."""
        return self.text is not self.config

    @property
    def is_part(self) -> bool:
        """Whether the class that is built is a part of the checkpoint's class."""
        return self.config is not self.checkpoint

    @property
    def auto_class(self) -> Any:
        """The class of transformers that chooses the model's class."""
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        return AutoModelForImageTextToText if self.has_towers else AutoModelForCausalLM

    @cached_property
    def place(self) -> "InCheckpoint | None":
        """Where the language model is in the checkpoint's class; None for a text-only base. Takes seconds if large."""
        if not (self.is_part or self.has_towers):
            return None
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            part, whole = build(self), AutoModelForImageTextToText.from_config(self.checkpoint)
        return InCheckpoint(decoder_path(part), decoder_path(whole), tuple(tower_paths(whole)))

    @property
    def key_mapping(self) -> dict[str, str] | None:
        """Regular expressions that turn names in the checkpoint's files into names of the class that is built."""
        return IN_TEXT_CLASS if self.is_part else None


def find_language_model(checkpoint: Any) -> LanguageModel:
    """Find the language model in a checkpoint's config. Raise ValueError if transformers has no class for it."""
    from transformers.models.auto import modeling_auto

    text = checkpoint.get_text_config(decoder=True)
    if text is not checkpoint and text.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return LanguageModel(_as_in_checkpoint(text, checkpoint), checkpoint)
    whole = LanguageModel(checkpoint, checkpoint)
    if type(checkpoint) not in whole.auto_class._model_mapping:
        raise ValueError(f"{checkpoint.model_type} contains no language model")
    return whole


def _as_in_checkpoint(text: Any, checkpoint: Any) -> Any:
    """Copy the text model's config, with what only the checkpoint's config says about it."""
    text = copy.deepcopy(text)
    text.tie_word_embeddings = checkpoint.tie_word_embeddings
    for name in ("dtype", "quantization_config"):
        if getattr(text, name, None) is None and getattr(checkpoint, name, None) is not None:
            setattr(text, name, getattr(checkpoint, name))
    return text


def supported_attention(language: LanguageModel) -> tuple[str, ...]:
    """Return the attention implementations of the class that is built, in transformers' spelling, the fastest first."""
    kind = language.auto_class._model_mapping[type(language.config)]
    flash = ("flash_attention_2",) * bool(kind._supports_flash_attn)
    return *flash, *("sdpa",) * bool(kind._supports_sdpa), "eager"


def build(language: LanguageModel, **options: Any) -> Any:
    """Build the language model with random weights, on the current default device."""
    return remove_towers(language, language.auto_class.from_config(language.config, trust_remote_code=False, **options))


def finish_loading(language: LanguageModel, model: Any) -> Any:
    """Reduce a loaded model to its language model, in place, with `language` as an attribute; return it.

    It then saves its weights under its own names, where transformers (5.23) would reverse the key mapping and give a
    text model the names of its checkpoint. Whether the head is tied is what the weights are, as in transformers.
    """
    if language.is_part:
        kept = [one for one in model._weight_conversions or [] if not _sources(one) & IN_TEXT_CLASS.keys()]
        model._weight_conversions = kept
    if (head := model.get_output_embeddings()) is not None:
        tied = head.weight is model.get_input_embeddings().weight
        language.config.tie_word_embeddings = model.config.tie_word_embeddings = tied
    model.language = language
    return remove_towers(language, model)


def _sources(conversion: Any) -> set[str]:
    patterns = conversion._original_source_patterns
    return {patterns} if isinstance(patterns, str) else set(patterns)


def is_linear(module: Any) -> bool:
    """Return whether a module is a linear layer that an adapter can be added to; the routers of experts give tuples."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D) and "Router" not in type(module).__name__


def remove_towers(language: LanguageModel, model: Any) -> Any:
    """Remove the parts of a complete class that text does not use, in place; return the model."""
    if model.base_model is model:  # Llama 4 names another attribute, but TRL's loss needs the decoder
        model.base_model_prefix = decoder_path(model)
    if language.has_towers:
        for path in tower_paths(model):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, None)
    return model


def make_room(model: Any, tokens: Sequence[int]) -> None:
    """Enlarge the embeddings and the head of a model, in place, if these new tokens have no spare rows."""
    if tokens and max(tokens) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)


def tower_paths(model: Any) -> list[str]:
    """Return the paths of the modules beside the decoder and the head in a complete class, e.g. `model.visual`."""
    decoder, head = decoder_path(model), model.get_output_embeddings()
    return [path for path, module in _outermost(model, decoder) if module is not head]


def _outermost(model: Any, decoder: str) -> Iterator[tuple[str, Any]]:
    """Yield the largest modules that do not contain the decoder, in order."""
    parts = decoder.split(".")
    for depth in range(len(parts)):
        parent = ".".join(parts[:depth])
        for name, module in model.get_submodule(parent).named_children():
            if name != parts[depth]:
                yield f"{parent}.{name}".removeprefix("."), module


def decoder_path(model: Any) -> str:
    """Return the path of the decoder, the module with the input embeddings: `model`, or `model.language_model`."""
    return embeddings_path(model).rpartition(".")[0]


def embeddings_path(model: Any) -> str:
    """Return the path of the input embeddings."""
    embeddings = model.get_input_embeddings()
    path: str = next(path for path, module in model.named_modules() if module is embeddings)
    return path


@dataclass(frozen=True)
class InCheckpoint:
    """Where the language model is in the checkpoint's class, which vLLM and transformers load."""

    here: str  # the decoder's path in the class that is built
    there: str  # its path in the checkpoint's class
    towers: tuple[str, ...]  # the paths of the other parts there

    @property
    def excluded(self) -> str | None:
        """A regular expression for the modules of the towers, for PEFT's `exclude_modules`; None without towers."""
        return rf"(?:{'|'.join(map(re.escape, self.towers))})(?:\..*)?" if self.towers else None

    @property
    def key_mapping(self) -> dict[str, str]:
        """The regular expression that turns names of the checkpoint's class into names of the class that is built."""
        return {rf"^{re.escape(self.there)}\.": f"{self.here}."}

    def to_checkpoint(self, path: str) -> str:
        """Return the path in the checkpoint's class of a module of the class that is built."""
        return f"{self.there}.{path.removeprefix(f'{self.here}.')}" if path.startswith(f"{self.here}.") else path

    def from_checkpoint(self, path: str) -> str:
        """Return the path in the class that is built of a module of the checkpoint's class."""
        return f"{self.here}.{path.removeprefix(f'{self.there}.')}" if path.startswith(f"{self.there}.") else path
