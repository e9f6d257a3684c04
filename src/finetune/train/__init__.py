"""train: run TRL's SFTTrainer and PEFT on the data of validate."""
