"""The files that decide reads, of a valid run with a good result."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import params_of
from finetune.config.scorers import metrics_of
from finetune.decide import stage
from finetune.errors import DataError
from finetune.evaluate.groups import describe_group, groups_of
from finetune.files.atomic import publish_directory, write_json, write_lines
from finetune.files.hashing import sha256_file
from finetune.files.manifests import write_manifest
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.records.examples import Prediction
from finetune.records.io import to_json_lines
from tests.builders.gates import PEAKS, better, latency, memory, predicted, timings
from tests.builders.kinds import Change, MakeExample
from tests.builders.whole_reports import SPLITS, whole

CURVES = "step\tepoch\tloss\tlearning_rate\tgradient_norm\n10\t0.5\t4.5\t0.001\t3.5\n20\t1\t2.5\t0.0005\t1.5\n"
VALIDATION_CURVE = "step\tepoch\tvalidation_loss\n20\t1\t2.75\n"
SCORERS = {"exact_match": {"scorer": "exact_match", "of": None}}


class Run:
    """The files that decide reads, in their own folder: 12 test examples, of which the candidate gains 10."""

    def __init__(self, root: Path, change: Change, example: MakeExample) -> None:
        self.paths = Paths(root)
        criteria = [item.model_dump(mode="json") for item in (better(), latency(1.0), memory("2 GB"))]
        gate = {"policy": "interval", "confidence": 0.95, "looks": 1, "seeds": 1, "license": None, "criteria": criteria}
        self.change = lambda **keys: change(**{"decide": gate, "evaluate.scorers": SCORERS} | keys)
        self.config = self.change()
        self.train = [example(f"train {at}", line=at) for at in range(3)]
        self.test = [example(f"test {at}", line=at) for at in range(12)]

    def predict(self) -> list[Prediction]:
        """Return one prediction per test example; the last two are wrong on both sides."""
        words = {True: "ValueError", False: "wrong"}
        return [predicted(words[at < 10], "wrong", id=one.id) for at, one in enumerate(self.test)]

    def write(self, predictions: list[Prediction]) -> None:
        """Write all outputs of the stages before decide, of one run."""
        paths = self.paths
        for name, examples in (("train", self.train), ("validation", []), ("test", self.test)):
            write_lines(paths.prepared / f"{name}.jsonl", to_json_lines(examples))
        with publish_directory(paths.adapter) as folder:
            (folder / "adapter_model.safetensors").write_bytes(bytes(100))
            test = sha256_file(paths.prepared / "test.jsonl")
            write_manifest(folder, {"adapter_sha256": "a" * 64, "prepared_sha256": SPLITS | {"test": test}})
        write_lines(paths.predictions, to_json_lines(predictions))
        write_lines(paths.latency, to_json_lines(timings(0.5)))
        write_lines(paths.reports / "curves.tsv", [CURVES])
        write_lines(paths.reports / "validation_curve.tsv", [VALIDATION_CURVE])
        for name, content in self.reports(predictions).items():
            write_json(paths.reports / f"{name}.json", whole(name, content))

    def reports(self, predictions: list[Prediction]) -> dict[str, dict[str, Any]]:
        """Return the reports of earlier stages, with the fields that decide reads."""
        paths = self.paths
        test = sha256_file(paths.prepared / "test.jsonl")
        side = {"mean_seconds": 0.5, "p50_seconds": 0.5, "p95_seconds": 0.6, "mean_first_seconds": 0.1}
        side |= {"mean_tokens": 3, "tokens_per_second": 6}
        counts = {"supervised_tokens": 9, "tokens": 90, "lost_supervised_tokens": 0}
        source = {"read": 16, "dropped": {"exact_duplicate": 1}, "kept": 15, "risks": {}}
        metrics = metrics_of(self.config.evaluate.scorers)
        splits = {name: {"examples": size} for name, size in (("train", 3), ("validation", 0), ("test", 12))}
        groups = {name: describe_group(members, metrics) for name, members in groups_of(predictions).items()}
        plan = {"memory_bytes": {"peak": 10**9}, "flops": 1e12, "evaluation_flops": 1e11}
        prepare: dict[str, Any] = {"prepared_sha256": {"test": test}, "settings": {"sources": [{"name": "rows"}]}}
        evaluation = {"test_sha256": test, "predictions_sha256": sha256_file(paths.predictions), "groups": groups}
        validation = {"prepared_sha256": {"test": test}, "schedule": {"steps": 100}, "plan": plan}
        latency = {"prompts": 30, "baseline": side, "candidate": side, "identical_answers": 1.0}
        return {
            "prepare": prepare | {"sources": {"rows": source}, "splits": splits},
            "validation": validation | {"tokens": {"train": counts}},
            "train": {"warnings": ["the training <loss> jumped"]},
            "train_cost": {},
            "evaluation": evaluation | {"scorers": SCORERS},
            "cost": {
                "latency_sha256": sha256_file(paths.latency),
                "latency": latency,
                "memory": {"processes": 3, "largest_bytes": max(PEAKS), "bytes": list(PEAKS)},
                "versions": {"python": "3.12.0"},
            },
        }

    def decide(self) -> dict[str, Any]:
        """Run decide and return the decision."""
        stage.run(params_of("decide", self.config), self.paths)
        return read_json(self.paths.reports / "decision.json")

    def refusal(self) -> str:
        """Return the text of the DataError, with ROOT for the folder; nothing may have been written or counted."""
        with pytest.raises(DataError) as caught:
            stage.run(params_of("decide", self.config), self.paths)
        written = [self.paths.reports / "decision.json", self.paths.reports / "report.html", self.paths.model_card]
        assert not [path for path in [*written, self.paths.looks] if path.exists()]
        return str(caught.value).replace(str(self.paths.root), "ROOT")

    def edit(self, report: str, *keys: str, value: Any) -> None:
        """Change one value of a report."""
        path = self.paths.reports / f"{report}.json"
        content = read_json(path)
        at = content
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        write_json(path, content)


@pytest.fixture
def sound(
    tmp_path: Path,
    change: Change,
    example: MakeExample,
) -> Run:
    """Create a run with valid evidence and a good result."""
    run = Run(tmp_path, change, example)
    run.write(run.predict())
    return run
