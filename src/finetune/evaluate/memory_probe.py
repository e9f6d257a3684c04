"""A fresh process that loads the candidate, answers one batch of the longest test prompts, and prints its peak memory.

Run by `evaluate` in the working tree: `python -m finetune.evaluate.memory_probe`.
"""

import json
from pathlib import Path

from finetune.config import load_config
from finetune.console import quiet_libraries
from finetune.paths import Paths


def main() -> None:
    """Print `{"peak_memory_bytes": …}`."""
    quiet_libraries()
    config, paths = load_config(Path("params.yaml")), Paths()

    from finetune.evaluate.generate import batches_by_length, generate, generation_settings
    from finetune.machine import peak_memory_bytes, require_device
    from finetune.model.adapter import load_adapter
    from finetune.model.base import load_base
    from finetune.model.tokens import load_tokenizer, tokenize_prompt
    from finetune.records import read_examples

    device = require_device(config.environment)
    tokenizer = load_tokenizer(config.model, paths.adapter)
    model = load_adapter(load_base(config.model, device), paths.adapter)
    examples = read_examples(paths.prepared / "test.jsonl")
    prompts = [tokenize_prompt(tokenizer, example.prompt, example.tools) for example in examples]
    longest = next(batches_by_length([len(prompt) for prompt in prompts], config.evaluate.memory.batch_size))
    settings = generation_settings(model, tokenizer, config.evaluate.max_new_tokens)
    generate(model, [prompts[at] for at in longest], settings)
    print(json.dumps({"peak_memory_bytes": peak_memory_bytes(config.environment)}))


if __name__ == "__main__":
    main()
