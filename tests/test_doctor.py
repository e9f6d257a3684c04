"""The doctor on machines made up for it: what it finds, what it advises, what it never says."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from finetune import machine
from finetune.config import Config
from finetune.doctor import accelerators, command, computer, surroundings
from finetune.doctor.command import best_of, run
from finetune.doctor.computer import Check
from finetune.doctor.surroundings import check_base, dvc_remotes
from finetune.errors import ConfigError
from finetune.machine import cgroup_limits
from finetune.model_files import is_whole
from finetune.recipes import RECIPE_SECTIONS
from tests.conftest import ROOT

GB = 10**9
SECRET = "hf_tHisIsAsEcReT0123456789"
HUB = {"base": "org/name", "revision": "0" * 40}


@pytest.fixture
def repository(tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`repository(big={"environment": "cuda"})`: a root with params.yaml, these recipes and the true locks."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub home"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "root"
    (root / "recipes").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "requirements", root / "requirements")
    (root / "models").symlink_to(ROOT / "models")

    def made(**recipes: dict[str, Any]) -> Path:
        (root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML too
        for name, changes in recipes.items():
            sections = {key: params[key] for key in RECIPE_SECTIONS} | {"recipe": name}
            for key, change in changes.items():
                sections[key] = sections[key] | change if isinstance(change, dict) else change
            (root / f"recipes/{name}.yaml").write_text(json.dumps(sections), encoding="utf-8")
        return root

    return made


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tools(docker="exit 1")`: the only programs on PATH, besides git unless it is False."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    true_git = shutil.which("git", path=os.defpath)

    def put(git: bool = True, **scripts: str) -> None:
        if git and true_git:
            (folder / "git").symlink_to(true_git)
        for name, body in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            path.chmod(0o755)

    return put


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`predicted(tiny=(2_000_000, 1 * GB))`: parameters and peak of each recipe; of others nothing is known."""

    def known(**recipes: tuple[int, int]) -> None:
        def predict(self: Any, config: Config) -> tuple[int | None, int | None, str | None]:
            return (*recipes[config.recipe], None) if config.recipe in recipes else (None, None, "no config.json")

        monkeypatch.setattr(command.Predictor, "predict", predict)

    return known


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpu(24 * GB)`: one CUDA device of this memory, as torch sees it."""
    import torch

    def put(memory: int, free: int | None = None, capability: tuple[int, int] = (8, 9), count: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (memory if free is None else free, memory))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: "NVIDIA Test")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: capability)

    return put


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`mac(32 * GB, "26.1")`: a Mac with Apple silicon."""
    import torch

    def put(memory: int, version: str) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr(platform, "machine", lambda: "arm64")
        monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
        monkeypatch.setattr(computer, "usable_memory", lambda: memory)
        monkeypatch.setattr(command, "usable_memory", lambda: memory)
        there = SimpleNamespace(total=memory, available=memory // 2)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    return put


def told(capsys: pytest.CaptureFixture[str], root: Path, recipe: str | None = None, quick: bool = False) -> Any:
    """The report and the exit code, of `--json`."""
    code = run(root, recipe, True, quick)
    report = json.loads(capsys.readouterr().out)
    return report | {"code": code, "by": {check["what"]: check for check in report["checks"]}}


# ---- The whole


def test_a_machine_without_a_gpu(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It runs the tiny recipe and no CUDA one, and the larger of two bases that fit is named."""
    tools()
    predicted(tiny=(2_000_000, GB), small=(100_000_000, GB), huge=(9 * GB, 10**15), gpu=(8 * GB, 2 * GB))
    root = repository(tiny={}, small={}, huge={}, unknown={}, gpu={"environment": "cuda"})
    report = told(capsys, root)
    assert report["code"] == 0
    assert report["best"] == "small"
    assert report["recipe"]["can_run"]
    assert report["by"]["CUDA"] == {"what": "CUDA", "found": "no NVIDIA GPU answers", "status": "ok", "remedy": ""}
    by_recipe = {fit["recipe"]: fit for fit in report["recipes"]}
    assert by_recipe["gpu"]["why_not"] == ["no CUDA device that torch can use"]
    assert by_recipe["huge"]["why_not"][0].startswith("predicted peak memory 1000000.0 GB, and there are ")
    assert by_recipe["unknown"]["can_run"]
    assert by_recipe["unknown"]["unknown"] == "no config.json"
    report = told(capsys, root, "gpu")
    assert report["code"] == 4
    assert report["by"]["CUDA"]["status"] == "missing"
    assert report["by"]["CUDA"]["remedy"] == "install NVIDIA's driver, or start the container with --gpus all"


def test_what_a_person_reads(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A table, then what to do next in two sentences."""
    tools()
    predicted(tiny=(2_000_000, GB))
    assert run(repository(tiny={}), None, False, False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].strip() == "doctor"
    assert lines[-2].startswith("recipe tiny can run here: predicted peak memory 1.00 GB of ")
    assert lines[-1] == (
        "the largest base that fits here is that of recipe tiny (models/tiny-base, 2,000,000 parameters)"
    )
    predicted()
    assert run(repository(), "tiny", False, False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("can run here, as far as can be told: memory unknown (no config.json)")
    assert lines[-1].startswith("no recipe is known to fit here")


def test_each_line_has_the_same_shape_and_what_is_amiss_a_remedy(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A table that says what is wrong and not what to do is half a table."""
    tools(git=False)
    predicted()
    report = told(capsys, repository(hub={"model": HUB, "environment": "cuda"}), "hub")
    assert {tuple(check) for check in report["checks"]} == {("what", "found", "status", "remedy")}
    assert len(report["by"]) == len(report["checks"]) > 15
    for check in report["checks"]:
        assert bool(check["remedy"]) == (check["status"] != "ok"), check
        assert check["found"]
    amiss = {name for name, check in report["by"].items() if check["status"] == "missing"}
    assert amiss >= {"CUDA", "packages", "containers", "base model", "DVC", "git"}


def test_an_unknown_recipe_is_an_error_of_use(repository: Callable[..., Path]) -> None:
    """With the nearest name."""
    with pytest.raises(ConfigError, match="did you mean small"):
        run(repository(small={}), "smal", True, True)


def test_a_recipe_that_is_broken_is_unknown(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The others are told all the same."""
    tools()
    predicted(tiny=(1, 1))
    report = told(capsys, repository(broken={"environment": "gpu"}, tiny={}))
    broken, tiny = report["recipes"]
    assert not broken["can_run"]
    assert "environment" in broken["why_not"][0]
    assert tiny["can_run"]


def test_secrets_are_not_told(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever asks for help pastes this output."""
    tools()
    predicted()
    root = repository(tiny={})
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text(f"['remote \"team\"']\n    url = https://me:{SECRET}@host/data\n", "utf-8")
    (root / ".dvc/config.local").write_text(f"['remote \"mine\"']\n    password = {SECRET}\n", "utf-8")
    (root.parent / "hub home").mkdir()
    (root.parent / "hub home/token").write_text(SECRET, "utf-8")
    for as_json in (True, False):
        run(root, None, as_json, False)
        assert SECRET not in (out := capsys.readouterr().out)
        assert "HF_TOKEN" in out
    assert dvc_remotes(root) == ["mine", "team"]


def test_quick_imports_no_torch(repository: Callable[..., Path]) -> None:
    """It answers at once, also where torch hangs."""
    code = (
        "import sys; from pathlib import Path; from finetune.doctor.command import run\n"
        f"run(Path({str(repository(tiny={}))!r}), None, True, True)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'scipy', 'bitsandbytes'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    report = json.loads(done.stdout)
    assert report["recipe"]["unknown"] == "not predicted with --quick"
    assert report["recipes"] == []
    assert report["best"] is None


def test_the_memory_of_the_embedded_recipe_is_predicted(config: Config) -> None:
    """The same numbers as the plan's."""
    parameters, peak, unknown = command.Predictor(ROOT).predict(config)
    assert unknown is None
    assert parameters is not None and 10**6 < parameters < 10**7
    assert peak is not None and 10**7 < peak < 4 * GB


def test_an_unknown_base_is_no_crash(change: Callable[..., Config], tmp_path: Path) -> None:
    """Its memory is not known, and why."""
    assert command.Predictor(tmp_path).predict(change(**{"model.base": "nowhere"}))[2].startswith("params.yaml: model")


def test_the_largest_base_wins_and_then_the_name() -> None:
    """Peak memory does not decide, and what can't run is out."""

    def fit(name: str, parameters: int | None, can_run: bool = True) -> command.Fit:
        return command.Fit(name, "cpu", "base", can_run, (), parameters, parameters and 10, 100)

    fits = [fit("b", 7), fit("a", 7), fit("c", 3), fit("d", None), fit("e", 70, can_run=False)]
    assert best_of(fits) == fits[1]
    assert best_of(fits[3:]) is None


# ---- CUDA


CUDA = {"environment": "cuda"}
SMI = 'echo "NVIDIA Test, 24564, 24000, 8.9, 570.1"'


def test_a_gpu_of_24_gb(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    gpu: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own memory decides, not the machine's; four of them are not there."""
    tools(nvidia_smi=SMI)
    gpu(24 * GB)
    predicted(fits=(7 * GB, 20 * GB), large=(70 * GB, 40 * GB), four=(7 * GB, 20 * GB))
    four = {"environment": "cuda", "train": {"distributed": {"nodes": 1, "devices": 4, "strategy": "ddp"}}}
    four["train"]["distributed"] |= {"offload_optimizer": "none", "offload_param": "none"}  # type: ignore[index]
    root = repository(fits=CUDA, large=CUDA, four=four)
    report = told(capsys, root, "fits")
    assert report["code"] == 0
    assert report["by"]["GPU 0"]["found"] == (
        "NVIDIA Test, 24.0 GB, 24.0 GB free, compute capability 8.9 (bf16, tf32), driver 570.1"
    )
    assert report["best"] == "fits"
    reasons = {fit["recipe"]: fit["why_not"] for fit in report["recipes"]}
    assert reasons["large"] == ["predicted peak memory 40.0 GB, and there are 24.0 GB"]
    assert told(capsys, root, "large")["code"] == 4
    assert reasons["four"] == ["it needs 4 GPUs, and there is 1"]


def test_an_old_and_busy_gpu(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    gpu: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """bfloat16 came with 8.0; and a GPU that is half taken is worth a look."""
    tools()
    predicted()
    gpu(16 * GB, free=2 * GB, capability=(7, 5))
    report = told(capsys, repository(old={"environment": "cuda", "train": {"bf16": True}}), "old")
    assert (report["by"]["GPU 0"]["status"], report["by"]["GPU 0"]["remedy"]) == (
        "warning",
        "nvidia-smi, to see who uses it",
    )
    assert "neither bf16 nor tf32" in report["by"]["GPU 0"]["found"]
    assert report["recipe"]["why_not"] == ["bfloat16 needs compute capability 8.0"]


def test_a_gpu_that_torch_can_not_use(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The usual mistake: the CPU build of torch on a machine with a GPU. With --quick, the driver is believed."""
    tools(nvidia_smi=SMI)
    predicted()
    root = repository(big=CUDA)
    report = told(capsys, root, "big")
    assert report["code"] == 4
    assert report["by"]["CUDA"]["found"] == "the driver (570.1) shows 1, and torch can use none"
    assert report["by"]["CUDA"]["remedy"] == "make setup ENVIRONMENT=cuda"
    assert told(capsys, root, "big", quick=True)["code"] == 0
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert told(capsys, root, "big")["by"]["CUDA"]["remedy"] == "update NVIDIA's driver to one for CUDA 13.0"


@pytest.mark.parametrize("answer", ["exit 9", "sleep 5", "echo nonsense", "echo 'NVIDIA-SMI has failed'"])
def test_a_driver_that_does_not_answer_is_no_gpu(tools: Callable[..., None], answer: str) -> None:
    """Neither hangs nor crashes."""
    tools(nvidia_smi=answer.replace("sleep", shutil.which("sleep", path=os.defpath) or "sleep"))
    assert accelerators.ask_driver(timeout=0.5) == ((), None)


def test_memory_that_the_driver_does_not_tell_is_zero(tools: Callable[..., None]) -> None:
    """Where processor and GPU share it."""
    tools(nvidia_smi='echo "NVIDIA GB10, [N/A], [N/A], 12.1, 580.0"')
    ((found,), driver) = accelerators.ask_driver(timeout=5)
    assert (found.memory_bytes, found.capability, driver) == (0, (12, 1), "580.0")


# ---- Macs


def test_a_mac_with_32_gb(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    mac: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory is the GPU's too."""
    tools()
    mac(32 * GB, "26.1")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    predicted(fits=(7 * GB, 20 * GB), large=(13 * GB, 40 * GB))
    report = told(capsys, repository(fits={"environment": "apple"}, large={"environment": "apple"}), "fits")
    assert report["code"] == 0
    assert report["best"] == "fits"
    assert report["by"]["system"]["found"] == "macOS 26.1"
    assert report["by"]["memory"]["found"] == "32.0 GB, shared with the GPU, 16.0 GB available"
    assert report["by"]["Apple GPU"]["found"] == (
        "MPS available; PYTORCH_ENABLE_MPS_FALLBACK=1, PYTORCH_MPS_HIGH_WATERMARK_RATIO=unset"
    )


@pytest.mark.parametrize(
    ("version", "quantization", "status", "remedy"),
    [
        ("26.0", "nf4", "ok", ""),
        ("15.5", "none", "ok", ""),
        ("15.5", "nf4", "warning", "get macOS 26, or use model.quantization: none"),
        ("13.7", "none", "missing", "update macOS to 14 or later"),
    ],
)
def test_what_a_mac_computes_hangs_on_its_system(
    mac: Callable[..., None], change: Callable[..., Config], version: str, quantization: str, status: str, remedy: str
) -> None:
    """bfloat16 from 14 on, fast NF4 from 26 on."""
    mac(32 * GB, version)
    found = computer.check_system(change(**{"environment": "apple", "model.quantization": quantization}))
    assert (found.status, found.remedy) == (status, remedy)


def test_an_apple_recipe_elsewhere(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 4, as of any recipe whose device is not here."""
    tools()
    predicted()
    report = told(capsys, repository(mac={"environment": "apple"}), "mac")
    assert report["code"] == 4
    assert report["recipe"]["why_not"] == ["no Apple GPU"]
    assert report["by"]["Apple GPU"]["status"] == "missing"


# ---- The computer


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, (None, None)),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, (None, None)),
        ({"cpu.max": "150000 100000\n", "memory.max": "8000000000\n"}, (1.5, 8 * GB)),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (None, None)),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            (2.0, None),
        ),
    ],
)
def test_a_container_allows_what_its_cgroup_says(tmp_path: Path, files: dict[str, str], limits: Any) -> None:
    """By version 2, by version 1, and where there is no limit."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="ascii")
    assert cgroup_limits(tmp_path) == limits


def test_a_container_with_less_than_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what the process may use."""
    for module in (machine, computer):
        monkeypatch.setattr(module, "cgroup_limits", lambda: (0.5, 2 * GB))
    assert machine.usable_memory() == 2 * GB
    cores = computer.check_cores()
    assert cores.status == "warning"
    assert cores.found.endswith("the container may use 0.5")
    assert "the container may use 2.00 GB" in computer.check_memory().found


@pytest.mark.parametrize(
    ("asked", "status"), [(">=3.11,<3.14", "ok"), (">=3.14", "missing"), ("<3.10", "missing"), ("", "ok")]
)
def test_python_is_held_against_the_projects_range(tmp_path: Path, asked: str, status: str) -> None:
    """And where no range is named, any will do."""
    (tmp_path / "pyproject.toml").write_text(f'[project]\nrequires-python = "{asked}"\n', encoding="utf-8")
    assert computer.check_python(tmp_path).status == status
    (tmp_path / "pyproject.toml").unlink()
    assert computer.check_python(tmp_path).status == "ok"


def test_a_processor_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs, and takes its time; where the system does not tell, nothing is said."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for flags, lines in [({"avx2", "amx_bf16"}, [("avx2, amx_bf16; without avx512f, avx512_bf16", "ok")]), (set(), [])]:
        monkeypatch.setattr(computer, "instruction_sets", lambda flags=flags: flags)
        assert [(check.found, check.status) for check in computer.check_instructions()] == lines
    monkeypatch.setattr(computer, "instruction_sets", lambda: {"sse"})
    (check,) = computer.check_instructions()
    assert check.status == "warning"


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folder that is there, where the named one is not made yet."""
    usage = SimpleNamespace(free=GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = computer.check_disk("disk", tmp_path / "not" / "yet", "free some")
    assert found == Check("disk", f"1.00 GB free ({tmp_path / 'not' / 'yet'})", "warning", "free some")
    usage.free = 11 * GB
    assert computer.check_disk("disk", tmp_path, "free some").status == "ok"


# ---- Packages, containers, base, DVC, git


def test_the_lock_is_compared_name_by_name(repository: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Differing and missing packages are named with both versions; another build of torch is the same version."""
    root = repository()
    marked = "numpy==1.0 ; python_full_version < '3'\nnumpy==2.0 ; python_full_version >= '3'\n"
    (root / "requirements/cpu.lock").write_text(
        f"{marked}no-such-thing==3.1 \\\n    --hash=sha256:0\n", encoding="utf-8"
    )
    version = metadata.version("torch").partition("+")[0]
    (root / "requirements/torch-cpu.lock").write_text(f"torch=={version}+other\n", encoding="utf-8")
    found = surroundings.check_packages("cpu", root)
    assert found == Check(
        "packages",
        f"2 of 3 not as in requirements/cpu.lock: numpy {metadata.version('numpy')} (locked 2.0), "
        "no-such-thing not installed (locked 3.1)",
        "missing",
        "rm -f .venv/installed-*; make setup ENVIRONMENT=cpu",
    )
    (root / "requirements/apple.lock").unlink()
    assert surroundings.check_packages("apple", root).status == "missing"


@pytest.mark.parametrize(
    ("scripts", "found", "status"),
    [
        ({}, "neither docker, podman nor buildah", "missing"),
        ({"podman": "exit 0", "buildah": "exit 0"}, "podman, buildah", "ok"),
        ({"docker": "echo 28.1"}, "docker; docker's daemon 28.1 answers", "ok"),
        ({"docker": "exit 1"}, "docker; docker's daemon does not answer", "warning"),
    ],
)
def test_containers_and_the_daemon(
    tools: Callable[..., None], scripts: dict[str, str], found: str, status: str
) -> None:
    """docker on PATH is not yet a docker that runs."""
    tools(**scripts)
    check = surroundings.check_containers(quick=False)
    assert (check.found, check.status, bool(check.remedy)) == (found, status, status != "ok")
    if "docker" in scripts:
        assert surroundings.check_containers(quick=True) == Check("containers", "docker")


def weights(path: Path, size: int = 64) -> None:
    """A safetensors file of one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def test_the_runtime_of_the_run_is_looked_at(
    change: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stages run in containers, what counts is that very engine and the image of these locks."""
    monkeypatch.setenv("PATH", str(tmp_path))
    check = surroundings.check_runtime(change(runtime="podman"), ROOT)
    assert (check.status, check.found) == ("missing", "runtime: podman is not installed here")
    assert check.remedy.startswith("install it (https://podman.io")


def test_half_a_base_in_the_cache(repository: Callable[..., Path], change: Callable[..., Config]) -> None:
    """Which shard is missing, which is cut off, and how to get it."""
    root = repository()
    model = change(**{f"model.{key}": value for key, value in HUB.items()}).model
    remedy = f"hf download org/name --revision {'0' * 40}"
    assert check_base(model, root) == Check(
        "base model", "org/name at 000000000000: not in the cache", "missing", remedy
    )
    folder = root.parent / "hub home/hub/models--org--name/snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    names = [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]

    def trouble() -> str | None:
        return check_base(model, root).found.removeprefix("org/name at 000000000000")

    assert trouble() == ": no config.json"
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert trouble() == ": 1 of 1 weight files missing (model.safetensors)"
    index = {"weight_map": {f"layer{at}": names[at // 2] for at in range(6)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    weights(folder / names[0])
    assert trouble() == f": 2 of 3 weight files missing ({names[1]}, {names[2]})"
    assert check_base(model, root).remedy == remedy
    for name in names[1:]:
        weights(folder / name)
    assert trouble() == ", in the cache, complete"
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    assert trouble() == f": {names[1]} is cut off or damaged"
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    assert trouble() == ": model.safetensors.index.json is damaged"


def test_a_base_that_is_a_folder_or_unpinned(config: Config, change: Callable[..., Config]) -> None:
    """The embedded one is whole; one of the Hub without a revision is none at all."""
    assert check_base(config.model, ROOT).status == "ok"
    unpinned = check_base(change(**{"model.base": "org/name"}).model, ROOT)
    assert unpinned.remedy == "set model.revision to the 40 hex digits of a commit (make pin)"


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 100, (2).to_bytes(8, "little") + b"[]"])
def test_garbage_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    """And no crash."""
    (tmp_path / "model.safetensors").write_bytes(content)
    assert not is_whole(tmp_path / "model.safetensors")


def test_a_missing_base_is_told_and_stops_nothing(
    repository: Callable[..., Path],
    tools: Callable[..., None],
    predicted: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is a download away, so the machine can run the recipe."""
    tools()
    predicted(hub=(GB, GB))
    assert run(repository(hub={"model": HUB}), "hub", False, False) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        "its base model is not there yet (org/name at 000000000000: not in the cache): hf download org/name "
        in said[-2]
    )


def test_git_and_its_absence(tmp_path: Path, tools: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """No git, no repository, no commit, clean, changed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git = shutil.which("git", path=os.defpath)
    if git is None:
        pytest.skip("git is not installed")
    tools(git=False)
    assert surroundings.check_git(tmp_path, quick=False).found == "not installed"
    root = tmp_path / "work"
    root.mkdir()
    tools()

    def do(*arguments: str) -> None:
        author = ["-c", "user.name=Me", "-c", "user.email=me@example.org"]
        subprocess.run([git, *author, "-C", str(root), *arguments], check=True, capture_output=True)

    assert surroundings.check_git(root, quick=False).remedy == "git init && git add -A && git commit -m start"
    do("init")
    assert surroundings.check_git(root, quick=False).found == "a repository without a commit"
    do("commit", "--allow-empty", "-m", "one")
    assert surroundings.check_git(root, quick=False).found.endswith(", clean")
    (root / "new").touch()
    found = surroundings.check_git(root, quick=False)
    assert found.found.endswith(", 1 changed file")
    assert found.status == "ok"


def test_dvc_without_a_repository_and_without_a_remote(tmp_path: Path) -> None:
    """The first is an error of the folder, the second a choice."""
    assert surroundings.check_dvc(tmp_path).remedy == "dvc init"
    (tmp_path / ".dvc").mkdir()
    assert surroundings.check_dvc(tmp_path).status == "warning"
    (tmp_path / ".dvc/config").write_text("['remote \"team\"']\n    url = s3://x\n", encoding="utf-8")
    assert surroundings.check_dvc(tmp_path).found.endswith(", remotes: team")
    (tmp_path / ".dvc/config").write_text("no section = 1\n", encoding="utf-8")
    assert surroundings.check_dvc(tmp_path).status == "warning"


def test_attention_and_bits_are_missed_where_the_recipe_wants_them(
    change: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere their absence is no news."""
    monkeypatch.setattr(accelerators, "find_spec", lambda name: None)
    plain = change(**{"model.attention": "sdpa"})
    wanting = change(
        **{"environment": "cuda", "model.attention": "flash_attention_2", "model.quantization": "nf4"}
        | {"model.dtype": "bfloat16", "train.bf16": True}
    )
    assert accelerators.check_attention(plain).status == "ok"
    assert accelerators.check_attention(wanting).status == "missing"
    assert accelerators.check_bitsandbytes(plain, quick=True).status == "warning"
    assert accelerators.check_bitsandbytes(wanting, quick=True).status == "missing"


def test_bitsandbytes_that_does_not_load(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that the driver lacks raises whatever it likes."""

    def fail(name: str) -> None:
        raise RuntimeError("libcudart.so.13: cannot open\nand more")

    monkeypatch.setattr(accelerators.importlib, "import_module", fail)
    found = accelerators.check_bitsandbytes(config, quick=False)
    assert found.found == "does not load: libcudart.so.13: cannot open"
    assert found.remedy
