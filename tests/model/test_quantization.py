"""Bases that are quantized while loading, and bases that come quantized."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetune.config.model import ModelConfig
from finetune.config.params import Config, params_of, parse_config
from finetune.model.architecture import measure_architecture
from finetune.model.base import load_base
from finetune.model.base_config import find_base_config
from finetune.model.quantization import find_method, find_quantization_problem
from finetune.model.shrink import shrink_config
from finetune.plan.activations import Run
from finetune.plan.memory import base_bytes
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport
from finetune.validate.checks.quantization import check_quantization
from tests.builders.small_bases import run_stages, small_checkpoint
from tests.builders.small_run import params

pytestmark = pytest.mark.slow

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # magnitudes of E2M1 (OCP Microscaling 1.0, table 3)


def settings(folder: Path, quantization: str) -> Config:
    """Return params with the base in a folder."""
    return parse_config(params(model__base=str(folder), model__quantization=quantization), "params.yaml")


def in_bits(folder: Path, bits: int) -> None:
    """Store a small base as bitsandbytes does."""
    small_checkpoint("qwen3", folder)
    options: dict[str, Any] = (
        {"load_in_8bit": True} if bits > 4 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    )
    how = BitsAndBytesConfig(**options)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, device_map={"": "cpu"}).save_pretrained(
        folder
    )


def describe_quantization(folder: Path, **content: Any) -> None:
    """Write a quantization config into a base's config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"quantization_config": content}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def in_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Store a small base in FP8 with blocks of 128 x 128, as Qwen and DeepSeek do; return what the numbers mean."""
    small_checkpoint("qwen3", folder)
    weights, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in list(weights.items()):
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = weight.shape
        blocks = weight.float().reshape(rows // 128, 128, columns // 128, 128)
        scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448  # the largest number of E4M3
        numbers = (blocks / scales).to(torch.float8_e4m3fn)
        weights[name] = numbers.reshape(rows, columns)
        weights[name.replace("weight", "weight_scale_inv")] = scales.reshape(rows // 128, columns // 128)
        meant[name] = (numbers.float() * scales).reshape(rows, columns)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    describe_quantization(folder, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128])
    return meant


def in_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Store the experts of a small gpt-oss in blocks of 32 numbers of 4 bits; return what the numbers mean."""
    small_checkpoint("gpt_oss", folder)
    weights, meant = load_file(folder / "model.safetensors"), {}
    for name, weight in list(weights.items()):
        if not name.endswith(("gate_up_proj", "down_proj")):
            continue
        blocks = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
        exponents = torch.floor(torch.log2(blocks.abs().amax(dim=-1, keepdim=True).clamp(min=1e-20))) - 2
        scaled = blocks / 2**exponents
        nearest = (scaled.abs()[..., None] - FP4).abs().argmin(dim=-1)
        codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
        del weights[name]
        weights[f"{name}_blocks"] = (codes[..., 0::2] | (codes[..., 1::2] << 4)).contiguous()
        weights[f"{name}_scales"] = (exponents[..., 0] + 127).to(torch.uint8)
        numbers = FP4[nearest] * torch.where(scaled < 0, -1.0, 1.0) * 2**exponents
        meant[name] = numbers.flatten(-2).transpose(1, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    describe_quantization(folder, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    return meant


@pytest.mark.parametrize("store", [in_fp8, in_mxfp4], ids=["fp8", "mxfp4"])
def test_a_stored_base_is_restored_while_loading(tmp_path: Path, store: Any) -> None:
    """With `none`, its weights are what the stored numbers mean, and the plan counts them at that size."""
    meant = store(tmp_path / "base")
    config = settings(tmp_path / "base", "none")
    model = config.model.model_copy(update={"attention": "eager"})
    base = load_base(model, "cpu")
    found = dict(base.named_parameters())
    assert len(meant) > 3
    for name, expected in meant.items():
        assert torch.allclose(found[name], expected, rtol=2**-7, atol=0), name
    architecture = measure_architecture(find_base_config(config.model, Path()))
    assert architecture.parameters == sum(parameter.numel() for parameter in base.parameters())
    assert check_quantization(params_of("validate", config), architecture) == []


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_of_bitsandbytes_stays_as_it_is_stored(tmp_path: Path, bits: int) -> None:
    """It is the same as if it was quantized while loading, and smaller in the plan."""
    in_bits(tmp_path / "base", bits)
    config = settings(tmp_path / "base", "stored")
    base = load_base(config.model, "cpu")
    assert {parameter.dtype for parameter in base.parameters()} == {
        torch.float32,
        torch.uint8 if bits == 4 else torch.int8,
    }
    architecture = measure_architecture(find_base_config(config.model, Path()))
    assert architecture.quantized == ("bitsandbytes", bits)
    run = Run(architecture, config.model, config.adapter, config.train, "cpu", 1, 8, 8, 1)
    linears = sum(layers.parameters for layers in architecture.linears)
    assert base_bytes(run)[0] == linears * bits // 8 + (architecture.parameters - linears) * 4


def test_a_small_base_of_a_quantized_checkpoint_is_not_quantized(tmp_path: Path) -> None:
    """Its weights are random, also where the class of the checkpoint is built with its towers."""
    tokenizer = small_checkpoint("qwen3_vl", tmp_path / "base")
    describe_quantization(tmp_path / "base", quant_method="fp8", weight_block_size=[128, 128])
    config = find_base_config(settings(tmp_path / "base", "none").model, Path())
    assert find_method(config) == ("fp8", 8)
    assert find_method(shrink_config(config, tokenizer)) is None
    assert find_method(config) == ("fp8", 8)


@pytest.mark.end_to_end
@pytest.mark.parametrize("how", ["int8", "stored 4", "stored 8", "fp8", "mxfp4"])
def test_all_stages_run(tmp_path: Path, how: str) -> None:
    """An adapter is trained on the quantized base, and evaluated on the same."""
    kind = "gpt_oss" if how == "mxfp4" else "qwen3"
    store = {"stored 4": lambda base: in_bits(base, 4), "stored 8": lambda base: in_bits(base, 8)}
    store |= {"fp8": in_fp8, "mxfp4": in_mxfp4}
    asked = how.split()[0] if how.startswith(("int8", "stored")) else "none"
    _, paths = run_stages(tmp_path, kind, ("q_proj", "v_proj"), store=store.get(how), model__quantization=asked)
    assert read_report(paths.reports / "decision.json", DecisionReport).verdict in ("iterate", "abort")


GPTQ, AWQ, FP8, NF4 = ("gptq", 4), ("awq", 4), ("fp8", 8), ("bitsandbytes", 4)


@pytest.mark.parametrize(
    ("found", "asked", "environment", "problem"),
    [
        (None, "none", "cpu", None),
        (None, "nf4", "cuda", None),
        (None, "stored", "cuda", "is not quantized, so there is nothing stored to keep; use none, nf4 or int8"),
        (NF4, "stored", "cpu", None),
        (NF4, "nf4", "cpu", "is stored in 4 bits (bitsandbytes), which nf4 would quantize again; use stored"),
        (NF4, "none", "cuda", "is stored in 4 bits (bitsandbytes), not for none; use stored"),
        (FP8, "none", "apple", None),
        (FP8, "stored", "cuda", "is stored in 8 bits (fp8), not for stored; use none"),
        (FP8, "nf4", "cuda", "which nf4 would quantize again; use none"),
        (
            GPTQ,
            "stored",
            "cpu",
            "can be trained on CUDA only, but the environment is cpu; use the same",
        ),
        (
            AWQ,
            "stored",
            "cuda",
            "which needs the packages gptqmodel and optimum; pip install gptqmodel optimum, or",
        ),
        (GPTQ, "none", "cuda", "is stored in 4 bits (gptq), not for none; use stored"),
        (("aqlm", 2), "stored", "cuda", "is stored in 2 bits (aqlm), on which no adapter can be trained; use the same"),
    ],
)
def test_what_does_not_work_is_a_problem_with_a_remedy(
    tmp_path: Path, found: Any, asked: Any, environment: Any, problem: str | None
) -> None:
    """It is found from config.json, before anything is loaded."""
    model: ModelConfig = settings(tmp_path, asked).model
    result = find_quantization_problem(found, model, environment)
    assert (result is None) is (problem is None)
    assert problem is None or problem in str(result)


def test_the_finding_is_about_the_checkpoint(tmp_path: Path) -> None:
    """validate reads the method from config.json, and refuses what loading refuses."""
    small_checkpoint("qwen3", tmp_path / "base")
    describe_quantization(tmp_path / "base", quant_method="gptq", bits=4, group_size=128)
    config = settings(tmp_path / "base", "nf4")
    architecture = measure_architecture(find_base_config(config.model, Path()))
    (finding,) = check_quantization(params_of("validate", config), architecture)
    assert finding.code == "quantization-mismatch"
    with pytest.raises(Exception, match=r"is stored in 4 bits \(gptq\), which nf4 would quantize again; use stored"):
        load_base(config.model, "cpu")
    shutil.rmtree(tmp_path / "base")
