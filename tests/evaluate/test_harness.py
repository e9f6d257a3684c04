"""Forgetting, measured by the lm-evaluation-harness on a custom task."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import Config, params_of
from finetune.errors import ConfigError
from finetune.evaluate import stage
from finetune.evaluate.harness import measure_forgetting, pair, scores_of_task
from finetune.evaluate.sides import open_sides
from finetune.files.strict_json import read_json
from finetune.records.io import read_examples
from finetune.train import stage as train_stage
from tests.builders.small_run import params, parse_config, validated

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_only_scores_between_0_and_1_are_means() -> None:
    """Pairs, perplexities and scores of some documents only are not means over documents."""
    rows: list[dict[str, Any]] = [
        {"doc_id": 0, "metrics": ["acc", "ppl", "pair"], "acc": 1.0, "ppl": 12.0, "pair": (1, 2)},
        {"doc_id": 1, "metrics": ["acc", "some"], "acc": True, "some": 0.5},
    ]
    assert scores_of_task(rows) == {"acc": {0: 1.0, 1: 1.0}}


def test_filters_of_one_task_are_distinguished() -> None:
    """A document under two filters has two scores; the second does not replace the first."""
    rows = [
        {"doc_id": 0, "metrics": ["match"], "match": score, "filter": name}
        for name, score in (("none", 0.5), ("strict", 0.0), ("lenient", 1.0))
    ]
    assert scores_of_task(rows) == {"match": {0: 0.5}, "match, strict": {0: 0.0}, "match, lenient": {0: 1.0}}


def test_the_difference_has_an_interval(config: Config) -> None:
    """With ten of sixty documents lost, the interval is completely below zero."""
    found = pair("acc", [1.0] * 60, [0.0] * 10 + [1.0] * 50, config)
    assert (found["examples"], found["baseline"]) == (60, 1.0)
    assert found["lower"] < found["candidate"] - found["baseline"] < found["upper"] < 0


@pytest.mark.slow
def test_both_sides_get_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the harness runs on base and adapter; an unknown task is reported before anything runs."""
    config, paths = validated(tmp_path / "work")
    train_stage.run(params_of("train", config), paths)
    rows = Path("words.jsonl").absolute()
    documents = [{"question": f"word {at} number", "choices": ["d", "e", "WORD"], "answer": at % 3} for at in range(24)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    tasks = Path("scorers/tasks")
    tasks.mkdir(parents=True)
    (tasks / "words.yaml").write_text(TASK.format(name="words", rows=rows), encoding="utf-8")
    request = {"tasks": ["words"], "folder": "scorers/tasks", "limit": 20}
    monkeypatch.setattr("finetune.evaluate.cost.measure_memory", lambda *_: [10**8] * 3)
    stage.run(params_of("evaluate", parse_config(params(evaluate__forgetting=request), "params.yaml")), paths)
    found = read_json(paths.reports / "evaluation.json")["forgetting"]["tasks"]["words: acc"]
    assert found["examples"] == 20
    assert 0 <= found["baseline"] <= 1 and 0 <= found["candidate"] <= 1
    assert found["lower"] <= found["candidate"] - found["baseline"] <= found["upper"]

    missing = parse_config(params(evaluate__forgetting=request | {"tasks": ["wrods"]}), "params.yaml")
    examples = read_examples(paths.prepared / "test.jsonl")
    with pytest.raises(ConfigError, match=r"evaluate.forgetting.tasks: unknown task wrods"):
        measure_forgetting(missing, open_sides(config, paths, "cpu", examples), Path())
