"""The decide stage judges valid evidence, reports it, and refuses evidence that is not of one run."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.gate import show_decision
from finetune.config.params import params_of
from finetune.decide import stage
from finetune.errors import DataError
from finetune.files.atomic import publish_directory, write_json, write_lines
from finetune.files.hashing import sha256_file
from finetune.files.manifests import write_manifest
from finetune.files.strict_json import read_json
from finetune.history.seed_results import adapter_inputs_hash, record_seed, seeds_key
from finetune.paths import Paths
from finetune.pipeline.outputs import md5
from finetune.records.io import to_json_lines
from tests.builders.decided_run import Run
from tests.builders.decided_run import sound as sound
from tests.builders.gates import predicted, timings
from tests.builders.kinds import MakeExample
from tests.builders.whole_reports import whole

# ---- The stage


def test_valid_evidence_is_decided_and_reported(sound: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Valid evidence passes; page, card and gate give the same verdict, and a second run the same bytes."""
    decision = sound.decide()
    assert (decision["verdict"], decision["passed"], decision["look"]) == ("deploy", 3, 1)
    assert [item["status"] for item in decision["criteria"]] == ["pass"] * 3
    assert (decision["adapter_sha256"], decision["policy"]) == ("a" * 64, "interval")
    assert read_json(sound.paths.looks) == {decision["test_sha256"]: ["a" * 64]}

    html = (sound.paths.reports / "report.html").read_text(encoding="utf-8")
    card = sound.paths.model_card.read_text(encoding="utf-8")
    assert ">Deploy</h1>" in html
    assert "**Deploy: " in card
    assert (sound.paths.reports / "summary.md").read_text(encoding="utf-8").startswith("#")

    assert sound.decide() == decision
    assert (sound.paths.reports / "report.html").read_text(encoding="utf-8") == html
    assert sound.paths.model_card.read_text(encoding="utf-8") == card
    capsys.readouterr()
    assert show_decision(sound.paths, sound.config) == 0
    assert capsys.readouterr().out.startswith("deploy: All 3 criteria pass: deploy this adapter.\n")


def test_a_changed_test_set_is_refused(sound: Run) -> None:
    """Removing a hard example after the evaluation would raise every score."""
    write_lines(sound.paths.prepared / "test.jsonl", to_json_lines(sound.test[1:]))
    assert sound.refusal() == OTHER_TEST


AGAIN = "run evaluate again"
OTHER_SCORERS = {"exact_match": {"scorer": "contains", "of": None, "ignore_case": True}}
OTHER_TEST = f"ROOT/data/prepared/test.jsonl: is not the evaluated test set; {AGAIN}"
OTHER_ADAPTER = f"ROOT/out/adapter: is not the evaluated adapter; {AGAIN}"
ERRORS = "reports/validation.json: contains errors, such as test rows in train or more lost tokens than the "
ERRORS += "budget allows; run validate again"


@pytest.mark.parametrize(
    ("keys", "value", "refusal"),
    [
        (("evaluation", "test_sha256"), "0" * 64, OTHER_TEST),
        (("prepare", "prepared_sha256", "test"), "0" * 64, OTHER_TEST),
        (("train", "adapter_sha256"), "b" * 64, OTHER_ADAPTER),
        (("evaluation", "adapter_sha256"), "b" * 64, OTHER_ADAPTER),
        (("validation", "errors"), 1, ERRORS),
        (("validation", "prepared_sha256", "test"), "0" * 64, "ROOT/out/adapter: was trained on different splits"),
        (("evaluation", "scorers"), OTHER_SCORERS, "reports/evaluation.json: was made with different scorers (exact"),
    ],
)
def test_reports_of_another_run_are_refused(sound: Run, keys: tuple[str, ...], value: Any, refusal: str) -> None:
    """The files are right but a report is about other files: a stage used other inputs, or found errors."""
    sound.edit(*keys, value=value)
    assert sound.refusal().startswith(refusal)


def test_changed_predictions_are_refused(sound: Run) -> None:
    """A single answer corrected by hand is detected."""
    predictions = sound.predict()
    mended = predicted("ValueError", "wrong", id=predictions[-1].id)
    write_lines(sound.paths.predictions, to_json_lines([*predictions[:-1], mended]))
    assert sound.refusal() == "ROOT/out/predictions.jsonl: is not the file that evaluate wrote; run evaluate again"


def test_answers_to_another_test_set_are_refused(sound: Run) -> None:
    """The hash is right, but one example has no answer: a score of the rest would be a selection."""
    sound.write(sound.predict()[:-1])
    assert sound.refusal() == "ROOT/out/predictions.jsonl: contains answers to a different test set; run evaluate again"


def test_a_republished_adapter_is_refused(sound: Run) -> None:
    """The folder is complete and its manifest valid, but the reports are about another adapter."""
    with publish_directory(sound.paths.adapter) as folder:
        (folder / "adapter_model.safetensors").write_bytes(bytes(200))
        write_manifest(folder, {"adapter_sha256": "b" * 64})
    assert sound.refusal() == OTHER_ADAPTER


