"""Compare answers in batches with answers to one prompt at a time: seconds, and whether the answers are equal.

    PYTHONPATH=src python benchmarks/bench_evaluate.py [--rounds 3] [--batch-size 64]

Base model and published adapter of the finished run in this folder answer its test split in turns, in one process, with
greedy decoding. Writes `results/evaluate-DATE.json`, or the file given by --out.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from measure import results_file, what_ran

from finetune.config.params import load_config
from finetune.console import quiet_libraries, say, table
from finetune.files.atomic import write_json
from finetune.hardware.devices import require_device, synchronize
from finetune.hardware.host import calm_threads
from finetune.paths import Paths


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--examples", type=int, help="number of test examples to use (default: all)")
    parser.add_argument("--out", type=Path, default=results_file("evaluate"))
    options = parser.parse_args()
    calm_threads()
    quiet_libraries()
    config, paths = load_config(Path("params.yaml")), Paths()

    from finetune.evaluate.answers import batches_by_length
    from finetune.evaluate.generate import generate
    from finetune.evaluate.sides import open_sides
    from finetune.records.io import read_examples

    device = require_device(config.environment)
    examples = read_examples(paths.prepared / "test.jsonl")[: options.examples]
    sides = open_sides(config, paths, device, examples)
    result: dict[str, Any] = {"examples": len(examples), "batch_size": options.batch_size, "sides": {}}
    for name in ("baseline", "candidate"):
        side = getattr(sides, name)
        prompts = [side.prompt(example) for example in examples]
        plans = {
            "batched": list(batches_by_length([len(prompt) for prompt in prompts], options.batch_size)),
            "one by one": [[at] for at in range(len(prompts))],
        }

        def answer(plan: str, side: Any = side, prompts: Any = prompts, plans: Any = plans) -> dict[int, list[int]]:
            with side.active() as model:
                found = [generate(model, [prompts[at] for at in batch], side.settings) for batch in plans[plan]]
            pairs = zip(
                [at for batch in plans[plan] for at in batch], [one for many in found for one in many], strict=True
            )
            return {at: one.tokens for at, one in pairs}

        result["sides"][name] = measure(answer, options.rounds, config.environment, len(prompts))
    write_json(options.out, {**result, **what_ran(("torch", "transformers", "peft"))})
    show(result)


def measure(
    answer: Callable[[str], dict[int, list[int]]], rounds: int, environment: Any, prompts: int
) -> dict[str, Any]:
    """Return the seconds of both ways, alternating in rounds after one warmup batch, and the share of equal answers."""
    seconds: dict[str, list[float]] = {"batched": [], "one by one": []}
    answers = {}
    answer("batched")  # warm-up
    for number in range(rounds):
        for plan in ("batched", "one by one") if number % 2 else ("one by one", "batched"):
            synchronize(environment)
            started = time.perf_counter()
            answers[plan] = answer(plan)
            synchronize(environment)
            seconds[plan].append(time.perf_counter() - started)
    same = sum(answers["batched"][at] == answers["one by one"][at] for at in range(prompts)) / prompts
    ratios = [slow / fast for fast, slow in zip(seconds["batched"], seconds["one by one"], strict=True)]
    return {"seconds": seconds, "times_faster": median(ratios), "ratios": ratios, "same_answers": same}


def show(result: dict[str, Any]) -> None:
    """Print the results as a table."""
    rows = [
        [
            name,
            *(f"{median(side['seconds'][plan]):.2f} s" for plan in side["seconds"]),
            f"{side['times_faster']:.1f} ({min(side['ratios']):.1f} to {max(side['ratios']):.1f})",
            f"{side['same_answers']:.1%}",
        ]
        for name, side in result["sides"].items()
    ]
    table(f"{result['examples']} answers", ["side", "batched", "one by one", "times faster", "same answers"], rows)
    say("raw figures in benchmarks/results")


if __name__ == "__main__":
    main()
