"""The LoRA adapter: add it to a base model, publish it in plain PEFT form, load it again."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.config.model import AdapterConfig, ModelConfig
from finetune.errors import ConfigError, DataError, MachineError, Problem
from finetune.files.hashing import sha256_tensors
from finetune.model.architecture import Architecture, describe
from finetune.model.language import InCheckpoint, embeddings_path
from finetune.model.target_problems import find_target_problems, impossible
from finetune.model.targets import REWRITING, lora_config, with_new_tokens

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of the names of tensors: PEFT's classes around the base
START = "adapter_at_start"  # the attribute of such a model with its initial matrices, {name in the file: tensor}


def find_adapter_problem(adapter: AdapterConfig, model: ModelConfig) -> Problem | None:
    """Return why this adapter cannot be trained on this base, with the key and the remedy; None if it can."""
    return _init_problem(adapter, quantized=model.quantization != "none")


def _init_problem(adapter: AdapterConfig, *, quantized: bool) -> Problem | None:
    """Return what cannot work, as far as that is known without the base's weights."""
    init = adapter.init_lora_weights
    if init in REWRITING and quantized:
        # PEFT rejects PiSSA there and accepts OLoRA. Measured on a small base: quantizing the rest again changed the
        # logits by 0.33 before any step, whereas NF4 itself changes them by 0.10.
        why = "changes the base weights, and quantizing them again would change the base"
        return impossible("init_lora_weights", f"{init} {why}", "use default or gaussian, or model.quantization: none")
    if init == "orthogonal" and quantized:
        why = "is computed by PEFT in the number format of the base, and nf4 stores integers"
        return impossible("init_lora_weights", f"{init} {why}", "use default or gaussian, or model.quantization: none")
    if init == "orthogonal" and adapter.r % 2:
        message = f"{adapter.r} is odd, but init_lora_weights: {init} halves the rank"
        return impossible("r", message, f"use {adapter.r + 1}")
    return None


def add_adapter(base: Any, adapter: AdapterConfig) -> Any:
    """Add a new adapter, the only part with gradients, to the base. Raise ConfigError if a target module is not found.

    It is also raised if the initialization does not work on this base (`find_adapter_problem`, and problems of its
    weights). An adapter that rewrites the base keeps its initial matrices in CPU memory for `save_adapter`.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    architecture = describe(base.language, base)
    check_targets(base, architecture, adapter)
    adapter = with_new_tokens(architecture, adapter, base.new_tokens)
    rewrites, place = adapter.init_lora_weights in REWRITING, base.device
    if rewrites and place.type == "mps":
        base.to("cpu")  # torch lacks QR there
    model = get_peft_model(base, lora_config(adapter, architecture))
    if rewrites:
        start = get_peft_model_state_dict(model, save_embedding_layers=False)
        setattr(model, START, {name: tensor.detach().float().cpu().clone() for name, tensor in start.items()})
        if place.type == "mps":
            model.to(place)
    give_head_its_bias(model)
    return keep_float32(model)


def give_head_its_bias(model: Any) -> None:
    """Let TRL's loss read the bias of a head with trained rows, which PEFT's wrapper (0.21) does not pass on."""
    from peft.utils.other import TrainableTokensWrapper

    head = model.get_base_model().get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        object.__setattr__(head, "bias", getattr(head.original_module, "bias", None))  # not as a second parameter


def check_targets(base: Any, architecture: Architecture, adapter: AdapterConfig) -> None:
    """Raise ConfigError unless every name of the adapter is in the base, and its weights support the initialization."""
    quantized = getattr(base, "is_quantized", False)
    problems = find_target_problems(architecture, adapter, quantized=quantized, new_tokens=len(base.new_tokens))
    if problem := _init_problem(adapter, quantized=quantized):
        problems.append(problem)
    if problems:
        raise ConfigError.of(problems)


def keep_float32(model: Any) -> Any:
    """Cast every trainable parameter to float32.

    TRL converts the adapter of a quantized base to bfloat16, and PEFT's loading converts it back, so that a resumed run
    would differ. With float32 throughout, both give the same bits, at the same speed.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    return model


def count_parameters(model: Any) -> dict[str, int]:
    """Count trainable and total parameters."""
    from peft import PeftModel

    assert isinstance(model, PeftModel)
    trainable, total = model.get_nb_trainable_parameters()
    return {"trainable": trainable, "total": total}


