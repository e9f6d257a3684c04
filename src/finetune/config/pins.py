"""Pins: the commits of a recipe's base model and attention kernel on the Hub."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from finetune.config.kernels import Kernel, find_kernel
from finetune.config.loading import read_yaml
from finetune.config.recipes import load_recipe, read_text, recipe_path, split_sections
from finetune.console import say
from finetune.errors import ConfigError, MachineError
from finetune.files.atomic import write_lines


def pin(folder: Path, name: str, params: Path) -> None:
    """Write the current commits of base model and attention kernel into the recipe, and into `params` if it uses it.

    Raises MachineError if the Hub cannot be reached, ConfigError if it does not have the base model.
    """
    path = recipe_path(folder, name)
    base = str(load_recipe(path)["model"]["base"])
    if Path(base).is_dir():
        raise ConfigError(
            f"{path}", f"model.base: {base} is a local folder, which is pinned by its hash", "nothing to do"
        )
    revision, kernel = resolve_revision(base), find_kernel(str(load_recipe(path)["model"]["attention"]))
    current = read_yaml(params) or {}
    in_use = current.get("recipe") == name and (current.get("model") or {}).get("base") == base
    pinned = {file: with_revision(read_text(file), revision) for file in [path, *([params] if in_use else [])]}
    if kernel:
        kernel = Kernel(kernel.name, resolve_revision(kernel.name, "kernel"))
        pinned = {file: with_kernel(text, f"{kernel.name}@{kernel.revision}") for file, text in pinned.items()}
    for file, text in pinned.items():
        write_lines(file, [text])
    say(f"{base} is pinned at {revision} in {' and '.join(map(str, pinned))}")
    if kernel:
        fetch_kernel(kernel)


def resolve_revision(base: str, repo_type: Literal["model", "kernel"] = "model") -> str:
    """Return the commit to which the name of a base model or of a kernel currently refers on the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        return str((api.model_info if repo_type == "model" else api.kernel_info)(base).sha)
    except HFValidationError:
        raise ConfigError(
            "model.base", f"{base} is neither a local folder nor a name on the Hub, like org/name"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 429 or status >= 500:
            raise MachineError(
                "", f"the Hub is not answering for {base} ({status})", "run ./finetune pin again later"
            ) from None
        raise ConfigError(
            "model.base",
            f"the Hub does not provide {base} ({status})",
            "check the name; for gated models, accept the licence and set HF_TOKEN",
        ) from None
    except Exception as error:  # no name service, no route, a proxy, offline mode: each library layer has its own
        raise MachineError(
            "", f"the Hub can't be reached for {base} ({type(error).__name__})", "run ./finetune pin while connected"
        ) from None


def with_revision(text: str, revision: str) -> str:
    """Replace `revision` in the section `model` of the text; comments and everything else are kept."""
    sections = split_sections(text)
    sections["model"], found = re.subn(r"(?m)^(  revision:) +\S+", rf"\1 {revision}", sections["model"], count=1)
    if not found:
        raise ConfigError("model.revision", "has no separate line for the commit", "write `  revision: null`")
    return "".join(sections.values())


def with_kernel(text: str, kernel: str) -> str:
    """Replace `attention` in the section `model` of the text; comments and everything else are kept."""
    sections = split_sections(text)
    sections["model"] = re.sub(r"(?m)^(  attention:) +\S+", rf"\1 {kernel}", sections["model"], count=1)
    return "".join(sections.values())


def fetch_kernel(kernel: Kernel) -> None:
    """Download a kernel's files for this machine; without the package that selects them, say where to do it."""
    if find_spec("kernels") is None:
        say(f"{kernel.name}: to download it, run this on the machine that trains, after pip install kernels")
        return
    try:
        import_module("kernels").install_kernel(kernel.name, revision=kernel.revision)
    except Exception as error:  # no build for this machine, no network, an older version: each has its own
        what = f"{kernel.name} can't be downloaded: {str(error).strip().splitlines()[0]}"
        raise MachineError("", what, "run ./finetune pin on the machine that trains, while connected") from None
    say(f"{kernel.name} at {kernel.revision} is in the cache")
