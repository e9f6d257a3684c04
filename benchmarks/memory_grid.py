"""The runs whose memory is predicted and measured: on a CPU, all influences on it; on a GPU, the recipes' settings."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One run: its base model, its rows, and its changes to params.yaml."""

    name: str
    base: str  # a key of BASES, or a name under models/architectures
    stored: str = "float32"  # the dtype of the base's file
    batch: int = 2
    length: int = 256
    supervised: int = 32  # tokens per row
    changes: dict[str, Any] = field(default_factory=dict)


SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
MIDDLE = {"hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1280, "intermediate_size": 3840, "num_hidden_layers": 18, "num_attention_heads": 20}
BASES: dict[str, dict[str, Any]] = {
    "llama-32m": {"model_type": "llama", **SMALL, "num_key_value_heads": 4, "vocab_size": 8192},
    "qwen2-115m": {"model_type": "qwen2", **MIDDLE, "num_key_value_heads": 4, "vocab_size": 16384},
    "mistral-420m": {"model_type": "mistral", **LARGE, "num_key_value_heads": 4, "vocab_size": 32000},
    "llama-wide-vocabulary": {"model_type": "llama", **SMALL, "num_key_value_heads": 4, "vocab_size": 100_352},
}
BF16, NF4 = {"model.dtype": "bfloat16"}, {"model.quantization": "nf4"}
AUTOCAST = {"train.bf16": True}
CHECKPOINTING = {"train.activation_checkpointing": True}
ROWS = {"llama-32m": (4, 256), "qwen2-115m": (2, 256), "mistral-420m": (2, 64)}
SLOW = {"llama-32m": (2, 128), "qwen2-115m": (2, 64), "mistral-420m": (1, 32)}  # 16 bits, on a processor without them


def cpu_grid() -> list[Case]:
    """Return three sizes times float32, NF4 and bfloat16 times checkpointing, and other influences on the memory."""
    cases = []
    for base, shape in ROWS.items():
        for extra, more in (("", {}), (" checkpointing", CHECKPOINTING)):
            cases.append(Case(f"{base} float32{extra}", base, "float32", *shape, changes=more))
            cases.append(Case(f"{base} nf4{extra}", base, "bfloat16", *shape, changes={**NF4, **more}))
            slow = SLOW[base]
            cases.append(Case(f"{base} bfloat16{extra}", base, "bfloat16", *slow, 16, changes={**BF16, **more}))
    small, middle, wide = "llama-32m", "qwen2-115m", "llama-wide-vocabulary"
    dora, rank = {"adapter.use_dora": True}, {"adapter.r": 256, "adapter.lora_alpha": 256}
    return [
        *cases,
        Case("longer rows", small, length=1024),
        Case("longer rows, checkpointing", small, length=1024, changes=CHECKPOINTING),
        Case("longer rows, eager", small, length=1024, changes={"model.attention": "eager"}),
        Case("one row", small, batch=1, length=1024),
        Case("large batch", small, batch=16),
        Case("large batch, checkpointing", small, batch=16, changes=CHECKPOINTING),
        Case("large evaluation batch", small, changes={"train.per_device_eval_batch_size": 32, **CHECKPOINTING}),
        Case("accumulation", small, changes={"train.gradient_accumulation_steps": 4}),
        Case("all tokens supervised", middle, supervised=255),
        Case("wide vocabulary, all supervised", wide, supervised=255),
        Case("wide vocabulary, bfloat16", wide, "bfloat16", 1, 128, 64, BF16),
        Case("no dropout", small, batch=4, changes={"adapter.lora_dropout": 0.0}),
        Case("two targets", small, batch=4, changes={"adapter.target_modules": ["q_proj", "v_proj"]}),
        Case("dora", small, batch=4, changes=dora),
        Case("dora, bfloat16", small, "bfloat16", 2, 64, changes={**BF16, **dora}),
        Case("dora, nf4, checkpointing", small, "bfloat16", 4, changes={**NF4, **dora, **CHECKPOINTING}),
        Case("rank 256", small, changes=rank),
        Case("rank 256, sgd", small, changes={**rank, "train.optim": "sgd"}),
        Case("rank 256, adafactor", small, changes={**rank, "train.optim": "adafactor"}),
        Case("rank 256, 8-bit Adam", small, changes={**rank, "train.optim": "adamw_8bit"}),
        Case("autocast", middle, length=64, changes=AUTOCAST),
        Case("autocast, checkpointing", middle, length=64, changes={**AUTOCAST, **CHECKPOINTING}),
        Case("bfloat16 file into float32", "mistral-420m", "bfloat16", 1, 32, 16),
    ]


def cuda_grid() -> list[Case]:
    """Return the real architectures with the settings of the recipes."""
    cases = []
    for name in (
        "mistralai/Mistral-7B-Instruct-v0.3",
        "meta-llama/Llama-3.2-3B-Instruct",
        "Qwen/Qwen2.5-Coder-7B-Instruct",
        "meta-llama/Llama-2-7b-chat-hf",
    ):
        for kind, changes in (("bfloat16", BF16), ("nf4", {**BF16, **NF4})):
            common = {**changes, "train.bf16": True, "train.optim": "paged_adamw_8bit", **CHECKPOINTING}
            cases.append(Case(f"{name} {kind} 4x4096", name, "bfloat16", 4, 4096, 1024, common))
            cases.append(Case(f"{name} {kind} 1x2048", name, "bfloat16", 1, 2048, 512, common))
        plain = {**BF16, **NF4, "train.bf16": True}
        cases.append(Case(f"{name} nf4 1x1024 no checkpointing", name, "bfloat16", 1, 1024, 256, plain))
    return cases
