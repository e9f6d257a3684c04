"""A reproducible LoRA/QLoRA fine-tuning pipeline: prepare, validate, train, evaluate, decide."""

VERSION = "0.1.0"
