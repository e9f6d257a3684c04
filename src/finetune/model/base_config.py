"""The base's `config.json`: found without a network, and checked before anything is built from it.

It is searched in the base's folder, in the Hugging Face cache at the pinned revision, and in the metadata that this
repository contains (`models/architectures`). No code of a model is run.
"""

import json
from pathlib import Path
from typing import Any

from finetune.config.model import ModelConfig
from finetune.errors import BaseModelError
from finetune.model.language import find_language_model

FACTS = Path("models/architectures")  # <organization>/<name>/config.json
OTHER = "use a base that transformers supports, or fix that file"
AGAIN = "fix it or download it again"
SIZES = ("hidden_size", "num_hidden_layers")  # no default of a config class fits another model


def find_base_config(model: ModelConfig, root: Path) -> Any:
    """Return the transformers config of the base. Raise BaseModelError if no valid `config.json` is available.

    The config of a multimodal checkpoint is returned as it is; `language.py` finds the language model in it.
    """
    from transformers import AutoConfig, PreTrainedConfig

    # transformers writes infinite numbers as {"__float__": "Infinity"}
    content = PreTrainedConfig._decode_special_floats(read_facts(model, root))

    model_type = content.pop("model_type", None)
    known = class_names(model_type)
    if not known:
        raise unknown_class(model, f"has the model_type {model_type!r}, which is not a causal language model")
    named = content.get("architectures") or []
    unknown = [name for name in ([named] if isinstance(named, str) else named) if name not in known]
    if unknown:
        raise unknown_class(model, f"has the class {unknown[0]}, but {model_type} has {' and '.join(known)}")
    try:
        config = AutoConfig.for_model(model_type, **content)
        inner = config.get_text_config(decoder=True)
        if "tie_word_embeddings" not in content:  # the default of a multimodal class is not that of older checkpoints
            config.tie_word_embeddings = getattr(inner, "tie_word_embeddings", config.tie_word_embeddings)
        find_language_model(config)
    except Exception as error:  # the checks in transformers raise various classes
        raise unknown_class(model, f"is not one of {model_type}: {in_a_line(error)}") from None
    if missing := missing_sizes(content, config):
        raise unknown_class(model, f"lacks {missing}, and the default is another model's")
    return config


def class_names(model_type: Any) -> tuple[str, ...]:
    """Return the names of transformers' classes for this type that contain a language model; empty if unknown."""
    from transformers.models.auto import modeling_auto

    found: list[str] = []
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        known = mapping.get(model_type, ()) if isinstance(model_type, str) else ()
        found += [known] if isinstance(known, str) else known
    return tuple(dict.fromkeys(found))


def missing_sizes(content: dict[str, Any], config: Any) -> str | None:
    """Return the first size that a multimodal `config.json` must contain and does not; None if all are there."""
    inner = config.get_text_config(decoder=True)
    where = next((name for name in config.sub_configs if getattr(config, name) is inner), "")
    if not where:
        return None
    given = content.get(where) or content  # Qwen2.5-VL has the sizes at the top
    for name in SIZES:
        spelled = inner.attribute_map.get(name, name)
        if name not in given and spelled not in given:
            return f"{where}.{spelled}"
    return None


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


def in_a_line(error: Exception) -> str:
    """Return the text of an error on one line, shortened."""
    return " ".join(str(error).split())[:200]
