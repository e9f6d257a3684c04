"""The installed versions of what determines a result."""

import platform
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

VERSIONS_THAT_MATTER = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers", "datasets")

OPTIONAL_VERSIONS = ("flash-attn", "kernels", "liger-kernel", "deepspeed", "triton")  # told where they are installed

TRACKERS = {  # of train.report_to: the modules that serve, one is enough
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


def versions() -> dict[str, str]:
    """The installed versions of the libraries that determine a result, and Python's."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONS_THAT_MATTER, *OPTIONAL_VERSIONS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in VERSIONS_THAT_MATTER:
                found[name] = "not installed"
    return found


def missing_trackers(names: Sequence[str]) -> list[str]:
    """Those of these trackers (`train.report_to`) that are not installed here."""
    return [name for name in names if not any(find_spec(module) for module in TRACKERS[name])]
