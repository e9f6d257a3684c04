"""Check that the evidence is sound: it belongs to one run, and no test example was used for training.

No verdict is reached on unsound evidence, whatever the numbers are.
"""

from collections.abc import Iterable, Sequence

from finetune.config.decide import DecideConfig, DecideParams
from finetune.decide.run_reports import RunReports
from finetune.errors import DataError
from finetune.files.hashing import sha256_file, sha256_json
from finetune.files.manifests import read_manifest
from finetune.paths import Paths
from finetune.records.examples import Example, Prediction, text_key
from finetune.records.io import read_examples
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport
from finetune.reports.evaluation import EvaluationReport
from finetune.reports.prepare import PrepareReport

DECODING = ("do_sample", "temperature", "top_p", "num_beams", "max_new_tokens")  # must not differ between the sides


def check_evidence(params: DecideParams, paths: Paths, reports: RunReports, predictions: Sequence[Prediction]) -> None:
    """Raise DataError unless adapter, test set, predictions and reports belong to the same run and nothing leaks."""
    test = read_examples(paths.prepared / "test.jsonl")
    check_hashes(paths, reports)
    check_scorers(params, reports.evaluation)
    check_decoding(reports.evaluation)
    if [item.id for item in predictions] != [example.id for example in test]:
        raise DataError(paths.predictions, "contains answers to a different test set", "run evaluate again")
    leaks = leaked(read_examples(paths.prepared / "train.jsonl"), test)
    if leaks:
        what = f"{len(leaks)} test prompts also occur in train ({leaks[0]}…)"
        raise DataError("data/prepared", what, "run prepare again")
    if reports.validation.errors:
        what = "contains errors, such as test rows in train or more lost tokens than the budget allows"
        raise DataError("reports/validation.json", what, "run validate again")


def leaked(train: Iterable[Example], held_out: Iterable[Example]) -> list[str]:
    """Return the ids of held-out examples whose prompt is also in train."""
    known = {text_key(example.prompt) for example in train}
    return [example.id for example in held_out if text_key(example.prompt) in known]


def check_hashes(paths: Paths, reports: RunReports) -> None:
    """Raise DataError unless every hash in the reports matches the current file."""
    evaluation, ledger, cost = reports.evaluation, reports.prepare, reports.cost
    manifest = read_manifest(paths.adapter)
    test = paths.prepared / "test.jsonl"
    if not evaluation.test_sha256 == ledger.prepared_sha256["test"] == sha256_file(test):
        raise DataError(test, "is not the evaluated test set", "run evaluate again")
    if not evaluation.adapter_sha256 == manifest["adapter_sha256"] == reports.train.adapter_sha256:
        raise DataError(paths.adapter, "is not the evaluated adapter", "run evaluate again")
    if not manifest["prepared_sha256"] == ledger.prepared_sha256 == reports.validation.prepared_sha256:
        raise DataError(paths.adapter, "was trained on different splits", "run train again (dvc repro)")
    if evaluation.predictions_sha256 != sha256_file(paths.predictions):
        raise DataError(paths.predictions, "is not the file that evaluate wrote", "run evaluate again")
    if cost.adapter_sha256 != evaluation.adapter_sha256 or cost.latency_sha256 != sha256_file(paths.latency):
        raise DataError(paths.latency, "was not measured with the evaluated adapter", "run evaluate again")


def check_scorers(params: DecideParams, evaluation: EvaluationReport) -> None:
    """Raise DataError unless the answers were scored with the current scorers of params.yaml."""
    configured = {name: scorer.model_dump(mode="json") for name, scorer in params.evaluate.scorers.items()}
    if configured != evaluation.scorers:
        names = sorted({*configured, *evaluation.scorers})
        changed = ", ".join(name for name in names if configured.get(name) != evaluation.scorers.get(name))
        raise DataError("reports/evaluation.json", f"was made with different scorers ({changed})", "run evaluate again")


def check_decoding(evaluation: EvaluationReport) -> None:
    """Raise DataError if the sides were decoded with different settings; those of a recorded side are unknown."""
    mine, theirs = evaluation.generation, evaluation.baseline_generation
    if theirs is None:
        return
    if other := ", ".join(key for key in DECODING if mine.get(key) != theirs.get(key)):
        what = f"baseline and candidate used different generation settings ({other})"
        raise DataError("reports/evaluation.json", what, "run evaluate again")


def require_current(decision: DecisionReport, paths: Paths, decide: DecideConfig) -> None:
    """Raise DataError if adapter, test set or gate differ from those of the decision."""
    now = {
        "adapter_sha256": read_manifest(paths.adapter)["adapter_sha256"],
        "test_sha256": read_report(paths.reports / "prepare.json", PrepareReport).prepared_sha256["test"],
        "gate_sha256": sha256_json(decide.model_dump(mode="json")),
    }
    names = {"adapter_sha256": "adapter", "test_sha256": "test set", "gate_sha256": "section decide of params.yaml"}
    changed = [names[key] for key, value in now.items() if getattr(decision, key) != value]
    if changed:
        what = f"was made with a different {' and a different '.join(changed)}"
        raise DataError(paths.reports / "decision.json", what, "run make repro")
