"""The LoRA adapter: add it to a base model, publish it in plain PEFT form, load it again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.config.model import HEAD, AdapterConfig, ModelConfig
from finetune.errors import ConfigError, DataError, MachineError, Problem
from finetune.files.hashing import sha256_tensors
from finetune.model.language import InCheckpoint, is_linear

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# These move a part of the base's weights into the adapter, so that the base is a different one during training.
REWRITING = ("pissa", "pissa_niter_16", "olora")
START = "adapter_at_start"  # the attribute of such a model with its initial matrices, {name in the file: tensor}


def lora_config(adapter: AdapterConfig) -> Any:
    """Return PEFT's LoraConfig for a causal language model.

    PEFT 0.21 supports more initializations than `adapter.init_lora_weights` accepts. Excluded are those that need the
    data first (eva, corda: activations; lora_ga: gradients), loftq, which corrects the rounding of one NF4 base and so
    is wrong for the same base in 16 bits, mica, which freezes half of the adapter, and none at all (false).
    """
    from peft import LoraConfig

    init = adapter.init_lora_weights
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=list(adapter.target_modules),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        init_lora_weights=True if init == "default" else init,
        bias="none",
    )


def find_adapter_problem(adapter: AdapterConfig, model: ModelConfig) -> Problem | None:
    """Return why this adapter cannot be trained on this base, with the key and the remedy; None if it can."""
    if HEAD in adapter.target_modules:
        return _head_problem(HEAD)
    return _init_problem(adapter, quantized=model.quantization != "none")


def _problem(key: str, message: str, remedy: str) -> Problem:
    return Problem("adapter-impossible", f"params.yaml: adapter.{key}", message, remedy)


def _head_problem(name: str) -> Problem:
    message = f"{name} is the LM head, whose adapter TRL's loss would bypass"
    return _problem("target_modules", message, "remove it")


def _init_problem(adapter: AdapterConfig, *, quantized: bool) -> Problem | None:
    """Return what cannot work, as far as that is known without the base's weights."""
    init = adapter.init_lora_weights
    if init in REWRITING and quantized:
        # PEFT rejects PiSSA there and accepts OLoRA. Measured on a small base: quantizing the rest again changed the
        # logits by 0.33 before any step, whereas NF4 itself changes them by 0.10.
        why = "changes the base weights, and quantizing them again would change the base"
        return _problem("init_lora_weights", f"{init} {why}", "use default or gaussian, or model.quantization: none")
    if init == "orthogonal" and quantized:
        why = "is computed by PEFT in the number format of the base, and nf4 stores integers"
        return _problem("init_lora_weights", f"{init} {why}", "use default or gaussian, or model.quantization: none")
    if init == "orthogonal" and adapter.r % 2:
        message = f"{adapter.r} is odd, but init_lora_weights: {init} halves the rank"
        return _problem("r", message, f"use {adapter.r + 1}")
    return None


def add_adapter(base: Any, adapter: AdapterConfig) -> Any:
    """Add a new adapter, the only part with gradients, to the base. Raise ConfigError if a target module is not found.

    It is also raised if the initialization does not work on this base (`find_adapter_problem`, and problems of its
    weights). An adapter that rewrites the base keeps its initial matrices in CPU memory for `save_adapter`.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    adapter = adapter.model_copy(update={"target_modules": adapter.targets(linear_layers(base))})
    check_targets(base, adapter)
    rewrites, place = adapter.init_lora_weights in REWRITING, base.device
    if rewrites and place.type == "mps":
        base.to("cpu")  # torch lacks QR there
    model = get_peft_model(base, lora_config(adapter))
    if rewrites:
        start = get_peft_model_state_dict(model, save_embedding_layers=False)
        setattr(model, START, {name: tensor.detach().float().cpu().clone() for name, tensor in start.items()})
        if place.type == "mps":
            model.to(place)
    return keep_float32(model)


def linear_layers(base: Any) -> set[str]:
    """Return the names of the base's linear layers, without the loss head."""
    head = base.get_output_embeddings()
    named = base.named_modules()
    return {name.rsplit(".", 1)[-1] for name, module in named if is_linear(module) and module is not head}


def check_targets(base: Any, adapter: AdapterConfig) -> None:
    """Raise ConfigError unless every target module is in the base and supports the initialization."""
    leaves = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    missing = [name for name in adapter.target_modules if name not in leaves]
    if missing:
        raise ConfigError(
            "params.yaml: adapter.target_modules",
            f"{', '.join(missing)} match nothing in {type(base).__name__}",
            f"its modules are {', '.join(sorted(name for name in leaves if 'proj' in name))}",
        )
    head = base.get_output_embeddings()
    heads = [name for name, module in base.named_modules() if module is head and name in adapter.target_modules]
    problem = _head_problem(heads[0]) if heads else None
    problem = problem or _init_problem(adapter, quantized=getattr(base, "is_quantized", False))
    if problem is None and adapter.init_lora_weights in REWRITING:
        problem = _rewriting_problem(base, adapter)
    if problem:
        raise ConfigError.of([problem])


def _rewriting_problem(base: Any, adapter: AdapterConfig) -> Problem | None:
    """Return why an initialization from the base's weights cannot work with these weights; None if it can."""
    init, embeddings = adapter.init_lora_weights, base.get_input_embeddings()
    for name, module in base.named_modules():
        weight = getattr(module, "weight", None)
        if name.rsplit(".", 1)[-1] not in adapter.target_modules or module is embeddings or weight is None:
            continue  # PEFT initializes an adapter of the embeddings in its default way
        if min(weight.shape) < adapter.r:
            sides = " x ".join(map(str, weight.shape))
            message = f"{adapter.r} is larger than {init} can extract from {name} ({sides})"
            return _problem("r", message, "use a smaller rank")
    return None


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
    content["target_modules"] = sorted(content["target_modules"])
    if place := _place(model):
        rename_for_checkpoint(folder / WEIGHTS, place)
        content["exclude_modules"] = place.excluded
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


def rename_for_checkpoint(path: Path, place: InCheckpoint) -> None:
    """Give tensors in a file the names of the checkpoint's class: `model.layers` as `model.language_model.layers`."""
    from safetensors.torch import load, save_file

    here, there = (f"base_model.model.{decoder}." for decoder in (place.here, place.there))
    renamed = {}
    for name, tensor in load(path.read_bytes()).items():
        renamed[there + name.removeprefix(here) if name.startswith(here) else name] = tensor
    save_file(renamed, path, metadata={"format": "pt"})


def load_adapter(base: Any, folder: Path) -> Any:
    """Load a published adapter onto the base, for inference. Raise DataError if it does not fit."""
    from peft import PeftConfig, PeftModel

    with _fitting(folder):
        config = PeftConfig.from_pretrained(str(folder))
        config.exclude_modules = None  # towers, which the base that we load does not have
        options = {"config": config, "is_trainable": False, "key_mapping": _key_mapping(base)}
        return PeftModel.from_pretrained(base, str(folder), **options).eval()


def load_second_adapter(model: Any, folder: Path, name: str) -> None:
    """Load another published adapter beside the one of `model`, under a name. Raise DataError if it does not fit."""
    with _fitting(folder):
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False, key_mapping=_key_mapping(model))
    model.eval()


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