def save_adapter(model: Any, base_name: str, folder: Path, state: dict[str, Any] | None = None) -> str:
    """Write the adapter in plain PEFT form, for the base as it was published, and return its canonical hash.

    PEFT writes the base's local path, and sets in random order; the published config names the base as params.yaml
    does, with sorted keys and lists, so that the same run writes the same bytes. It omits the initialization, which
    PEFT would repeat on loading. Names are those of the checkpoint's class, and its towers are excluded by name.
    `state` holds the weights if `model` has only a part of them.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)  # these belong to the base
    except SafetensorError as error:  # raised for a full disk, but not an OSError here
        raise MachineError(
            f"{folder}", f"{error} (free disk space: dvc gc -w)", "earlier complete files are kept"
        ) from None
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; decide writes the real one
    path = folder / CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["init_lora_weights"] in REWRITING:
        subtract_start(folder / WEIGHTS, getattr(model, START))
        content["r"] *= 2
        content["lora_alpha"] *= 2**0.5 if content["use_rslora"] else 2  # so that the scale is unchanged
    content["init_lora_weights"] = True
    content["base_model_name_or_path"] = base_name
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        content[key] = sorted(content[key]) if isinstance(content[key], list) else content[key]
    if place := _place(model):
        rename_for_checkpoint(folder / WEIGHTS, place)
        content |= names_in_checkpoint(model, content, place)
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it readable only for the owner
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sha256_tensors(folder / WEIGHTS)


def subtract_start(path: Path, start: dict[str, Any]) -> None:
    """Convert an adapter that took `start` out of the base into one for the original base, with twice its rank.

    With B A trained and B0 A0 at the start, (W - B0 A0) + B A = W + [B, -B0] [A; A0] (PiSSA, arXiv 2404.02948). PEFT
    can do this too (`path_initial_model_for_weight_conversion`), but loses adapters of embeddings and the magnitudes of
    DoRA, which are unchanged because they scale the same sum.
    """
    import torch
    from safetensors.torch import load, save_file

    whole = load(path.read_bytes())  # not a view of the file, which is rewritten
    for name, trained in whole.items():
        first = start[name].to(trained.dtype)
        if "_A" in name.rsplit("lora", 1)[-1]:
            whole[name] = torch.cat([trained, first], dim=0)
        elif "_B" in name.rsplit("lora", 1)[-1]:
            whole[name] = torch.cat([trained, -first], dim=1)
    save_file(whole, path, metadata={"format": "pt"})


def _place(model: Any) -> InCheckpoint | None:
    language = getattr(model, "language", None)
    return None if language is None else language.place


def names_in_checkpoint(model: Any, content: dict[str, Any], place: InCheckpoint) -> dict[str, Any]:
    """Return the keys of an adapter's config that select the same modules in the checkpoint's class.

    Names of layers stay as they are, and the towers are excluded. Otherwise, each module is listed with its path.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    def paths(kind: type) -> list[str]:
        named = model.get_base_model().named_modules()
        found = {path.replace(".base_layer", "") for path, module in named if isinstance(module, kind)}
        return sorted(map(place.to_checkpoint, found))

    changed: dict[str, Any] = {"modules_to_save": paths(ModulesToSaveWrapper) or None}
    chosen = isinstance(content["target_modules"], str) or content["exclude_modules"] or content["layers_to_transform"]
    if chosen and not content["target_parameters"]:
        return changed | {"target_modules": paths(LoraLayer), "exclude_modules": None, "layers_to_transform": None}
    return changed | {"exclude_modules": place.excluded}


def rename_for_checkpoint(path: Path, place: InCheckpoint) -> None:
    """Give tensors in a file the names of the checkpoint's class: `model.layers` as `model.language_model.layers`."""
    from safetensors.torch import load, save_file

    tensors = load(path.read_bytes()).items()
    renamed = {rename_tensor(name, place.to_checkpoint): tensor for name, tensor in tensors}
    save_file(renamed, path, metadata={"format": "pt"})


def rename_tensor(name: str, rename: Callable[[str], str]) -> str:
    """Rename the module of an adapter's tensor, whose name begins with PEFT's own classes."""
    return PREFIX + rename(name.removeprefix(PREFIX))


def read_adapter_config(base: Any, folder: Path) -> Any:
    """Read an adapter's PEFT config, with the names of modules that this base has."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    if place := _place(base):
        config.exclude_modules = None  # towers, which the base that we load does not have
        for key in ("target_modules", "modules_to_save"):
            names = getattr(config, key)
            if names and not isinstance(names, str):
                setattr(config, key, type(names)(map(place.from_checkpoint, names)))
    return config


def adapts_embeddings(base: Any, folder: Path) -> bool:
    """Return whether a published adapter adds matrices to the base's input embeddings."""
    from peft.tuners.tuners_utils import check_target_module_exists

    return bool(check_target_module_exists(read_adapter_config(base, folder), embeddings_path(base)))


def load_adapter(base: Any, folder: Path) -> Any:
    """Load a published adapter onto the base, for inference. Raise DataError if it does not fit."""
    from peft import PeftModel

    with _fitting(folder):
        options = {"is_trainable": False, "key_mapping": _key_mapping(base)}
        model = PeftModel.from_pretrained(base, str(folder), config=read_adapter_config(base, folder), **options)
    return cast_saved_modules(model).eval()


def load_second_adapter(model: Any, folder: Path, name: str) -> None:
    """Load another published adapter beside the one of `model`, under a name. Raise DataError if it does not fit."""
    with _fitting(folder):
        config = read_adapter_config(model, folder)
        config.inference_mode = True
        model.add_adapter(name, config)
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False, key_mapping=_key_mapping(model))
    cast_saved_modules(model).eval()


def cast_saved_modules(model: Any) -> Any:
    """Give completely trained modules, which are published in float32, the number format of the base."""
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.to(next(module.original_module.parameters()).dtype)
    return model


def _key_mapping(model: Any) -> dict[str, str] | None:
    place = _place(model)
    return place.key_mapping if place else None


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Turn PEFT's errors on loading an adapter into a DataError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise DataError(folder, f"does not fit the base: {first}") from None
