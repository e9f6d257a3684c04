"""Compare answers to the test split with the lm-evaluation-harness on the same task: seconds, and exact match.

    PYTHONPATH=src python benchmarks/bench_lm_eval.py [--rounds 3] [--batch-size 64]

Base model and published adapter of the finished run in this folder answer its test prompts in turns, with greedy
decoding, in one process and with the same model objects. The harness gets each prompt as rendered by the template, and
"<|im_end|>" as the end.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measure import TRAINING, results_file, what_ran

from finetune.config.params import load_config
from finetune.console import quiet_libraries, say, table
from finetune.files.atomic import write_json
from finetune.hardware.devices import require_device
from finetune.hardware.host import calm_threads
from finetune.paths import Paths

TASK = """task: answers
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{rows}"}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], do_sample: false, max_gen_toks: {length}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
HARNESS = "lm-evaluation-harness"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--examples", type=int, help="number of test examples to use (default: all)")
    parser.add_argument("--out", type=Path, default=results_file("lm-eval"))
    options = parser.parse_args()
    calm_threads()
    quiet_libraries()
    logging.disable(logging.WARNING)
    config, paths = load_config(Path("params.yaml")), Paths()

    from finetune.evaluate.sides import open_sides
    from finetune.records.io import read_examples

    examples = read_examples(paths.prepared / "test.jsonl")[: options.examples]
    sides = open_sides(config, paths, require_device(config.environment), examples)
    result: dict[str, Any] = {"examples": len(examples), "batch_size": options.batch_size, "sides": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("baseline", "candidate"):
            side = getattr(sides, name)
            manager = write_task(side, examples, config.evaluate.max_new_tokens, Path(folder) / name)
            result["sides"][name] = compare(side, examples, manager, options.rounds, options.batch_size)
    write_json(options.out, {**result, **what_ran(("lm_eval", *TRAINING))})
    show(result)


def write_task(side: Any, examples: Any, length: int, folder: Path) -> Any:
    """Write the test split as a task of the harness; return the task manager that includes it."""
    from lm_eval.tasks import TaskManager

    folder.mkdir()
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for example in examples:
            prompt = side.tokenizer.decode(side.prompt(example))
            file.write(json.dumps({"prompt": prompt, "answer": example.messages[-1].content}) + "\n")
    (folder / "answers.yaml").write_text(TASK.format(rows=rows, length=length), encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def compare(side: Any, examples: Any, manager: Any, rounds: int, batch_size: int) -> dict[str, Any]:
    """Return the seconds of both, alternating in rounds after a warmup round, and the share that each scores right."""
    ways = {"ours": answer_here, HARNESS: ask_harness}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    right: dict[str, float] = {}
    for number in range(-1, rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            with side.active() as model:
                started = time.perf_counter()
                right[name] = ways[name](side, model, examples, manager, batch_size)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    ratios = [slow / fast for fast, slow in zip(seconds["ours"], seconds[HARNESS], strict=True)]
    return {"seconds": seconds, "times_faster": median(ratios), "ratios": ratios, "exact_match": right}


def answer_here(side: Any, model: Any, examples: Any, _manager: Any, batch_size: int) -> float:
    """Compute prompts, batches, answers, texts and scores, as evaluate does."""
    from finetune.evaluate.answers import batches_by_length
    from finetune.evaluate.generate import generate

    prompts = [side.prompt(example) for example in examples]
    right = 0
    for batch in batches_by_length([len(prompt) for prompt in prompts], batch_size):
        answers = generate(model, [prompts[at] for at in batch], side.settings)
        texts = [side.tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
        right += sum(
            text.strip() == examples[at].messages[-1].content.strip() for at, text in zip(batch, texts, strict=True)
        )
    return right / len(examples)


def ask_harness(side: Any, model: Any, _examples: Any, manager: Any, batch_size: int) -> float:
    """Run the harness's complete evaluation of the task, with its own requests and scores."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model_of = HFLM(pretrained=model, tokenizer=side.tokenizer, batch_size=batch_size)
    found = simple_evaluate(model_of, tasks=["answers"], task_manager=manager, bootstrap_iters=0)
    return float(found["results"]["answers"]["exact_match,none"])


def show(result: dict[str, Any]) -> None:
    """Print the results as a table."""
    rows = [
        [
            name,
            *(f"{median(side['seconds'][way]):.2f} s" for way in side["seconds"]),
            f"{side['times_faster']:.1f} ({min(side['ratios']):.1f} to {max(side['ratios']):.1f})",
            *(f"{share:.1%}" for share in side["exact_match"].values()),
        ]
        for name, side in result["sides"].items()
    ]
    heads = ["side", "ours", HARNESS, "times faster", "right, ours", "right, harness"]
    table(f"{result['examples']} answers", heads, rows)
    say("raw figures in benchmarks/results")


if __name__ == "__main__":
    main()
