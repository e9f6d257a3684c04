"""Check the adapter and its optimization against the architecture and against values that are known to train well."""

import math

from finetune.config.validate import ValidateParams
from finetune.model.adapter import find_adapter_problem
from finetune.model.architecture import Architecture
from finetune.model.target_problems import find_target_problems
from finetune.model.targets import find_targets
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

# Learning rates of published LoRA runs with Adam: 1e-4 and 2e-4 for 7 to 65 billion parameters (QLoRA, arXiv
# 2305.14314, table 9), 1e-4 to 5e-4 for RoBERTa, DeBERTa, GPT-2 and GPT-3 (LoRA, arXiv 2106.09685, appendix D). The
# limits allow a factor of two or three on either side; below a hundred million parameters, ten times more is still
# usual.
RATES = (3.0e-5, 1.0e-3)
SMALL_BASE, SMALL_FACTOR = 100_000_000, 10
ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor")
# alpha / r in the same papers is between 0.25 (QLoRA: 16 / 64) and 8 (LoRA, GPT-2: 32 / 4).
SCALES = (0.25, 8.0)

CODES |= {
    "target-modules-missing": Code("error", "run", "A target module does not exist in the architecture.", binding=True),
    "target-modules-partial": Code("note", "quality", "Layers of the base that get no adapter."),
    "router-missing": Code("error", "run", "A load-balancing loss needs a mixture of experts.", binding=True),
    "alpha-unusual": Code("warning", "quality", "The adapter scale is outside the range known to train well."),
    "learning-rate-high": Code("warning", "run", "Above the usual range for this method; runs tend to diverge."),
    "learning-rate-low": Code("warning", "quality", "Below the usual range for this method; the model learns little."),
}


def check_adapter(params: ValidateParams, architecture: Architecture | None) -> list[Finding]:
    """Return all findings about target modules, scale and learning rate."""
    findings = check_initialization(params) + check_scale(params) + check_learning_rate(params, architecture)
    if architecture is None:
        return findings
    return findings + check_target_modules(params, architecture) + check_router(params, architecture)


def check_router(params: ValidateParams, architecture: Architecture) -> list[Finding]:
    """Check that a load-balancing loss has experts to balance."""
    if not params.train.router_aux_loss_coef or architecture.routers:
        return []
    what = f"{architecture.class_name} has no load-balancing loss"
    return [Finding("router-missing", "params.yaml: train.router_aux_loss_coef", what, "use 0.0")]


def check_initialization(params: ValidateParams) -> list[Finding]:
    """Check that the base model's number format supports this initialization of the adapter."""
    problem = find_adapter_problem(params.adapter, params.model)
    return ([] if problem is None else [Finding.of(problem)]) + check_whole_modules(params)


def check_whole_modules(params: ValidateParams) -> list[Finding]:
    """Check the run around modules and rows of embeddings that are trained in float32, beside a base in 16 bits."""
    adapter, train, new = params.adapter, params.train, params.model.add_tokens
    mixed = params.model.dtype == "float32" or train.bf16 or train.fp16
    findings = []
    if adapter.modules_to_save and not mixed:
        what = f"their float32 weights can't be combined with a base in {params.model.dtype} without mixed precision"
        where, fix = "params.yaml: adapter.modules_to_save", "set train.bf16: true, or use []"
        findings.append(Finding("adapter-impossible", where, what, fix))
    if (adapter.trainable_token_indices or new) and train.distributed.shards_base:
        where = "params.yaml: " + ("model.add_tokens" if new else "adapter.trainable_token_indices")
        what = f"PEFT can't train rows of embeddings that {train.distributed.strategy} shards"
        findings.append(Finding("adapter-impossible", where, what, "use strategy: ddp or zero2, or []"))
    return findings


def check_target_modules(params: ValidateParams, architecture: Architecture) -> list[Finding]:
    """Check that everything that is to be trained is in the architecture; note layers without an adapter."""
    adapter = params.adapter
    quantized, new = params.model.quantization != "none", len(params.model.add_tokens)
    if problems := find_target_problems(architecture, adapter, quantized=quantized, new_tokens=new):
        return [Finding.of(problem) for problem in problems]
    targets = find_targets(architecture, adapter)
    left = [layers for layers in architecture.linears if targets.adapted(layers) < layers.count]
    others = [experts for experts in architecture.experts if targets.adapted(experts) < experts.count]
    names = dict.fromkeys(layers.name for layers in (*left, *others))
    if not names:
        return []
    rest = sum(x.parameters * (x.count - targets.adapted(x)) // x.count for x in (*left, *others))
    where = "params.yaml: adapter.target_modules"
    what = f"{', '.join(names)} get no adapter: {rest / architecture.parameters:.0%} of {architecture.class_name}"
    ways = ["all-linear"] * bool(left) + ["target_parameters for the experts"] * bool(others)
    fix = f"use {' and '.join(ways)} if the validation loss stays high"
    return [Finding("target-modules-partial", where, what, fix)]


def check_scale(params: ValidateParams) -> list[Finding]:
    """Check alpha / r, by which the adapter's output is multiplied; rsLoRA divides by the root of r."""
    adapter = params.adapter
    scale = adapter.lora_alpha / (math.sqrt(adapter.r) if adapter.use_rslora else adapter.r)
    if SCALES[0] <= scale <= SCALES[1]:
        return []
    what = f"lora_alpha {adapter.lora_alpha} over r {adapter.r} is {scale:g}, outside {SCALES[0]:g} to {SCALES[1]:g}"
    return [Finding("alpha-unusual", "params.yaml: adapter.lora_alpha", what, f"use {2 * adapter.r}")]


def check_learning_rate(params: ValidateParams, architecture: Architecture | None) -> list[Finding]:
    """Check that the learning rate is within the range of published LoRA runs with this kind of optimizer."""
    train = params.train
    if train.optim not in ADAM:
        return []
    small = architecture is not None and architecture.parameters < SMALL_BASE
    low, high = RATES[0], RATES[1] * (SMALL_FACTOR if small else 1)
    where, rate = "params.yaml: train.learning_rate", train.learning_rate
    if rate > high:
        what = f"{rate:g} is above {high:g}, where LoRA runs of bases of this size tend to diverge"
        return [Finding("learning-rate-high", where, what, f"use {high / 5:g}")]
    if rate < low:
        what = f"{rate:g} is below {low:g}: a learning rate for full fine-tuning, not for adapters"
        return [Finding("learning-rate-low", where, what, f"use {low * 6:g}")]
    return []
