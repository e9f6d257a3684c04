"""Check the settings against each other and against what any machine of this kind of device supports."""

from finetune.config.kernels import is_flash
from finetune.config.validate import ValidateParams
from finetune.model.architecture import Architecture
from finetune.model.base import attention_used
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
TWICE = "the frozen weights take twice the memory in 32 bits; only the adapter needs 32 bits"
DEEPSPEED = ("zero2", "zero3")

CODES |= {
    "effective-batch-differs": Code("error", "quality", "The batch settings do not multiply to effective_batch_size."),
    "optimizer-needs-cuda": Code("error", "run", "8-bit optimizers have no kernels off CUDA.", binding=True),
    "optimizer-needs-deepspeed": Code("error", "run", "DeepSpeed can only offload its own optimizer.", binding=True),
    "fp16-needs-cuda": Code("error", "run", "Loss scaling for fp16 is available on CUDA only.", binding=True),
    "dtype-slow": Code("warning", "time", "CPUs compute float16 slowly, if at all."),
    "float32-weights-large": Code("warning", "time", "Frozen 32-bit weights take twice the memory without a benefit."),
    "attention-needs-cuda": Code("error", "run", "flash_attention_2 has CUDA kernels only.", binding=True),
    "attention-unsupported": Code("error", "run", "The base's class does not support this attention.", binding=True),
    "attention-dtype": Code("error", "run", "flash_attention_2 supports 16-bit types only.", binding=True),
    "liger-needs-cuda": Code("error", "run", "Liger's fused kernels need Triton and CUDA.", binding=True),
    "strategy-needs-cuda": Code(
        "error", "run", "CPUs support DDP only; training across several Macs is not supported.", binding=True
    ),
    "strategy-needless": Code("warning", "nothing", "A multi-device strategy on a single device."),
    "offload-ignored": Code("warning", "run", "An option that this strategy ignores; memory does not change."),
    "dtype-unscaled": Code("warning", "quality", "float16 gradients underflow without loss scaling."),
    "packing-slow": Code("warning", "time", "Without flash attention, a packed row has a full square mask."),
    "packing-ignores-sampling": Code("note", "nothing", "Packed rows all have the same length."),
}


def check_settings(params: ValidateParams, architecture: Architecture | None) -> list[Finding]:
    """Return all findings that follow from only params.yaml and the architecture."""
    return [
        *check_precision(params),
        *check_optimizer(params),
        *check_attention(params, architecture),
        *check_kernels(params),
        *check_strategy(params),
        *check_offload(params),
        *check_effective_batch(params),
    ]


def check_precision(params: ValidateParams) -> list[Finding]:
    """Check fp16, tf32 and the weights' dtype against the kind of device."""
    findings, environment = [], params.environment
    if environment != "cuda" and params.train.fp16:
        what = f"fp16 needs loss scaling, which is CUDA-only, but the environment is {environment}"
        findings.append(Finding("fp16-needs-cuda", "params.yaml: train.fp16", what, "set it to false"))
    if environment != "cuda" and params.train.tf32:
        what = f"tf32 is a mode of CUDA devices, but the environment is {environment}"
        findings.append(Finding("tf32-unsupported", "params.yaml: train.tf32", what, "set it to false"))
    if environment == "cpu" and params.model.dtype == "float16":
        what = "CPUs compute float16 slowly, if at all"
        findings.append(Finding("dtype-slow", "params.yaml: model.dtype", what, "use bfloat16 or float32"))
    if environment == "cuda" and params.model.dtype == "float16" and not params.train.fp16:
        why = " (bf16 has none)" if params.train.bf16 else ""
        what = f"gradients pass through float16 weights without loss scaling{why}"
        fix = "set train.fp16: true and bf16: false, or dtype: bfloat16"
        findings.append(Finding("dtype-unscaled", "params.yaml: model.dtype", what, fix))
    if environment == "cuda" and params.model.dtype == "float32":
        quantized = params.model.quantization == "nf4"
        what = "the compute type for 4-bit weights is 32-bit, which is half as fast as 16-bit" if quantized else TWICE
        findings.append(Finding("float32-weights-large", "params.yaml: model.dtype", what, "use bfloat16"))
    return findings


def check_optimizer(params: ValidateParams) -> list[Finding]:
    """Check the optimizer: 8-bit ones run only on CUDA, and DeepSpeed offloads only its own."""
    where, optimizer, environment = "params.yaml: train.optim", params.train.optim, params.environment
    if environment != "cuda" and optimizer in EIGHT_BIT:
        what = f"{optimizer} needs CUDA, but the environment is {environment}"
        return [Finding("optimizer-needs-cuda", where, what, "use adamw_torch")]
    offloaded = params.train.distributed.offload_optimizer == "cpu"
    if params.train.distributed.strategy in DEEPSPEED and offloaded and optimizer in EIGHT_BIT:
        what = f"{optimizer} keeps its state on the GPU, so DeepSpeed can't offload it"
        return [Finding("optimizer-needs-deepspeed", where, what, "use adamw_torch, or offload_optimizer: none")]
    return []


