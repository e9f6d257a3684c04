"""Find what an adapter's names ask for and a base does not have, or can't be trained in it."""

import difflib
from collections.abc import Iterable, Iterator

from finetune.config.model import ALL_LINEAR, AdapterConfig
from finetune.errors import Problem
from finetune.model.architecture import Architecture, Layers
from finetune.model.targets import REWRITING, ends_with, find_targets, is_incompatible, lora_config

INITIALIZED = ("default", "gaussian")  # PEFT's only initializations of adapters of experts


def find_target_problems(
    architecture: Architecture, adapter: AdapterConfig, *, quantized: bool, new_tokens: int = 0
) -> list[Problem]:
    """Return the problems of this adapter with this base, each with the key and the remedy."""
    found = [*_unmatched_layers(architecture, adapter), *_unmatched_others(architecture, adapter)]
    found += [*_beyond_the_base(architecture, adapter), *_unsupported(architecture, adapter)]
    found += [*_conflicts(architecture, adapter, new_tokens), *_impossible_with_experts(architecture, adapter)]
    return [*found, *_too_small(architecture, adapter), *_unsaveable(architecture, adapter, quantized=quantized)]


def impossible(key: str, message: str, remedy: str) -> Problem:
    """Return the problem of an adapter that can't be trained, with its key."""
    return Problem("adapter-impossible", f"params.yaml: adapter.{key}", message, remedy)


def _missing(key: str, names: Iterable[str], architecture: Architecture, remedy: str) -> Problem:
    message = f"{', '.join(names)} match nothing in {architecture.class_name}"
    return Problem("target-modules-missing", f"params.yaml: adapter.{key}", message, remedy)