def test_a_modified_adapter_is_refused(sound: Run) -> None:
    """The manifest contains the hash of every file."""
    path = sound.paths.adapter / "adapter_model.safetensors"
    path.write_bytes(bytes(99) + b"\x01")
    assert sound.refusal().startswith("ROOT/out/adapter/adapter_model.safetensors: differs from the published file")


def test_a_leaked_prompt_is_refused(sound: Run, example: MakeExample) -> None:
    """The copy may differ in white space and answer: it was still trained on."""
    sound.train.append(example(" test  3\n", "another answer"))
    sound.write(sound.predict())
    leak = sound.test[3].id
    assert sound.refusal() == f"data/prepared: 1 test prompts also occur in train ({leak}…); run prepare again"


@pytest.mark.parametrize("key", ["do_sample", "max_new_tokens", "temperature"])
def test_sides_with_different_decoding_are_refused(sound: Run, key: str) -> None:
    """A baseline with fewer tokens or with sampling is not comparable; a recorded one is accepted."""
    sound.edit("evaluation", "baseline_generation", key, value=9)
    assert sound.refusal() == (
        f"reports/evaluation.json: baseline and candidate used different generation settings ({key}); run "
        "evaluate again"
    )
    sound.edit("evaluation", "baseline_generation", value=None)
    assert sound.decide()["verdict"] == "deploy"


def test_a_latency_of_another_adapter_is_refused(sound: Run) -> None:
    """Latencies of another adapter and edited times are refused."""
    sound.edit("cost", "adapter_sha256", value="b" * 64)
    assert "was not measured with the evaluated adapter" in sound.refusal()
    sound.edit("cost", "adapter_sha256", value="a" * 64)
    write_lines(sound.paths.latency, to_json_lines(timings(0.1)))
    assert "was not measured with the evaluated adapter" in sound.refusal()


def test_the_required_number_of_seeds_is_enforced(sound: Run) -> None:
    """Two seeds must pass: without the other one on record the verdict is iterate, with it deploy."""
    sound.config = sound.change(decide={**sound.config.decide.model_dump(mode="json"), "seeds": 2})
    decision = sound.decide()
    assert (decision["verdict"], decision["criteria"][-1]["status"]) == ("iterate", "unmeasured")
    assert "./finetune seeds --count 2" in decision["suggestions"][-1]["text"]
    passed = {item["criterion"]: {"status": "pass", "estimate": 1.0} for item in decision["criteria"][:-1]}
    key = seeds_key(sound.config.model_dump(mode="json", by_alias=True))
    result = {"adapter_sha256": "b" * 64, "test_sha256": decision["test_sha256"], "verdict": "iterate"}
    result |= {"criteria": passed, "policy": "interval", "confidence": 0.95}
    result["makings_sha256"] = adapter_inputs_hash(read_json(sound.paths.adapter / "manifest.json"))
    record_seed(sound.paths.seeds, key, 43, result)
    assert sound.decide()["verdict"] == "deploy"


def test_too_little_evidence_names_the_required_size(sound: Run) -> None:
    """The advice is part of the decision, so that programs can read it."""
    sound.write([predicted("ValueError", "ValueError", id=one.id) for one in sound.test])
    decision = sound.decide()
    assert decision["verdict"] == "iterate"
    assert {item["code"] for item in decision["suggestions"]} == {"more-data"}
    summary = (sound.paths.reports / "summary.md").read_text(encoding="utf-8")
    assert "add training examples of namer" in summary


@pytest.mark.parametrize(
    "name",
    [
        *(f"reports/{name}.json" for name in ("prepare", "validation", "train", "train_cost", "evaluation", "cost")),
        *("reports/curves.tsv", "reports/validation_curve.tsv", "out/predictions.jsonl", "out/latency.jsonl"),
        *("out/adapter/manifest.json", "data/prepared/train.jsonl", "data/prepared/test.jsonl"),
    ],
)
def test_missing_evidence_is_reported_and_not_judged(sound: Run, name: str) -> None:
    """Incomplete evidence is not judged, and the missing file is named without a traceback."""
    (sound.paths.root / name).unlink()
    assert sound.refusal().startswith(f"ROOT/{name}: ")


def test_a_second_candidate_is_a_second_test_set_use(sound: Run) -> None:
    """One use was declared: the next adapter needs a fresh test set, however good it is."""
    write_json(sound.paths.looks, {sha256_file(sound.paths.prepared / "test.jsonl"): ["b" * 64]})
    decision = sound.decide()
    assert (decision["verdict"], decision["look"], decision["passed"]) == ("iterate", 2, 3)
    assert decision["suggestions"][0]["code"] == "fresh-test-set"


def test_an_adapter_of_other_splits_is_refused(sound: Run) -> None:
    """With rows prepared under another seed, the test set contains examples the adapter was trained on."""
    with publish_directory(sound.paths.adapter) as folder:
        write_manifest(folder, {"adapter_sha256": "a" * 64, "prepared_sha256": {"test": "another"}})
    assert sound.refusal() == "ROOT/out/adapter: was trained on different splits; run train again (dvc repro)"


