"""How the base's weights are held: in 16 or 32 bits, quantized while loading, or as the checkpoint stores them."""

from importlib.util import find_spec
from typing import Any

from finetune.config.model import Environment, ModelConfig
from finetune.errors import Problem

KEY = "params.yaml: model.quantization"
FOUR_BITS = 4
BITS = {"nf4": FOUR_BITS, "int8": 8}  # of weights that bitsandbytes quantizes while loading
# Methods that transformers (5.23) can restore to 16 or 32 bits while loading, with its config class.
RESTORED = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
BITSANDBYTES = "bitsandbytes"
# Other methods on which PEFT (0.21) trains adapters, the package with their layers, and their usual bits.
TRAINED = {"gptq": ("gptqmodel", 4), "awq": ("gptqmodel", 4)}


def find_method(config: Any) -> tuple[str, int] | None:
    """Return the method with which a checkpoint is quantized and its bits per weight, from its config; None if not."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    content = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(content.get("quant_method") or BITSANDBYTES)
    usual = TRAINED[method][1] if method in TRAINED else 4 if "4" in method else 8
    if method == BITSANDBYTES:
        usual = 8 if content.get("load_in_8bit") else 4
    return method, int(content.get("bits") or usual)


def forget_quantization(*configs: Any) -> None:
    """Remove the quantization from configs, in place: of a base with random weights, which are not quantized."""
    for config in configs:
        vars(config).pop("quantization_config", None)


def find_quantization_problem(
    found: tuple[str, int] | None, model: ModelConfig, environment: Environment
) -> Problem | None:
    """Return why a base of this method and bits can't be held as `model.quantization` says, with what would work."""
    asked = model.quantization
    if found is None:
        if asked != "stored":
            return None
        message = f"{model.base} is not quantized, so there is nothing stored to keep"
        return Problem("quantization-mismatch", KEY, message, "use none, nf4 or int8")
    method, bits = found
    named = f"{model.base} is stored in {bits} bits ({method})"
    original = "use the same model in 16 bits as model.base, with nf4 if memory is short"
    ways = {"none": method in RESTORED, "stored": method == BITSANDBYTES or method in TRAINED}
    if not any(ways.values()):
        return Problem("quantization-unsupported", KEY, f"{named}, on which no adapter can be trained", original)
    if not ways.get(asked):
        message = f"{named}, which {asked} would quantize again" if asked in BITS else f"{named}, not for {asked}"
        able = " or ".join(way for way, works in ways.items() if works)
        return Problem("quantization-mismatch", KEY, message, f"use {able}")
    if asked == "none" or method == BITSANDBYTES:
        return None
    if environment != "cuda":
        message = f"{named}, which can be trained on CUDA only, but the environment is {environment}"
        return Problem("quantization-unsupported", KEY, message, original)
    package = TRAINED[method][0]
    if find_spec(package) is None or find_spec("optimum") is None:
        message = f"{named}, which needs the packages {package} and optimum"
        return Problem("quantization-unsupported", KEY, message, f"pip install {package} optimum, or {original}")
    return None


def loading_config(config: Any, model: ModelConfig) -> Any:
    """Return the quantization config of transformers with which the checkpoint is loaded, or None.

    NF4 is used with double quantization (QLoRA, arXiv 2305.14314, section 3); int8 is LLM.int8() (arXiv 2208.07339).
    """
    import torch
    import transformers

    if model.quantization == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, model.dtype),
        )
    if model.quantization == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    method = find_method(config)
    if model.quantization == "none" and method:
        return getattr(transformers, RESTORED[method[0]])(dequantize=True)
    return None


def bits_of_linears(model: ModelConfig, stored: tuple[str, int] | None) -> int | None:
    """Return the bits of each weight of a quantized linear layer; None if they are in `model.dtype`."""
    if model.quantization == "stored" and stored:
        return stored[1]
    return BITS.get(model.quantization)
