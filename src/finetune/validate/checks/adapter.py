"""Check the adapter and its optimization against the architecture and against values that are known to train well."""

import math

from finetune.config.model import HEAD
from finetune.config.validate import ValidateParams
from finetune.model.adapter import find_adapter_problem
from finetune.model.architecture import Architecture
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
EMBEDDINGS = "embed_tokens"  # not a linear layer, but PEFT adapts it too

CODES |= {
    "target-modules-missing": Code("error", "run", "A target module does not exist in the architecture.", binding=True),
    "target-modules-partial": Code("note", "quality", "Layers of the base that get no adapter."),
    "alpha-unusual": Code("warning", "quality", "The adapter scale is outside the range known to train well."),
    "learning-rate-high": Code("warning", "run", "Above the usual range for this method; runs tend to diverge."),
    "learning-rate-low": Code("warning", "quality", "Below the usual range for this method; the model learns little."),
}


def check_adapter(params: ValidateParams, architecture: Architecture | None) -> list[Finding]:
    """Return all findings about target modules, scale and learning rate."""
    findings = check_start(params) + check_scale(params) + check_learning_rate(params, architecture)
    return findings + (check_target_modules(params, architecture) if architecture else [])


def check_start(params: ValidateParams) -> list[Finding]:
    """Check that the base model's number format supports this initialization of the adapter."""
    problem = find_adapter_problem(params.adapter, params.model)
    return [] if problem is None else [Finding.of(problem)]


def check_target_modules(params: ValidateParams, architecture: Architecture) -> list[Finding]:
    """Check that each target module is a linear layer of the architecture; note layers without an adapter."""
    where, known = "params.yaml: adapter.target_modules", sorted({linear.name for linear in architecture.linears})
    targets = params.adapter.targets(known)
    missing = [name for name in targets if name not in (*known, EMBEDDINGS)]
    usual = [name for name in known if name != HEAD]
    if missing:
        what = f"{', '.join(missing)} match nothing in {architecture.class_name}"
        return [Finding("target-modules-missing", where, what, f"use some of {', '.join(usual)}")]
    left = [name for name in usual if name not in targets]
    if left:
        rest = sum(linear.parameters for linear in architecture.linears if linear.name in left)
        what = f"{', '.join(left)} get no adapter: {rest / architecture.parameters:.0%} of {architecture.class_name}"
        fix = "use all-linear if the validation loss stays high"
        return [Finding("target-modules-partial", where, what, fix)]
    return []


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