# ---- The exit code


@pytest.mark.parametrize(("verdict", "code"), [("deploy", 0), ("iterate", 10), ("deploy-unproven", 10), ("abort", 20)])
def test_the_gate_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: str, code: int) -> None:
    """Only deploy exits with 0, so that CI ships nothing unproven."""
    content = {"verdict": verdict, "sentence": "A sentence.", "reasons": ["fail: a [bold] reason"]}
    write_json(tmp_path / "reports/decision.json", whole("decision", content))
    assert show_decision(Paths(tmp_path), None) == code
    assert capsys.readouterr().out.splitlines()[:2] == [f"{verdict}: A sentence.", "  fail: a [bold] reason"]


@pytest.mark.parametrize("changed", ["adapter", "test set", "section decide of params.yaml"])
def test_an_outdated_verdict_does_not_pass_the_gate(sound: Run, changed: str) -> None:
    """After new training, new rows or a changed gate, the old deploy verdict no longer applies."""
    assert sound.decide()["verdict"] == "deploy"
    if changed == "adapter":
        with publish_directory(sound.paths.adapter) as folder:
            write_manifest(folder, {"adapter_sha256": "b" * 64})
    elif changed == "test set":
        sound.edit("prepare", "prepared_sha256", "test", value="0" * 64)
    else:
        sound.config = sound.change(decide={**sound.config.decide.model_dump(mode="json"), "confidence": 0.99})
    with pytest.raises(DataError, match=f"was made with a different {changed}; run make repro"):
        show_decision(sound.paths, sound.config)
    assert show_decision(sound.paths, None) == 0  # finetune report still shows it


def locked(run: Run) -> dict[str, Any]:
    """Return the dvc.lock that DVC would write after decide, ready to be changed."""
    made = {"evaluate": ["reports/evaluation.json"], "decide": ["reports/decision.json"]}
    root = run.paths.root
    hashes = {stage: [{"path": name, "md5": md5(root / name)} for name in names] for stage, names in made.items()}
    stages = {stage: {"cmd": "x", "outs": outs} for stage, outs in hashes.items()}
    stages["decide"]["deps"] = [dict(out) for out in hashes["evaluate"]]
    return {"schema": "2.0", "stages": stages}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("damaged", "reports/decision.json: differs from dvc.lock; run make repro; .* dvc repro -f -s decide"),
        ("removed", "reports/evaluation.json: is missing; run make repro"),
        ("stale", "reports/evaluation.json: was changed after decide had used it; run make repro"),
        ("no hash", "dvc.lock: is missing, broken or lists no outputs"),
        ("no list", "dvc.lock: is missing, broken or lists no outputs"),
    ],
)
def test_files_of_another_run_do_not_pass_the_gate(sound: Run, harm: str, told: str) -> None:
    """DVC checks out damaged objects of its cache as up to date; the gate hashes the files itself."""
    sound.decide()
    report, evaluation = (sound.paths.reports / name for name in ("decision.json", "evaluation.json"))
    lock, path = locked(sound), sound.paths.root / "dvc.lock"
    path.write_text(json.dumps(lock), encoding="utf-8")
    assert show_decision(sound.paths, sound.config) == 0
    if harm == "damaged":
        report.write_text(report.read_text(encoding="utf-8").replace("0", "1", 1), encoding="utf-8")
    elif harm == "removed":
        evaluation.unlink()
    elif harm == "stale":  # as after `dvc repro -f -s evaluate`
        lock["stages"]["decide"]["deps"][0]["md5"] = "0" * 32
    elif harm == "no hash":
        del lock["stages"]["decide"]["outs"][0]["md5"]
    else:
        lock["stages"]["decide"]["outs"] = [3]
    path.write_text(json.dumps(lock), encoding="utf-8")
    with pytest.raises(DataError, match=told):
        show_decision(sound.paths, sound.config)


def test_an_invalid_decision_is_reported(tmp_path: Path) -> None:
    """A flipped bit in the verdict's name gives an error, not a crash."""
    write_json(tmp_path / "reports/decision.json", whole("decision", {"verdict": "deplox"}))
    told = r"decision.json: verdict: input should be 'deploy'.*; run its stage again"
    with pytest.raises(DataError, match=told) as caught:
        show_decision(Paths(tmp_path), None)
    assert caught.value.problem.code == "report-version"


def test_a_refusal_removes_the_old_verdict(sound: Run) -> None:
    """If the evidence changes after a decision, the refusal removes the old decision."""
    sound.decide()
    sound.edit("validation", "errors", value=1)
    with pytest.raises(DataError):
        stage.run(params_of("decide", sound.config), sound.paths)
    assert not (sound.paths.reports / "decision.json").exists()


def test_the_gate_fails_without_a_decision(tmp_path: Path) -> None:
    """Without a decision the gate fails; otherwise anything could ship."""
    with pytest.raises(DataError, match=r"decision.json: no such file; run the stage that writes it"):
        show_decision(Paths(tmp_path), None)
