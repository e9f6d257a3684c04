"""What an adapter changes in a base: names and expressions of params.yaml, matched as PEFT matches them.

It is computed from an architecture, so the plan counts exactly what PEFT will train before the base is loaded.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from finetune.config.model import ALL_LINEAR, AdapterConfig
from finetune.model.architecture import Architecture, Layers

# These move a part of the base's weights into the adapter, so that the base is a different one during training.
REWRITING = ("pissa", "pissa_niter_16", "olora")


@dataclass(frozen=True)
class Targets:
    """The parts of a base that are trained; `layers` are those with adapters, a part of the architecture's."""

    layers: tuple[Layers, ...]
    experts: tuple[Layers, ...]
    embeddings: bool  # with an adapter
    saved: tuple[tuple[str, int], ...]  # modules that are trained completely, and their parameters

    def adapted(self, layers: Layers) -> int:
        """Return how many of these layers or experts have an adapter."""
        found = (*self.layers, *self.experts)
        return sum(part.count for part in found if replace(part, paths=()) == replace(layers, paths=()))


def lora_config(adapter: AdapterConfig, architecture: Architecture) -> Any:
    """Return PEFT's LoraConfig for this causal language model.

    PEFT 0.21 supports more initializations than `adapter.init_lora_weights` accepts. Excluded are those that need the
    data first (eva, corda: activations; lora_ga: gradients), loftq, which corrects the rounding of one NF4 base and so
    is wrong for the same base in 16 bits, mica, which freezes half of the adapter, and none at all (false).
    """
    from peft import LoraConfig

    init, targets, tokens = adapter.init_lora_weights, adapter.target_modules, list(adapter.trainable_token_indices)
    if ALL_LINEAR in targets and not isinstance(targets, str):
        able = {layers.name for layers in architecture.linears if not is_incompatible(architecture, layers.name)}
        targets = tuple(sorted(able | set(targets) - {ALL_LINEAR}))
    embeddings, head = (path.rsplit(".", 1)[-1] for path in (architecture.embeddings, architecture.head))
    # PEFT trains the rows of a tied head with those of the embeddings; a separate head must be named
    rows = tokens if architecture.tied else {embeddings: tokens, head: tokens}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_as_peft(adapter.exclude_modules),
        target_parameters=list(adapter.target_parameters) or None,
        layers_to_transform=list(adapter.layers_to_transform or ()) or None,
        modules_to_save=list(adapter.modules_to_save) or None,
        trainable_token_indices=rows if tokens else None,
        ensure_weight_tying=architecture.tied and bool({embeddings, head} & set(adapter.modules_to_save)),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        init_lora_weights=True if init == "default" else init,
        bias="none",
    )


def is_incompatible(architecture: Architecture, name: str) -> bool:
    """Return whether an adapter of this layer would be bypassed: Mamba's code reads the weights of some directly.

    PEFT refuses those that its kernels read; its slower code reads `dt_proj.weight` too.
    """
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    if name == "dt_proj":
        return True
    model = SimpleNamespace(config=SimpleNamespace(model_type=architecture.model_type))
    try:
        _check_lora_target_modules_mamba(SimpleNamespace(peft_type="LORA"), model, name)
    except ValueError:
        return True
    return False


def _as_peft(modules: tuple[str, ...] | str) -> list[str] | str | None:
    return modules if isinstance(modules, str) else list(modules) or None


@lru_cache(maxsize=32)
def find_targets(architecture: Architecture, adapter: AdapterConfig) -> Targets:
    """Match the adapter's names with the parts of an architecture."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = lora_config(adapter, architecture)

    def names_experts(path: str) -> bool:
        return any(ends_with(path, name) for name in adapter.target_parameters)

    return Targets(
        layers=_select(architecture.linears, lambda path: bool(check_target_module_exists(config, path))),
        experts=_select(architecture.experts, names_experts),
        embeddings=bool(check_target_module_exists(config, architecture.embeddings)),
        saved=tuple(_saved(architecture, adapter).items()),
    )


def _select(groups: Iterable[Layers], matches: Callable[[str], bool]) -> tuple[Layers, ...]:
    """Return the groups with only those layers whose path matches, without empty groups."""
    selected = (replace(layers, paths=tuple(filter(matches, layers.paths))) for layers in groups)
    return tuple(layers for layers in selected if layers.paths)


def ends_with(path: str, name: str) -> bool:
    """Return whether the last parts of a path are a name, as PEFT compares them: those of `x.q_proj` are `q_proj`."""
    return path == name or path.endswith(f".{name}")


def _saved(architecture: Architecture, adapter: AdapterConfig) -> dict[str, int]:
    """Return the modules that PEFT trains completely: it compares the ends of paths, within names too."""
    names, head = adapter.modules_to_save, architecture.head
    saved = {path: size for path, size in architecture.sizes if any(path.endswith(name) for name in names)}
    if architecture.tied and head in saved:  # one matrix, which PEFT stores as that of the embeddings
        saved[architecture.embeddings] = saved.pop(head)
    return saved


def trained_rows(architecture: Architecture, adapter: AdapterConfig, new_tokens: int = 0) -> int:
    """Return how many rows of the embeddings are trained by themselves, without those of embeddings trained whole."""
    whole = any(path == architecture.embeddings for path, _ in find_targets(architecture, adapter).saved)
    return len(adapter.trainable_token_indices) + (0 if whole else new_tokens)


def with_new_tokens(architecture: Architecture, adapter: AdapterConfig, tokens: Sequence[int]) -> AdapterConfig:
    """Return the adapter with the rows of new tokens among the trained ones, unless all rows are trained anyway."""
    if not trained_rows(architecture, adapter, len(tokens)):
        return adapter
    rows = tuple(sorted({*adapter.trainable_token_indices, *tokens}))
    return adapter.model_copy(update={"trainable_token_indices": rows})


def trainable_parameters(architecture: Architecture, adapter: AdapterConfig, new_tokens: int = 0) -> int:
    """Count the parameters that PEFT trains, with `new_tokens` added to the vocabulary.

    These are two matrices of rank r per adapted weight and expert, for DoRA also magnitudes, copies of the modules to
    save, and the embeddings of single tokens, twice if the head has its own.
    """
    targets, magnitude = find_targets(architecture, adapter), int(adapter.use_dora)
    ends = {architecture.embeddings, architecture.head}
    count = sum(size + new_tokens * architecture.hidden * (path in ends) for path, size in targets.saved)
    for layers in (*targets.layers, *targets.experts):
        each = adapter.r * layers.experts * (layers.inputs + layers.outputs) + magnitude * layers.outputs
        count += each * layers.count
    if targets.embeddings:
        count += adapter.r * (architecture.vocabulary + architecture.hidden) + magnitude * architecture.hidden
    rows = trained_rows(architecture, adapter, new_tokens) * (1 if architecture.tied else 2)
    return count + rows * architecture.hidden
