"""train: TRL's SFTTrainer and PEFT on what validate wrote."""
