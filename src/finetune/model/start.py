"""Continue from an adapter: check that it fits the run completely, and load it in place of the initialization."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.config.model import AdapterConfig, ModelConfig
from finetune.errors import DataError, Problem
from finetune.files.hashing import sha256_tensors
from finetune.model.adapter import CONFIG, WEIGHTS, rename_tensor
from finetune.model.architecture import describe
from finetune.model.language import LanguageModel, build, make_room
from finetune.model.targets import lora_config, with_new_tokens

PLACE = "params.yaml: adapter.start"
FILE = "start.safetensors"  # in data/validated
Shapes = Mapping[str, tuple[int, ...]]


def _unfit(message: str, remedy: str) -> Problem:
    return Problem("start-unfit", PLACE, message, remedy)


def find_start_problem(
    folder: Path, model: ModelConfig, adapter: AdapterConfig, language: LanguageModel, new_tokens: Sequence[int]
) -> Problem | None:
    """Return why training can't continue from the adapter in a folder; None if every tensor has its place."""
    from peft import PeftConfig
    from safetensors import SafetensorError, safe_open

    assert adapter.start is not None
    try:
        if (actual := sha256_tensors(folder / WEIGHTS)) != adapter.start.sha256:
            return _unfit(f"its tensors have the hash {actual}", "write that hash if this is the right adapter")
        with safe_open(folder / WEIGHTS, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (OSError, SafetensorError, DataError, ValueError, TypeError) as error:
        first = str(error).strip().split("\n", 1)[0]
        return _unfit(f"has no readable {WEIGHTS} and {CONFIG}: {first}", "use a complete adapter in PEFT's form")
    if config.peft_type != "LORA" or config.alpha_pattern or config.rank_pattern:
        message = "is not a LoRA adapter with one rank and one scale for all layers"
        return _unfit(message, "continue from an adapter of this pipeline")
    if Path(str(config.base_model_name_or_path)).name != Path(model.base).name:
        message = f"was trained on {config.base_model_name_or_path}, not on {model.base}"
        return _unfit(message, "use its base, or another adapter")
    for key in ("lora_alpha", "use_rslora", "r", "use_dora"):
        asked, stored = getattr(adapter, key), getattr(config, key)
        if asked != stored:
            return _unfit(f"has {key}: {stored}, but params.yaml has {asked}", f"set adapter.{key}: {stored}")
    return compare_tensors(adapter_shapes(language, adapter, new_tokens), found)


def compare_tensors(expected: Shapes, found: Shapes) -> Problem | None:
    """Return a problem unless both have the same tensors of the same shapes, in both directions."""
    remedy = "use the same target modules, layers and tokens as it does"
    if missing := sorted(expected.keys() - found.keys()):
        return _unfit(f"has no tensor for {missing[0]} ({len(missing)} such)", remedy)
    if unused := sorted(found.keys() - expected.keys()):
        return _unfit(f"has a tensor that this adapter lacks: {unused[0]} ({len(unused)} such)", remedy)
    if other := sorted(name for name in found if found[name] != expected[name]):
        sides = " x ".join(map(str, found[other[0]])), " x ".join(map(str, expected[other[0]]))
        return _unfit(f"{other[0]} is {sides[0]}, but {sides[1]} here ({len(other)} such)", remedy)
    return None


def adapter_shapes(language: LanguageModel, adapter: AdapterConfig, new_tokens: Sequence[int]) -> Shapes:
    """Return names and shapes of all tensors of this adapter as published, from torch's meta device."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict

    with torch.device("meta"):
        base = build(language)
        make_room(base, new_tokens)
        architecture = describe(language, base)
        config = lora_config(with_new_tokens(architecture, adapter, new_tokens), architecture)
        state = get_peft_model_state_dict(get_peft_model(base, config), save_embedding_layers=False)
    if place := language.place:
        state = {rename_tensor(name, place.to_checkpoint): tensor for name, tensor in state.items()}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def load_start(model: Any, file: Path) -> None:
    """Replace the adapter's initial weights by those in a file. Raise DataError unless each is used and covered."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    if place := model.language.place:
        tensors = {rename_tensor(name, place.from_checkpoint): tensor for name, tensor in tensors.items()}
    set_peft_model_state_dict(model, dict(tensors))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    if state.keys() != tensors.keys() or any((state[name].cpu() != tensors[name]).any() for name in tensors):
        raise DataError(file, "does not replace exactly the adapter's weights", "run validate again")
