"""`python -m finetune COMMAND`, which `finetune COMMAND` runs."""

from finetune.cli.main import run_and_exit

if __name__ == "__main__":
    run_and_exit()
