"""The doctor on simulated machines: its findings, its advice, and the secrets it never prints."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.commands.doctor.command import run
from finetune.commands.doctor.software import dvc_remotes
from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.plan import fit
from tests.builders.made_up_machine import GB, HUB, Machine
from tests.builders.made_up_machine import machine as machine
from tests.conftest import ROOT

SECRET = "hf_tHisIsAsEcReT0123456789"


def test_a_machine_without_a_gpu_runs_cpu_recipes_only(machine: Machine) -> None:
    """The tiny recipe can run and no CUDA recipe can; the larger of two fitting bases is recommended."""
    machine.predict(tiny=(2_000_000, GB), small=(100_000_000, GB), huge=(9 * GB, 10**15), gpu=(8 * GB, 2 * GB))
    machine.add(tiny={}, small={}, huge={}, unknown={}, gpu={"environment": "cuda"})
    report = machine.report()
    assert report["code"] == 0
    assert report["best"] == "small"
    assert report["recipe"]["can_run"]
    assert report["by"]["CUDA"] == {"what": "CUDA", "found": "no NVIDIA GPU found", "status": "ok", "remedy": ""}
    by_recipe = {fit["recipe"]: fit for fit in report["recipes"]}
    assert by_recipe["gpu"]["why_not"] == ["torch found no usable CUDA device"]
    assert by_recipe["huge"]["why_not"][0].startswith("predicted peak memory 1000000.0 GB, available ")
    assert by_recipe["unknown"]["can_run"]
    assert by_recipe["unknown"]["unknown"] == "no config.json"
    report = machine.report("gpu")
    assert report["code"] == 4
    assert report["by"]["CUDA"]["status"] == "missing"
    assert report["by"]["CUDA"]["remedy"] == "install NVIDIA's driver, or start the container with --gpus all"


def test_the_text_report_ends_with_next_steps(machine: Machine) -> None:
    """The output is a table, then the next steps in two sentences."""
    machine.add(tiny={})
    machine.predict(tiny=(2_000_000, GB))
    lines = machine.lines()
    assert lines[1].strip() == "doctor"
    assert lines[-2].startswith("recipe tiny can run here: predicted peak memory 1.00 GB of ")
    assert lines[-1] == (
        "the recipe with the largest base that fits this machine: tiny (models/tiny-base, 2,000,000 parameters)"
    )
    machine.predict()
    lines = machine.lines("tiny")
    assert lines[-2].endswith("can probably run here; its memory is unknown (no config.json)")
    assert lines[-1].startswith("no recipe is known to fit this machine")


def test_a_missing_base_is_reported_without_failing(machine: Machine) -> None:
    """A missing base can be downloaded, so the recipe still counts as runnable."""
    machine.predict(hub=(GB, GB))
    machine.add(hub={"model": HUB})
    line = machine.lines("hub")[-2]
    assert (
        "its base model has not been downloaded yet (org/name at 000000000000: not in the cache): hf download org/name "
        in line
    )


def test_each_line_has_the_same_columns_and_problems_a_remedy(machine: Machine) -> None:
    """All lines have the same columns, and each problem has a remedy."""
    (machine.programs / "git").unlink()
    machine.add(hub={"model": HUB, "environment": "cuda"})
    report = machine.report("hub")
    assert {tuple(check) for check in report["checks"]} == {("what", "found", "status", "remedy")}
    assert len(report["by"]) == len(report["checks"]) > 15
    for check in report["checks"]:
        assert bool(check["remedy"]) == (check["status"] != "ok"), check
        assert check["found"]
    amiss = {name for name, check in report["by"].items() if check["status"] == "missing"}
    assert amiss >= {"CUDA", "packages", "containers", "base model", "DVC", "git"}


def test_an_unknown_recipe_is_an_error_of_use(machine: Machine) -> None:
    """The error suggests the nearest name."""
    machine.add(small={})
    with pytest.raises(ConfigError, match="did you mean small"):
        machine.report("smal", quick=True)


def test_a_broken_recipe_is_listed_as_unknown(machine: Machine) -> None:
    """A broken recipe counts as unknown; the others are still listed."""
    machine.predict(tiny=(1, 1))
    machine.add(broken={"environment": "gpu"}, tiny={})
    broken, tiny = machine.report()["recipes"]
    assert not broken["can_run"]
    assert "environment" in broken["why_not"][0]
    assert tiny["can_run"]


def test_secrets_are_not_printed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users paste this output when they ask for help, so it contains no secret."""
    root = machine.root
    machine.add(tiny={})
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text(f"['remote \"team\"']\n    url = https://me:{SECRET}@host/data\n", "utf-8")
    (root / ".dvc/config.local").write_text(f"['remote \"mine\"']\n    password = {SECRET}\n", "utf-8")
    machine.hub.mkdir()
    (machine.hub / "token").write_text(SECRET, "utf-8")
    for as_json in (True, False):
        run(root, None, as_json, False)
        assert SECRET not in (out := capsys.readouterr().out)
        assert "HF_TOKEN" in out
    assert dvc_remotes(root) == ["mine", "team"]


def test_quick_imports_no_torch(machine: Machine) -> None:
    """`--quick` answers at once, even if importing torch hangs."""
    machine.add(tiny={})
    code = (
        "import sys; from pathlib import Path; from finetune.commands.doctor.command import run\n"
        f"run(Path({str(machine.root)!r}), None, True, True)\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'bitsandbytes'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    report = json.loads(done.stdout)
    assert report["recipe"]["unknown"] == "not predicted with --quick"
    assert (report["recipes"], report["best"]) == ([], None)


def test_the_memory_of_the_embedded_recipe_is_predicted(config: Config) -> None:
    """The predicted memory equals that of the plan."""
    parameters, peak, unknown = fit.Predictor(ROOT).predict(config)
    assert unknown is None
    assert parameters is not None and 10**6 < parameters < 10**7
    assert peak is not None and 10**7 < peak < 4 * GB


def test_an_unknown_base_is_reported(change: Callable[..., Config], tmp_path: Path) -> None:
    """The memory of an unknown base is reported as unknown, with the reason."""
    assert fit.Predictor(tmp_path).predict(change(**{"model.base": "nowhere"}))[2].startswith("params.yaml: model")


def test_the_largest_base_is_recommended() -> None:
    """The largest base that can run is recommended, then the first name; peak memory does not matter."""

    def made(name: str, parameters: int | None, can_run: bool = True) -> fit.Fit:
        return fit.Fit(name, "cpu", "base", can_run, (), parameters, parameters and 10, 100)

    fits = [made("b", 7), made("a", 7), made("c", 3), made("d", None), made("e", 70, can_run=False)]
    assert fit.best_of(fits) == fits[1]
    assert fit.best_of(fits[3:]) is None
