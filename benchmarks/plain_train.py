"""The peer of train: the same fine-tuning in a plain TRL script, as written from TRL's documentation.

    python benchmarks/plain_train.py params.yaml data/validated out/ grouped

Load the base model and the tokenized rows (columns input_ids and labels), add LoRA with SFTTrainer, train, save.
Learning rate, epochs, batch, seed and adapter are those of params.yaml; everything else is TRL's default except for one
of SETTINGS. TRL 1.16 checkpoints activations by default, draws rows at random and pads a batch to its longest row.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from train_sides import SAME
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

KEEP: dict[str, Any] = {"gradient_checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing": KEEP,
    "grouped": {**KEEP, "train_sampling_strategy": "group_by_length"},
    "packed": {**KEEP, "packing": True, "eval_packing": False},
}
LIKE_OURS = (*SAME, "max_length")


def load_model(params: dict[str, Any]) -> Any:
    """Load the base model in the number format and quantization of params.yaml."""
    model, dtype = params["model"], getattr(torch, params["model"]["dtype"])
    quantization = None
    if model["quantization"] == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(
        model["base"],
        dtype=dtype,
        quantization_config=quantization,
        attn_implementation=model["attention"],
        device_map={"": params["environment"]},
    )


def rows_a_pack(rows: Dataset, length: int) -> float:
    """Estimate how many rows fit into one of `length` tokens."""
    return float(length / (sum(rows["length"]) / len(rows)))


def build_trainer(params: dict[str, Any], validated: Path, out: Path, setting: str) -> SFTTrainer:
    """Build SFTTrainer on the rows, with one of SETTINGS."""
    set_seed(params["seed"])
    train, evaluation = (Dataset.from_file(str(validated / f"{name}.arrow")) for name in ("train", "validation"))
    options = {**{name: params["train"][name] for name in LIKE_OURS}, **SETTINGS[setting]}
    if setting == "packed":  # as many packs per step as contain the rows of the effective batch
        packs = options["per_device_train_batch_size"] / rows_a_pack(train, options["max_length"])
        options["per_device_train_batch_size"] = max(1, round(packs))
    arguments = SFTConfig(
        output_dir=str(out),
        seed=params["seed"],
        use_cpu=params["environment"] == "cpu",
        eval_strategy="steps",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    adapter = {name: params["adapter"][name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    columns = ["input_ids", "labels", "length"]
    return SFTTrainer(
        model=load_model(params),
        args=arguments,
        train_dataset=train.select_columns(columns),
        eval_dataset=evaluation.select_columns(columns),
        processing_class=AutoTokenizer.from_pretrained(params["model"]["base"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **adapter),
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("params", type=Path, help="params.yaml, written as JSON")
    parser.add_argument("validated", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("setting", choices=SETTINGS)
    options = parser.parse_args()
    params = json.loads(options.params.read_text(encoding="utf-8"))
    trainer = build_trainer(params, options.validated, options.out, options.setting)
    trainer.train()
    trainer.save_model(str(options.out / "adapter"))


if __name__ == "__main__":
    main()
