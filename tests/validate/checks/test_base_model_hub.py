"""A base of the Hub that is cached, partly cached or missing, and validate's reaction."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.config.params import params_of, parse_config
from finetune.validate.checks.base_model import examine_base
from tests.builders.checked_base import examine
from tests.builders.checked_base import whole as whole
from tests.builders.small_run import params, workspace

COMMIT = "a1" * 20
Cache = Callable[..., Path]


# ---- A base of the Hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """`cache("config.json")`: make a Hugging Face cache with only these files of `org/name` at COMMIT."""
    import huggingface_hub.constants
    from transformers.utils import hub

    monkeypatch.chdir(tmp_path)
    home = tmp_path / "hub"
    home.mkdir()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if hasattr(huggingface_hub.constants, name):
            monkeypatch.setattr(huggingface_hub.constants, name, str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for module in (huggingface_hub._snapshot_download, huggingface_hub.file_download, hub):
        for name in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def filled(whole: Path, *names: str) -> Path:
        snapshot = home / "models--org--name/snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for name in names:
            shutil.copy(whole / name, snapshot / name)
        return snapshot

    return filled


def files_of(whole: Path) -> set[str]:
    """Return all files of the base."""
    return {path.name for path in whole.iterdir()}


def test_a_cached_base_is_equivalent_to_a_folder(whole: Path, cache: Cache) -> None:
    """A cached base has no finding; its identity is the commit."""
    cache(whole, *files_of(whole))
    known = examine(model__base="org/name", model__revision=COMMIT)
    assert known.findings == []
    assert known.identity == {"name": "org/name", "revision": COMMIT}
    assert known.architecture is not None and known.tokenizer is not None


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "it has no vocabulary"),
        ("config.json", "no config.json in the folder org/name"),
        ("chat_template.jinja", "org/name has no chat template"),
    ],
)
def test_a_partly_cached_base_is_a_finding(whole: Path, cache: Cache, missing: str, what: str) -> None:
    """A download was interrupted, and offline it cannot be completed."""
    cache(whole, *(files_of(whole) - {missing}))
    known = examine(model__base="org/name", model__revision=COMMIT)
    assert any(what in finding.message for finding in known.findings), known.findings
    assert {finding.code for finding in known.findings} <= {"base-missing", "base-incomplete", "template-missing"}


def test_downloadable_weights_cause_no_finding(whole: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may precede the download of the base; online, train fetches missing files."""
    cache(whole, *(files_of(whole) - {"model.safetensors"}))
    config = parse_config(params(model__base="org/name", model__revision=COMMIT), "params.yaml")
    assert examine_base(config, Path(), fetch=False).findings == []
    assert [finding.code for finding in examine_base(config, Path()).findings] == ["base-incomplete"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert examine_base(config, Path(), fetch=False).findings == []


@pytest.mark.parametrize("name", ["org/name", "name", "base.safetensors"])
def test_a_missing_base_is_one_finding(cache: Cache, name: str) -> None:
    """Without folder, cache and network there is exactly one finding, although many checks need the base."""
    (finding,) = examine(model__base=name, model__revision=COMMIT).findings
    assert finding.code == "base-missing"
    assert finding.message.startswith(f"{name}: no config.json in the folder {name}")


@pytest.mark.parametrize("name", ["models/org/name", "../x y", "/nowhere/base"])
def test_a_path_that_is_not_a_folder_is_reported_as_such(cache: Cache, name: str) -> None:
    """A mistyped path cannot be fixed by a pin."""
    (finding,) = examine(model__base=name).findings
    assert str(finding) == (
        f"params.yaml: model.base: {name}: not a folder, and not a Hub name like org/name; fix the path"
    )


def test_a_base_of_the_hub_must_be_pinned(whole: Path, cache: Cache) -> None:
    """The base is cached, but a later download of the same name may be another model."""
    cache(whole, *files_of(whole))
    first, second = examine(model__base="org/name").findings
    assert str(first) == (
        "params.yaml: model.revision: org/name is not a local folder, and without a revision the "
        "same name may refer to a different model later; set it to the 40 hex digits of a commit "
        "(./finetune pin)"
    )
    assert (first.code, second.code) == ("base-unpinned", "base-missing")


# ---- Through the stage


@pytest.mark.slow
def test_validate_runs_every_check_and_then_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Problems of base, settings, steps and rows are reported together, so that they can be fixed together."""
    from finetune.prepare import stage as prepare

    monkeypatch.chdir(tmp_path)
    wrong: dict[str, Any] = {"train__warmup_steps": 500, "train__effective_batch_size": 9, "train__max_length": 30}
    wrong |= {"train__fp16": True, "adapter__target_modules": ["q_proj", "nothing"]}
    wrong |= {"findings__accept": {"effective-batch-differs": "a trial"}}
    config, paths = workspace(tmp_path / "run", **wrong)
    prepare.run(params_of("prepare", config), paths)
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["validate"]) == 2
    output = capsys.readouterr().err
    report = json.loads((paths.reports / "validation.json").read_text(encoding="utf-8"))
    errors = [finding for finding in report["findings"] if finding["severity"] == "error" and not finding["accepted"]]
    expected = {"base-incomplete", "fp16-needs-cuda", "target-modules-missing", "truncated-over-budget"}
    assert {finding["code"] for finding in errors} >= expected | {"warmup-too-long"}
    assert report["errors"] == len(errors)
    for finding in errors:
        assert f"{finding['place']}: {finding['message']}; {finding['remedy']}" in output
    assert "effective-batch-differs" not in [finding["code"] for finding in errors]
    assert "accepted: a trial" in (paths.reports / "validation.md").read_text(encoding="utf-8")
    assert not paths.validated.exists()


@pytest.mark.slow
def test_an_unusable_base_stops_validate_with_its_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other checks still run without config and tokenizer."""
    from finetune.prepare import stage as prepare

    monkeypatch.chdir(tmp_path)
    config, paths = workspace(tmp_path / "run", train__warmup_steps=500)
    prepare.run(params_of("prepare", config), paths)
    shutil.rmtree("base")
    assert main(["validate"]) == 2
    output = capsys.readouterr().err
    assert "model.base: base: no config.json" in output
    assert "train.warmup_steps: 500 is more than" in output
    assert "Traceback" not in output


def test_config_and_tokenizer_are_fetched_from_the_hub(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """validate fetches config and tokenizer of a base that is not cached; train fetches the weights."""
    from finetune.validate.checks import base_model

    asked: list[Any] = []
    monkeypatch.setattr(base_model, "hub_answers", lambda: True)
    monkeypatch.setattr(base_model, "fetch_config", lambda model: asked.append(("config", model.base)))
    monkeypatch.setattr(base_model, "load_tokenizer", lambda model, fetch: asked.append(("tokenizer", fetch)))
    examine(model__base="org/name", model__revision=COMMIT)
    assert asked == [("config", "org/name"), ("tokenizer", True)]
    asked.clear()
    examine(model__base="org/name")  # unpinned, so nothing is fetched
    assert asked == [("tokenizer", False)]


def test_a_missing_network_is_detected_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's library alone would retry six times for most of a minute before it gives up."""
    from huggingface_hub import constants

    from finetune.model.base import hub_answers

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port, where no server listens
    started = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - started < 30
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()
