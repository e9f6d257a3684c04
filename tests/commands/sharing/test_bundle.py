"""The bundle: the same run gives the same bytes, it contains no secrets, and it has a bill of materials."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.sharing import archive, bundle, check_bundle, leaks, materials, members
from finetune.errors import ConfigError, DataError
from finetune.hardware.locks import Package
from tests.builders.changed_bundle import check, contents
from tests.builders.changed_bundle import copy as copy
from tests.builders.changed_bundle import made as made
from tests.builders.changed_bundle import run as run
from tests.builders.shared_run import ROOT, finished, lock, rewrite
from tests.builders.whole_reports import run_reports

# --------------------------------------------------------------------------------------------------------- the archive


def test_the_same_run_gives_the_same_bytes(run: Path, made: Path, tmp_path: Path) -> None:
    """Bundles made twice, or in another folder with other file dates, have the same hash."""
    other = Path(shutil.copytree(run, tmp_path / "else/where", ignore=shutil.ignore_patterns("bundle")))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    bundle.run(other, None, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == made.read_bytes()


def test_a_bundle_is_complete_and_machine_independent(run: Path, made: Path) -> None:
    """It has adapter, evidence, params, locks and manifests in one folder, without times, owners or modes."""
    found = contents(made)
    manifest = json.loads(found["manifest.json"])
    assert {"out/adapter/adapter_model.safetensors", "out/adapter/manifest.json", "out/model_card.md"} <= set(found)
    assert {"reports/report.html", "reports/decision.json", "reports/curves.tsv", "dvc.lock"} <= set(found)
    assert {"requirements/cpu.lock", "requirements/torch-cpu.lock", "data/looks.json", "sbom.cdx.json"} <= set(found)
    assert not any("predictions" in name or "prepared" in name for name in found)
    assert list(found)[1:] == sorted(manifest["files"])
    assert manifest["verdict"] == "deploy"
    assert made.name == f"finetune-tiny-{manifest['adapter_sha256'][:12]}.tar.gz"
    with tarfile.open(made) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o644)
            assert info.isreg()
    assert str(run).encode() not in b"".join(found.values())


def test_a_bundle_can_be_unpacked_with_tar(made: Path, tmp_path: Path) -> None:
    """The content is usable without this tool."""
    subprocess.run(["tar", "-xzf", str(made), "-C", str(tmp_path)], check=True)
    folder = tmp_path / made.name.removesuffix(".tar.gz")
    assert members.require_adapter(folder / "out/adapter")["tier"] == "bitwise"


def test_check_reports_the_content(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check reports a complete, unsigned bundle and its verdict."""
    check(made)
    told = capsys.readouterr().out
    assert "intact; 26 files of one run" in told
    assert "not signed: the bundle is intact, but its author is not verified" in told
    assert "verdict deploy: All of it passes." in told


def test_check_works_outside_of_a_repository_and_without_torch(made: Path, tmp_path: Path) -> None:
    """The receiver has only the archive and this tool."""
    code = (
        "import sys; from pathlib import Path; from finetune.commands.sharing.check_bundle import run\n"
        "run(Path(sys.argv[1]), None)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'dvc', 'scipy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, str(made)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_failure_keeps_the_old_bundle(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk or a kill, the old bundle is still in place."""
    target = tmp_path / "kept/it.tar.gz"
    bundle.run(copy, None, target)
    before = target.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "copy_bytes", full)
    with pytest.raises(OSError, match="No space"):
        bundle.run(copy, None, target)
    assert [path.name for path in target.parent.iterdir()] == ["it.tar.gz"]
    assert target.read_bytes() == before


def test_a_file_that_changes_during_packing_is_detected(copy: Path, tmp_path: Path) -> None:
    """The manifest must not list a hash of other bytes than were packed."""
    with pytest.raises(
        DataError, match=r"a: changed while it was being bundled; wait until nothing writes to it, then bundle"
    ):
        archive.write_archive(tmp_path / "x", "t", {"files": {"a": bundle.entry_of(b"one")}}, {"a": b"two"})


def test_output_may_be_a_folder_but_not_inside_an_output_of_dvc(copy: Path, tmp_path: Path) -> None:
    """A bundle inside out/adapter would change the adapter."""
    bundle.run(copy, None, tmp_path)
    assert list(tmp_path.glob("finetune-tiny-*.tar.gz"))
    with pytest.raises(ConfigError, match=r"is inside out/adapter, an output of DVC; choose another place"):
        bundle.run(copy, None, copy / "out/adapter/x.tar.gz")


# ------------------------------------------------------------------------------------------------------ what is refused


SUMMARY, LOCK, DVC = "reports/summary.md", "requirements/cpu.lock", "dvc.yaml"


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        (
            "params.yaml",
            "confidence: 0.95",
            "confidence: 0.9",
            "was made with a different section decide of params.yaml",
        ),
        ("params.yaml", "learning_rate: 2.0e-3", "learning_rate: 1.0e-3", "train differs from dvc.lock"),
        (SUMMARY, "of the adapter", "of an adapter", f"{SUMMARY}: differs from dvc.lock"),
        (LOCK, "made up", "changed", f"{LOCK}: differs from dvc.lock"),
        ("out/adapter/adapter_config.json", "tiny-base", "huge-base", "differs from the published file"),
        ("data/prepared/test.jsonl", "test", "tests", "test.jsonl: is not the evaluated test set"),
        ("out/predictions.jsonl", "1", "2", "predictions.jsonl: is not the file that evaluate wrote"),
        ("reports/decision.json", None, None, "decision.json: no such file; run the stage that writes it (dvc repro)"),
        ("out/adapter/notes.txt", None, "mine", "notes.txt: is not part of the published adapter"),
        # a token in a tokenizer's config, or in any other member; and a folder name, which reveals the author
        (DVC, "prepare has", "hf_verysecretindeed", f"{DVC}: contains the value of the environment variable HF_TOKEN"),
        (DVC, "prepare has", "{root}/data", f"{DVC}: names this repository's folder"),
    ],
)
def test_inconsistent_or_secret_content_is_not_bundled(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: str | None, after: str | None, told: str
) -> None:
    """All files must belong to the run of the verdict, and no secret is included."""
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    if after is None:
        (copy / name).unlink()
    elif before is None:
        (copy / name).write_text(after, encoding="utf-8")
    else:
        rewrite(copy / name, before, after.format(root=copy.resolve()))
    with pytest.raises(DataError) as error:
        bundle.run(copy, None, None)
    assert told in str(error.value)
    assert "verysecret" not in str(error.value)
    assert not (copy / "out/bundle").exists()


