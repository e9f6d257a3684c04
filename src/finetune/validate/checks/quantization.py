"""Check how the base's weights are held against the checkpoint, the device, sharding and the kernels of CPUs."""

from finetune.config.validate import ValidateParams
from finetune.console import gigabytes
from finetune.model.architecture import Architecture
from finetune.model.quantization import FOUR_BITS, KEY, bits_of_linears, find_quantization_problem
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CPU_INPUTS, CPU_OUTPUTS = 64, 32  # multiples for bitsandbytes' 4-bit CPU kernels (0.50: gemv_4bit, dequantize)

CODES |= {
    "quantization-mismatch": Code(
        "error", "run", "The checkpoint is quantized in another way than this, or not at all.", binding=True
    ),
    "quantization-unsupported": Code(
        "error", "run", "No adapter can be trained on a base stored like this, on this machine.", binding=True
    ),
    "quantization-partial": Code("note", "nothing", "Parts of the base that stay at their full size."),
    "quantization-shape": Code(
        "error", "run", "bitsandbytes has no 4-bit CPU kernel for a layer of this shape.", binding=True
    ),
    "quantization-slow": Code("warning", "time", "Quantized weights on a Mac use slow fallbacks."),
    "quantization-strategy": Code("error", "run", "Quantized weights can't be sharded this way.", binding=True),
}


def check_quantization(params: ValidateParams, architecture: Architecture | None) -> list[Finding]:
    """Return all findings about quantized weights."""
    asked, problem = params.model.quantization, None
    if architecture is not None:
        problem = find_quantization_problem(architecture.quantized, params.model, params.environment)
    if problem or asked == "none":
        return [Finding.of(problem)] if problem else []
    findings, distributed = [], params.train.distributed
    if distributed.shards_base:
        what = f"{distributed.strategy} shards weights, but {asked} weights are stored as bytes that it can't shard"
        findings.append(Finding("quantization-strategy", KEY, what, "use ddp or zero2, or quantization: none"))
    if params.environment == "apple":
        what = f"{asked} on a Mac uses slow fallbacks; 16-bit weights are faster if they fit"
        findings.append(Finding("quantization-slow", KEY, what, "use none with dtype: bfloat16, if memory allows"))
    if architecture is not None:
        findings += check_experts(params, architecture) + check_shapes(params, architecture)
    return findings


def check_experts(params: ValidateParams, architecture: Architecture) -> list[Finding]:
    """Note experts, whose weights are not those of linear layers."""
    experts = sum(layers.parameters for layers in architecture.experts)
    if not experts:
        return []
    size = gigabytes(experts * (4 if params.model.dtype == "float32" else 2))
    what = (
        f"{params.model.quantization} quantizes linear layers only: the experts, "
        f"{experts / architecture.parameters:.0%} of the base, stay in {params.model.dtype} ({size})"
    )
    return [Finding("quantization-partial", KEY, what, "nothing to do if they fit; the plan counts them at this size")]


def check_shapes(params: ValidateParams, architecture: Architecture) -> list[Finding]:
    """Check 4-bit layers on a CPU, whose kernels need multiples."""
    if params.environment != "cpu" or bits_of_linears(params.model, architecture.quantized) != FOUR_BITS:
        return []
    for linear in architecture.linears:
        if linear.inputs % CPU_INPUTS or linear.outputs % CPU_OUTPUTS:
            what = (
                f"{linear.name} is {linear.inputs} x {linear.outputs}; {params.model.quantization} on a CPU needs "
                f"multiples of {CPU_INPUTS} x {CPU_OUTPUTS}"
            )
            return [Finding("quantization-shape", KEY, what, "use none")]
    return []
