"""An architecture and settings for the tests of settings, adapter, machine and plan."""

from typing import Any

from finetune.model.architecture import Architecture, Layers
from finetune.validate.findings import Finding

GB = 10**9
CUDA = {"environment": "cuda", "machine": "h100", "model.dtype": "bfloat16"}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def layers(name: str, inputs: int, outputs: int, count: int) -> Layers:
    """Return one linear layer in each of the decoder's layers."""
    return Layers(name, inputs, outputs, tuple(f"model.layers.{at}.part.{name}" for at in range(count)))


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    layers=2,
    hidden=128,
    intermediate=256,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocabulary=1000,
    tied=False,
    max_positions=512,
    parameters=500_000,
    stored="float32",
    linears=(
        *(layers(name, 128, 128 if name in ("q_proj", "o_proj") else 64, 2) for name in SEVEN[:4]),
        layers("gate_proj", 128, 256, 2),
        layers("up_proj", 128, 256, 2),
        layers("down_proj", 256, 128, 2),
    ),
    sizes=(
        ("model.embed_tokens", 128_000),
        *((f"model.layers.{at}.part.{name}", 8192) for at in range(2) for name in SEVEN),
        ("lm_head", 128_000),
    ),
)


def codes(findings: list[Finding]) -> list[str]:
    """Return the codes of the findings."""
    return [finding.code for finding in findings]


def finding_text(finding: Finding, code: str) -> str:
    """Return the text of a finding with this code; the code determines its severity."""
    assert finding.code == code
    return str(finding)


def spread(strategy: str = "ddp", devices: int = 2, **offload: str) -> dict[str, Any]:
    """Return the keys of a run on this number of devices, with the resulting effective batch size."""
    distributed = {"nodes": 1, "devices": devices, "strategy": strategy}
    distributed |= {"offload_optimizer": "none", "offload_param": "none"} | offload
    return {"train.distributed": distributed, "train.effective_batch_size": 16 * devices}


NF4 = {"model.quantization": "nf4"}
FLASH = {"model.attention": "flash_attention_2"}
