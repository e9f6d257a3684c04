"""A fresh process that loads the candidate, answers one batch of the longest test prompts, and prints its peak memory.

`evaluate` runs it in the working tree: `python -m finetune.evaluate.memory_probe`.
"""

import json
from pathlib import Path

from finetune.config.evaluate import EvaluateParams
from finetune.config.loading import load_params
from finetune.console import quiet_libraries
from finetune.paths import Paths


def main() -> None:
    """Print `{"peak_memory_bytes": …}`."""
    quiet_libraries()
    params, paths = load_params(Path("params.yaml"), EvaluateParams), Paths()

    from finetune.evaluate.answers import batches_by_length
    from finetune.evaluate.generate import generate
    from finetune.evaluate.local import LocalSide
    from finetune.evaluate.sides import open_candidate
    from finetune.hardware.devices import peak_memory_bytes, require_device
    from finetune.records.io import read_examples

    side = open_candidate(params, paths, require_device(params.environment))
    assert isinstance(side, LocalSide)
    found = [side.prompt(example) for example in read_examples(paths.prepared / "test.jsonl")]
    prompts = [prompt for prompt in found if isinstance(prompt, list)]
    longest = next(batches_by_length([len(prompt) for prompt in prompts], params.evaluate.memory.batch_size))
    with side.active() as model:
        generate(model, [prompts[at] for at in longest], side.settings)
    print(json.dumps({"peak_memory_bytes": peak_memory_bytes(params.environment)}))


if __name__ == "__main__":
    main()
