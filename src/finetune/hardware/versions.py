"""The installed versions of the libraries that determine a result."""

import platform
from importlib import metadata

VERSIONS_THAT_MATTER = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers", "datasets")
OPTIONAL_VERSIONS = ("flash-attn", "kernels", "liger-kernel", "deepspeed", "triton")  # included if installed


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that determine a result, and Python's."""
    result = {"python": platform.python_version()}
    for name in (*VERSIONS_THAT_MATTER, *OPTIONAL_VERSIONS):
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in VERSIONS_THAT_MATTER:
                result[name] = "not installed"
    return result