def check_attention(params: ValidateParams, architecture: Architecture | None) -> list[Finding]:
    """Check the attention against class, device and precision, and packing against attention and sampling."""
    findings, model, train, where = [], params.model, params.train, "params.yaml: model.attention"
    needed = "flash_attention_2" if is_flash(model.attention) else model.attention
    if architecture is not None and needed not in ("auto", *architecture.attention) and "/" not in needed:
        what = f"{architecture.class_name} does not support {model.attention}"
        fix = f"use {' or '.join(architecture.attention)}, or auto"
        findings.append(Finding("attention-unsupported", where, what, fix))
    if is_flash(model.attention):
        if params.environment not in kernel_environments(model.attention):
            what = f"{model.attention} needs CUDA, but the environment is {params.environment}"
            findings.append(Finding("attention-needs-cuda", where, what, "use sdpa"))
        elif model.dtype == "float32" and not (train.bf16 or train.fp16):
            what = f"{model.attention} supports 16-bit types only, but the run is in float32"
            findings.append(Finding("attention-dtype", where, what, "set train.bf16: true, or use sdpa"))
    elif train.packing and not is_flash(attention_used(model, params.environment)):
        used = "sdpa (used by auto without flash attention)" if model.attention == "auto" else model.attention
        what = f"with {used} a packed row of {train.max_length} tokens has a full square attention mask"
        fix = "use model.attention: flash_attention_2, or packing: false with group_by_length"
        findings.append(Finding("packing-slow", "params.yaml: train.packing", what, fix))
    if train.packing and train.train_sampling_strategy == "group_by_length":
        what = "packed rows all have the same length, so there is nothing to group"
        where = "params.yaml: train.train_sampling_strategy"
        findings.append(Finding("packing-ignores-sampling", where, what, "use random"))
    return findings


def kernel_environments(attention: str) -> tuple[str, ...]:
    """Return the environments with builds of a flash attention, as transformers lists them."""
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_DEVICES

    name = attention.partition("@")[0]
    devices = FLASH_ATTN_KERNEL_DEVICES.get(name, ("cuda", "mps", "cpu") if "/" in name else ("cuda",))
    return tuple({"mps": "apple"}.get(device, device) for device in devices)


def check_kernels(params: ValidateParams) -> list[Finding]:
    """Check Liger's fused kernels against the kind of device."""
    if not params.train.use_liger_kernel or params.environment == "cuda":
        return []
    what = f"Liger's kernels need CUDA, but the environment is {params.environment}"
    return [Finding("liger-needs-cuda", "params.yaml: train.use_liger_kernel", what, "set it to false")]


def check_strategy(params: ValidateParams) -> list[Finding]:
    """Check the strategy against the number and the kind of devices."""
    where, distributed = "params.yaml: train.distributed.strategy", params.train.distributed
    strategy, devices = distributed.strategy, distributed.devices
    if strategy == "none":
        return []
    if params.environment == "apple" or (params.environment == "cpu" and strategy != "ddp"):
        what = f"{strategy} is not available in the environment {params.environment}"
        fix = "use none" if params.environment == "apple" else "use ddp or none"
        return [Finding("strategy-needs-cuda", where, what, fix)]
    if devices == 1 and not (
        strategy in DEEPSPEED and "cpu" in (distributed.offload_optimizer, distributed.offload_param)
    ):
        what = f"{strategy} distributes a run over devices, but devices is 1"
        return [Finding("strategy-needless", where, what, "use none")]
    return []


def check_offload(params: ValidateParams) -> list[Finding]:
    """Find offload options that the strategy does not use."""
    distributed, findings = params.train.distributed, []
    where = "params.yaml: train.distributed"
    if distributed.offload_param == "cpu" and distributed.strategy != "zero3":
        what = (
            f"offload_param: cpu has no effect with {distributed.strategy}; only zero3 shards and offloads parameters"
        )
        findings.append(Finding("offload-ignored", f"{where}.offload_param", what, "use none, or strategy: zero3"))
    if distributed.offload_optimizer == "cpu" and distributed.strategy not in DEEPSPEED:
        what = f"offload_optimizer: cpu has no effect with {distributed.strategy}"
        findings.append(Finding("offload-ignored", f"{where}.offload_optimizer", what, "use none, or strategy: zero2"))
    return findings


def check_effective_batch(params: ValidateParams) -> list[Finding]:
    """Check that micro-batch x accumulation x devices equals the effective batch size that the recipe was tuned for."""
    train = params.train
    micro, devices, effective = train.per_device_train_batch_size, train.distributed.devices, train.effective_batch_size
    made = micro * train.gradient_accumulation_steps * devices
    if made == effective:
        return []
    accumulation, rest = divmod(effective, micro * devices)
    whole = f"use {accumulation}, or set train.effective_batch_size: {made}"
    fix = whole if accumulation and not rest else f"set train.effective_batch_size: {made}, or another micro-batch"
    what = (
        f"{micro} per device x {train.gradient_accumulation_steps} accumulated x {devices} devices is {made}, not "
        f"effective_batch_size: {effective}"
    )
    return [Finding("effective-batch-differs", "params.yaml: train.gradient_accumulation_steps", what, fix)]