def test_another_verdict_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter that should not be deployed can be shared, but only with a warning."""
    root = finished(tmp_path / "run", verdict="abort")
    lock(root)
    bundle.run(root, None, tmp_path / "x.tar.gz")
    assert "warning: the verdict is ABORT, NOT DEPLOY" in capsys.readouterr().out
    check(tmp_path / "x.tar.gz")
    assert "warning: NOT DEPLOY: verdict abort" in capsys.readouterr().out


def test_a_folder_is_matched_by_its_full_name() -> None:
    """A folder matches by its full name, not by a prefix or suffix."""
    places = {b"/srv/work/run": "this repository's folder"}
    leaks.require_none("file", b"/srv/work/running /mnt/srv/work/run", {}, places)
    with pytest.raises(DataError):
        leaks.require_none("file", b"/srv/work/running /srv/work/run/x", {}, places)


def test_secret_variables_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is recognised by its name or by its use in params; switches, numbers and paths are not secrets."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    values = {"MAX_TOKENS": "123456789", "A_TOKEN": "x"}
    for name in ("WANDB_API_KEY", "MY_JUDGE", "HF_TOKEN_PATH", "AWS_SECRET_ACCESS_KEY", "HOME", *values):
        monkeypatch.setenv(name, values.get(name, f"{name}-value"))
    assert sorted(leaks.secrets_here(["MY_JUDGE"]).values()) == ["AWS_SECRET_ACCESS_KEY", "MY_JUDGE", "WANDB_API_KEY"]


# --------------------------------------------------------------------------------------------------- bill of materials


def test_the_bill_of_materials_lists_packages_base_and_data(made: Path) -> None:
    """Packages for the run's Python and system have versions, hashes and licences; base and data are listed too."""
    content = json.loads(contents(made)["sbom.cdx.json"])
    by_name = {item["name"]: item for item in content["components"]}
    assert {"packaging", "networkx", "torch", "tiny-base", "rows"} == set(by_name)  # pywin32 is for another system
    assert by_name["networkx"]["version"] == "3.6.1"  # the run used Python 3.11
    assert by_name["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert {item["content"][0] for item in by_name["packaging"]["externalReferences"][0]["hashes"]} == {"0", "1"}
    assert by_name["packaging"]["licenses"]
    for item in by_name.values():  # no host: the files may come from any index or mirror
        assert {reference["url"] for reference in item.get("externalReferences", [])} <= {item.get("purl")}
    assert by_name["tiny-base"]["type"] == "machine-learning-model"
    assert by_name["rows"]["type"] == "data"
    assert "timestamp" not in content["metadata"]
    assert len(content["dependencies"]) == 6  # one for the adapter, and an empty one for each component


@pytest.mark.parametrize("environment", ["cpu", "cuda", "apple"])
def test_the_real_locks_give_a_valid_bill(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lock of the repository can be read, and the result is valid against the schema of CycloneDX 1.6."""
    from finetune.config.params import load_config

    config = load_config(ROOT / "params.yaml")
    system = "Darwin arm64" if environment == "apple" else "Linux x86_64"
    torch = "2.13.0+cpu" if environment == "cpu" else "2.13.0"
    base = {"name": "org/model", "revision": "0" * 40}
    versions = {"python": "3.12.3", "torch": torch}
    adapter = {"adapter_sha256": "a" * 64, "base": base, "versions": versions}
    source = {"sha256": "b" * 64, "revision": None, "kept": 1, "read": 1}
    reports = run_reports({"prepare": {"sources": {"x": source}}, "train_cost": {"machine": {"system": system}}})
    locks = [ROOT / name for name in members.locks_of(environment, adapter)]
    text = materials.bill_of_materials(config, adapter, reports, locks)
    assert check_bundle.schema_findings(text.decode()) == []
    assert text == materials.bill_of_materials(config, adapter, reports, locks)
    found = {item["name"]: item for item in json.loads(text)["components"]}
    assert len(found) > 100
    assert found["torch"]["version"] == torch
    assert found["org/model"]["purl"] == f"pkg:huggingface/org/model@{'0' * 40}"
    assert ("nvidia-cudnn-cu13" in found) == (environment == "cuda")


def test_a_version_missing_from_the_lock_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manually installed package has no hash in the lock."""
    packages = [Package("torch", "2.0", ("0" * 64,)), Package("regex", "1", ("0" * 64,))]
    used = materials.as_used(packages, {"versions": {"torch": "2.1"}})
    assert used == [Package("torch", "2.1", ()), packages[1]]
    assert (
        "warning: the run used torch 2.1, but its lock has 2.0; no hash is recorded for it" in capsys.readouterr().out
    )


def test_a_missing_bundle_is_a_usage_error() -> None:
    """A missing path is a usage error, not a damaged bundle."""
    with pytest.raises(ConfigError, match=r"nowhere: no such bundle; \./finetune bundle writes one to out/bundle"):
        check(Path("nowhere"))
