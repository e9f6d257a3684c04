"""The frozen base model: loaded from safetensors at a pinned revision, optionally quantized, onto its device."""

import re
from pathlib import Path
from typing import Any

from finetune.config.kernels import is_flash
from finetune.config.model import Environment, ModelConfig
from finetune.errors import BaseModelError, ConfigError
from finetune.files.hashing import sha256_file, sha256_json
from finetune.hardware.devices import device_supports, find_missing_device, flash_attention_found
from finetune.model.base_config import find_base_config
from finetune.model.language import LanguageModel, find_language_model, finish_loading, make_room, supported_attention
from finetune.model.quantization import find_method, find_quantization_problem, loading_config
from finetune.model.tokens import first_line, load_tokenizer

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
LOADED_FILES = {".json", ".safetensors", ".jinja", ".model", ".txt"}  # read by transformers; no README, no script


def runs_flash_attention() -> bool:
    """Return whether flash attention supports the CUDA device, from Ampere on; True if there is none."""
    return find_missing_device("cuda") is not None or device_supports("bfloat16", "cuda")


def attention_used(model: ModelConfig, environment: Environment, language: LanguageModel | None = None) -> str:
    """Resolve `model.attention` for this machine, in transformers' spelling.

    `auto` is flash_attention_2 on a CUDA device in 16 bits if it is installed or cached, else sdpa; eager if the base's
    class supports neither. Without `language`, the class is found from the base's local files.
    """
    if model.attention != "auto":
        return model.attention
    able = environment == "cuda" and model.dtype != "float32" and flash_attention_found() and runs_flash_attention()
    try:
        supported = supported_attention(language or find_language_model(find_base_config(model, Path())))
    except BaseModelError:  # not downloaded yet
        supported = ("flash_attention_2", "sdpa")
    return next(name for name in supported if able or name != "flash_attention_2")


def load_base(model: ModelConfig, device: str) -> Any:
    """Load the base on `device` (`cpu`, `cuda`, `cuda:1`, `mps`), without gradients. Raise ConfigError on failure.

    Of a multimodal checkpoint, only the language model is loaded; `base.language` says where it was.
    """
    from transformers import AutoConfig

    from finetune.model.weights import load_weights

    environment = environment_of(device)
    try:
        language = find_language_model(AutoConfig.from_pretrained(model.base, revision=model.revision))
        if problem := find_quantization_problem(find_method(language.config), model, environment):
            raise ConfigError.of([problem])
        asked = attention_used(model, environment, language)
        options = {"quantization_config": loading_config(language.config, model), "attn_implementation": asked}
        base, difference = load_weights(language, model, device, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise ConfigError("params.yaml: model.base", f"{model.base} does not load: {first}") from None
    if difference:
        what = f"{model.base} has {difference}"
        raise ConfigError("params.yaml: model.base", what, "download the base again, or use another one")
    finish_loading(language, base)
    used = str(base.config._attn_implementation)
    if is_flash(asked) != is_flash(used):  # otherwise the report would name the wrong one
        raise ConfigError("params.yaml: model.attention", f"{asked} was requested, but transformers used {used}")
    add_embeddings(base, model)
    base.requires_grad_(False)
    return keep_quantized_weights(base)


def add_embeddings(base: Any, model: ModelConfig) -> None:
    """Give the new tokens of params.yaml rows in the embeddings and the head, in place, with the mean of the others.

    Many bases have spare rows; others get new ones. `base.new_tokens` are the ids.
    """
    import torch

    tokens = load_tokenizer(model).convert_tokens_to_ids(list(model.add_tokens)) if model.add_tokens else []
    base.new_tokens = tuple(tokens)
    if not tokens:
        return
    make_room(base, tokens)
    with torch.no_grad():
        for part in (base.get_input_embeddings(), base.get_output_embeddings()):
            known = part.weight[: min(tokens)].float().mean(dim=0)
            part.weight[tokens] = known.to(part.weight.dtype)


def environment_of(device: str) -> Environment:
    """Return the environment of a device: for `cuda:1`, CUDA's."""
    kind = device.split(":", 1)[0]
    return "cuda" if kind == "cuda" else "apple" if kind == "mps" else "cpu"


def keep_quantized_weights(base: Any) -> Any:
    """Prevent bitsandbytes from repacking 4-bit weights on a CPU.

    On processors with AVX512-BF16, the first forward pass in evaluation mode permanently rewrites the frozen weights
    with scales rounded to bfloat16 (bitsandbytes 0.50, Linear4bit.forward): every evaluation would change the training
    after it, and a resumed run would differ.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return base


def identify_base(model: ModelConfig) -> dict[str, str]:
    """Return the identity of the base: its name, and the Hub revision or the hash of a local folder's files.

    Raises BaseModelError if a base on the Hub is not pinned.
    """
    folder = Path(model.base)
    if folder.is_dir():
        found = [path for path in sorted(folder.iterdir()) if path.suffix in LOADED_FILES and path.is_file()]
        files = {path.name: sha256_file(path) for path in found}
        return {"name": model.base, "revision": f"sha256:{sha256_json(files)}"}
    if not HUB_NAME.fullmatch(model.base):
        what = f"{model.base}: not a folder, and not a Hub name like org/name"
        raise BaseModelError("base-missing", "base", what, "fix the path")
    if model.revision is None:
        what = (
            f"{model.base} is not a local folder, and without a revision the same name may refer to a "
            "different model later"
        )
        raise BaseModelError(
            "base-unpinned", "revision", what, "set it to the 40 hex digits of a commit (./finetune pin)"
        )
    return {"name": model.base, "revision": model.revision}


def base_folder(model: ModelConfig) -> Path | None:
    """Return the folder of the base's files: a local one, or the Hub's cache at this revision; None without either."""
    if Path(model.base).is_dir():
        return Path(model.base)
    if model.revision is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.base, revision=model.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def hub_answers() -> bool:
    """Check within seconds whether the Hub responds: its library would try for most of a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils._http import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # no name service, no route, a proxy that refuses: each layer has its own
        return False
    return True


def fetch_config(model: ModelConfig) -> None:
    """Download the pinned base's `config.json` into the cache. Raise BaseModelError if the Hub does not provide it."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(model.base, "config.json", revision=model.revision)
    except Exception as error:  # not found, gated, licence not accepted, a broken connection
        what = f"the Hub does not provide {model.base} at {model.revision}: {str(error).strip().splitlines()[0]}"
        raise BaseModelError(
            "base-missing",
            "base",
            what,
            "check name and revision; for gated models, accept the licence and set HF_TOKEN",
        ) from None


def end_tokens(model: ModelConfig, tokenizer: Any) -> list[int]:
    """Return the tokens that end generation: the tokenizer's own, and those of the base's generation config.

    Raises BaseModelError if that config is malformed.
    """
    from transformers import GenerationConfig

    folder = base_folder(model)
    ends: Any = None
    if folder is not None and (folder / "generation_config.json").is_file():
        try:
            ends = GenerationConfig.from_pretrained(folder).eos_token_id
        except (OSError, ValueError, TypeError, AttributeError) as error:
            what = f"{folder / 'generation_config.json'} can't be read ({first_line(error)})"
            raise BaseModelError("base-incomplete", "base", what, "fix it or download it again") from None
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    return sorted(token for token in known if isinstance(token, int))
