"""A reproducible LoRA/QLoRA fine-tuning pipeline: prepare, validate, train, evaluate, decide."""