def _unknown(names: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Return the names with which no path ends."""
    known = list(paths)
    return [name for name in names if name != ALL_LINEAR and not any(ends_with(path, name) for path in known)]


def _paths(groups: Iterable[Layers]) -> list[str]:
    return [path for layers in groups for path in layers.paths]


def _module_paths(architecture: Architecture) -> list[str]:
    return [path for path, _ in architecture.sizes]


def _linear_names(architecture: Architecture) -> str:
    return ", ".join(dict.fromkeys(layers.name for layers in architecture.linears))


def _unmatched_layers(architecture: Architecture, adapter: AdapterConfig) -> Iterator[Problem]:
    """Yield problems of the names of layers to adapt, with the names that this base has."""
    asked, targets = adapter.target_modules, find_targets(architecture, adapter)
    advice = f"use some of {_linear_names(architecture)}, or all-linear"
    if isinstance(asked, str):
        if not targets.layers and not targets.embeddings and architecture.linears:
            example = architecture.linears[0].paths[0]
            yield _missing("target_modules", [asked], architecture, f"match complete paths, for example {example}")
    elif unknown := _unknown(asked, _module_paths(architecture)):
        yield _missing("target_modules", unknown, architecture, advice)
    elif not targets.layers and not targets.embeddings and architecture.linears:
        message = "exclude_modules and layers_to_transform leave no layer to adapt"
        yield impossible("target_modules", message, advice)


def _unmatched_others(architecture: Architecture, adapter: AdapterConfig) -> Iterator[Problem]:
    """Yield problems of the names of layers to leave out, of experts, and of modules to train completely."""
    excluded, paths = adapter.exclude_modules, _module_paths(architecture)
    if not isinstance(excluded, str) and (unknown := _unknown(excluded, paths)):
        yield _missing("exclude_modules", unknown, architecture, f"use some of {_linear_names(architecture)}, or []")
    if unknown := _unknown(adapter.target_parameters, _paths(architecture.experts)):
        names = ", ".join(dict.fromkeys(experts.name for experts in architecture.experts))
        remedy = f"use some of {names}" if names else "use [], because it has no experts"
        yield _missing("target_parameters", unknown, architecture, remedy)
    if unknown := [name for name in adapter.modules_to_save if not any(path.endswith(name) for path in paths)]:
        modules = sorted({path.rsplit(".", 1)[-1] for path in paths})
        near = difflib.get_close_matches(unknown[0], modules, n=3) or modules
        yield _missing("modules_to_save", unknown, architecture, f"use one of {', '.join(near)}")


def _beyond_the_base(architecture: Architecture, adapter: AdapterConfig) -> Iterator[Problem]:
    """Yield problems of layers and token ids that the base does not have."""
    last = architecture.layers - 1
    if high := [at for at in adapter.layers_to_transform or () if at > last]:
        message = f"{high[0]} is not a layer of {architecture.class_name}, whose layers are 0 to {last}"
        yield impossible("layers_to_transform", message, f"use numbers up to {last}")
    last = architecture.vocabulary - 1
    if high := [token for token in adapter.trainable_token_indices if token > last]:
        message = f"{high[0]} is not a token of {architecture.class_name}, whose ids are 0 to {last}"
        yield impossible("trainable_token_indices", message, f"use ids up to {last}")


def _unsupported(architecture: Architecture, adapter: AdapterConfig) -> Iterator[Problem]:
    """Yield a problem for the head, whose adapter would not be trained, and for other modules that are not linear."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = lora_config(adapter, architecture)
    if architecture.head and check_target_module_exists(config, architecture.head):
        message = f"{architecture.head} is the LM head, whose adapter TRL's loss would bypass"
        yield impossible("target_modules", message, "remove it; adapter.modules_to_save can train it completely")
    refused = [x.name for x in find_targets(architecture, adapter).layers if is_incompatible(architecture, x.name)]
    if refused:
        what = "can't have an adapter, because its code reads the layer's weights directly"
        yield impossible("target_modules", f"{refused[0]} of {architecture.class_name} {what}", "remove it")
    able = set(_paths(architecture.linears))
    others = [path for path, _ in architecture.sizes if path not in {*able, architecture.embeddings, architecture.head}]
    if wrong := [path for path in others if check_target_module_exists(config, path)]:
        message = f"{wrong[0]} ({len(wrong)} such) is not a linear layer"
        yield impossible("target_modules", message, f"use some of {_linear_names(architecture)}")


def _conflicts(architecture: Architecture, adapter: AdapterConfig, new_tokens: int) -> Iterator[Problem]:
    """Yield a problem for each pair of keys of which one would be ignored."""
    targets = find_targets(architecture, adapter)
    ends, saved = {architecture.embeddings, architecture.head}, {path for path, _ in targets.saved}
    if adapter.trainable_token_indices and (targets.embeddings or saved & ends):
        message = f"{architecture.embeddings} is trained already, by target_modules or modules_to_save"
        yield impossible("trainable_token_indices", message, "train it in one way")
    if new_tokens and targets.embeddings:
        message = f"{architecture.embeddings} can't have an adapter with model.add_tokens, which trains its new rows"
        yield impossible("target_modules", message, "remove it, or train it completely (modules_to_save)")
    if new_tokens and saved & ends and not (architecture.tied or ends <= saved):
        message = f"new tokens need both {architecture.embeddings} and {architecture.head}"
        yield impossible("modules_to_save", message, "add the other one, or use []")
    if both := sorted({*map(str, adapter.target_modules)} & set(adapter.modules_to_save)):
        message = f"{both[0]} is in target_modules too"
        yield impossible("modules_to_save", message, "remove it there or here")


def _impossible_with_experts(architecture: Architecture, adapter: AdapterConfig) -> Iterator[Problem]:
    """Yield what PEFT can't combine with adapters of experts."""
    if not find_targets(architecture, adapter).experts:
        return
    if adapter.lora_dropout:
        message = f"{adapter.lora_dropout:g} is impossible with target_parameters: PEFT adds to the experts' weights"
        yield impossible("lora_dropout", message, "use 0.0, or target_parameters: []")
    if adapter.use_dora:
        yield impossible("use_dora", "true is impossible with target_parameters", "use false, or target_parameters: []")
    if adapter.init_lora_weights not in INITIALIZED:
        message = f"{adapter.init_lora_weights} is impossible with target_parameters"
        yield impossible("init_lora_weights", message, f"use {' or '.join(INITIALIZED)}, or target_parameters: []")


def _too_small(architecture: Architecture, adapter: AdapterConfig) -> Iterator[Problem]:
    """Yield a problem for a layer from whose weights the initialization can't extract so many ranks.

    PEFT initializes an adapter of the embeddings in its default way.
    """
    init = adapter.init_lora_weights
    layers = find_targets(architecture, adapter).layers if init in REWRITING else ()
    if small := [found for found in layers if min(found.inputs, found.outputs) < adapter.r]:
        sides = f"{small[0].inputs} x {small[0].outputs}"
        message = f"{adapter.r} is larger than {init} can extract from {small[0].name} ({sides})"
        yield impossible("r", message, "use a smaller rank")


def _unsaveable(architecture: Architecture, adapter: AdapterConfig, *, quantized: bool) -> Iterator[Problem]:
    """Yield a problem for modules to train completely whose weights are quantized, and have no gradients."""
    able = _paths(architecture.linears) if quantized else []
    saved = {path for path, _ in find_targets(architecture, adapter).saved}
    wrong = [path for path in able if any(path == one or path.startswith(f"{one}.") for one in saved)]
    if wrong:
        message = f"{wrong[0]} is quantized, and can't be trained completely"
        yield impossible("modules_to_save", message, "use an adapter (target_modules), or model.quantization: none")
