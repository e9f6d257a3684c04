"""The job files name only things that exist, and under a simulated Slurm they stop, save and requeue as documented."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune.cli.main import all_commands
from finetune.config.loading import read_yaml
from finetune.config.params import load_config
from finetune.containers.runtime import runtime_of
from tests.builders.small_run import ROOT
from tests.builders.waiting import PATIENCE, wait_for
from tests.house.test_house import makefile_targets
from tests.processes.test_detach import STAGE, end_all_in

JOBS = ROOT / "jobs"
SKYPILOT = read_yaml(JOBS / "skypilot.yaml")
# Runs the given command directly, as the first task of a step, and records its options.
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=0
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then printf 'node%s\\n' $NODES; else echo "scontrol $*" >> "$CALLS"; fi
"""
MAKEFILE = """
.PHONY: setup
setup:
	@echo "set up" >> "$$CALLS"
train-%:
	@python stage.py -m finetune train 5
train-dvc:
	@bash -c 'python stage.py -m finetune train 5 & wait'
train-done:
	@true
"""


def scripts() -> dict[str, str]:
    """Return every shell script of the job files by its name."""
    slurm = (JOBS / "slurm.sh").read_text(encoding="utf-8")
    return {"slurm.sh": slurm, "setup": SKYPILOT["setup"], "run": SKYPILOT["run"]}


@pytest.mark.parametrize("name", ["slurm.sh", "setup", "run"])
def test_the_scripts_are_valid_bash(name: str) -> None:
    """A missing quote would otherwise show only on a rented machine."""
    done = subprocess.run(["bash", "-n"], input=scripts()[name], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["slurm.sh", "setup", "run", "README.md"])
def test_every_named_command_exists(name: str) -> None:
    """A renamed target or command must be renamed in these untested files, too."""
    text = scripts().get(name) or "\n".join(re.findall(r"`([^`]+)`", (JOBS / name).read_text(encoding="utf-8")))
    shipped = {f"train-{path.stem}" for path in (ROOT / "recipes").glob("*.yaml")}
    targets = set(re.findall(r"\bmake (?:-C \S+ )?([a-z][a-z0-9-]*)", text))
    assert targets <= set(makefile_targets()) | shipped
    commands = set(re.findall(r"(?:^|\./|exec |\" |; )finetune ([a-z]+)", text, flags=re.MULTILINE))
    assert commands <= {one.name for _, found in all_commands() for one in found}
    assert targets | commands or name == "setup"


def test_skypilots_fields_are_documented() -> None:
    """SkyPilot refuses an unknown field only after submission."""
    assert set(SKYPILOT) == {
        "name",
        "workdir",
        "num_nodes",
        "resources",
        "envs",
        "secrets",
        "file_mounts",
        "setup",
        "run",
    }
    assert set(SKYPILOT["resources"]) == {"accelerators", "use_spot", "disk_size", "job_recovery"}
    assert set(SKYPILOT["resources"]["job_recovery"]) == {"strategy", "recover_on_exit_codes"}
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [5]
    assert SKYPILOT["file_mounts"]["/state"] == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"}


def test_skypilots_variables_are_known() -> None:
    """An unset variable is empty in a shell, and the run would silently be wrong."""
    given = {
        "SKYPILOT_NODE_RANK",
        "SKYPILOT_NODE_IPS",
        "SKYPILOT_NUM_NODES",
        "SKYPILOT_SETUP_NODE_IPS",
        "SKYPILOT_TASK_ID",
        "PWD",
        "PATH",
    }
    for text in (SKYPILOT["setup"], SKYPILOT["run"]):
        used = set(re.findall(r"\$\{?([A-Z][A-Z_]*)", text))
        assert used <= given | set(SKYPILOT["envs"]) | set(re.findall(r"\b([A-Z_]+)=", text))
    assert "SKYPILOT_SETUP" not in SKYPILOT["run"] and "SKYPILOT_NUM_NODES" not in SKYPILOT["setup"]


def test_slurm_warns_before_the_end_and_leaves_time_to_requeue() -> None:
    """Saving must be finished before the limit, or the job ends without being requeued."""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", scripts()["slurm.sh"], flags=re.MULTILINE))
    assert options["open-mode"] == "append" and "requeue" in options
    shell, seconds = options["signal"].split("@")
    assert shell == "B:USR1"
    (patience,) = re.findall(r"PATIENCE:-(\d+)", scripts()["slurm.sh"])
    assert int(patience) + 30 <= int(seconds)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a batch script in a folder with a Makefile, with simulated srun and scontrol."""
    for name, text in (("bin/srun", SRUN), ("bin/scontrol", SCONTROL), ("Makefile", MAKEFILE), ("stage.py", STAGE)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "src").symlink_to(ROOT / "src")  # the script refers to it by its path in the repository
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "SLURM"))}
    path_of = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    yield plain | {
        "PATH": os.pathsep.join(path_of),
        "CALLS": str(tmp_path / "calls"),
        "NODES": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    end_all_in(tmp_path)


def submit(cluster: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """Start the batch script as Slurm would."""
    command = ["bash", str(JOBS / "slurm.sh"), *words]
    return subprocess.Popen(command, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def calls(cluster: dict[str, str]) -> list[str]:
    """Return the recorded calls of srun, scontrol and the set-up."""
    path = Path(cluster["CALLS"])
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_a_finished_run_is_not_requeued(cluster: dict[str, str]) -> None:
    """A finished run must not be requeued, or it would run forever."""
    job = submit(cluster, "done")
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output
    assert "set up" in calls(cluster)
    assert not any(call.startswith("scontrol") for call in calls(cluster))


def test_a_failed_run_is_not_requeued(cluster: dict[str, str]) -> None:
    """An error in the data does not go away by repetition."""
    Path(cluster["SLURM_SUBMIT_DIR"], "stage.py").write_text("raise SystemExit(3)", encoding="utf-8")
    job = submit(cluster, "quick")
    job.communicate(timeout=PATIENCE)
    assert job.returncode == 2
    assert not any(call.startswith("scontrol") for call in calls(cluster))


def test_the_warning_saves_and_requeues_the_run(cluster: dict[str, str]) -> None:
    """Five minutes before its time limit, the run is saved and requeued."""
    holder = Path(cluster["SLURM_SUBMIT_DIR"], "work/pipeline.holder")
    job = submit(cluster, "quick")
    wait_for(holder.exists, job)
    job.send_signal(signal.SIGUSR1)  # like B:USR1, to the batch shell only
    output, _ = job.communicate(timeout=PATIENCE)
    assert (
        "train stopped at step 8 of 45; the checkpoint of step 8 is kept; run the same command again to resume"
        in output
    )
    assert calls(cluster)[-1] == "scontrol requeue 4711"
    assert job.returncode == 2
    assert not holder.exists()


def test_a_signal_to_all_tasks_leaves_the_stage_time_to_save(cluster: dict[str, str]) -> None:
    """In a preemption DVC dies of SIGTERM at once, but the step must not end before the stage has saved."""
    root = Path(cluster["SLURM_SUBMIT_DIR"])
    slow = STAGE.replace("def end(number, frame):", "def end(number, frame):\n    time.sleep(2)")
    (root / "stage.py").write_text(slow, encoding="utf-8")
    job = submit(cluster, "dvc")
    wait_for((root / "work/pipeline.holder").exists, job)
    for process in tasks(job.pid):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    job.wait(timeout=PATIENCE)  # its output may stay open longer, if a stage was left running
    assert (root / "work/checkpoints/run/checkpoint-8").is_dir()
    assert not (root / "work/pipeline.holder").exists()
    assert not any(call.startswith("scontrol") for call in calls(cluster)), "Slurm requeues what it preempts itself"


def tasks(job: int) -> list[Any]:
    """Return all processes below the batch shell except its own copies, which belong to no step."""
    found = []
    for process in psutil.Process(job).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            if not any("slurm.sh" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_other_nodes_join_the_first(cluster: dict[str, str]) -> None:
    """There is one pipeline and one more process per node, which ends if the pipeline ends before training."""
    root = Path(cluster["SLURM_SUBMIT_DIR"])
    (root / "src").unlink()
    (root / "src/finetune").mkdir(parents=True)
    (root / "src/finetune/__init__.py").touch()
    (root / "src/finetune/__main__.py").write_text(
        "import os, sys, time\n"
        "if sys.argv[1] == 'join':\n"
        "    with open(os.environ['CALLS'], 'a') as file:\n"
        "        print('join', *(os.environ[k] for k in ('NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT')), file=file)\n"
        "    time.sleep(3600)\n",
        encoding="utf-8",
    )
    stage = "import time; from pathlib import Path\nwhile 'join' not in Path('calls').read_text(): time.sleep(0.05)\n"
    (root / "stage.py").write_text(stage, encoding="utf-8")  # as long as a training that the others have joined
    job = submit(cluster | {"NODES": "1 2 3"}, "quick")
    output, _ = job.communicate(timeout=PATIENCE)  # it does not wait for nodes that wait for it
    assert job.returncode == 0, output
    assert "join 1 node1 24711" in calls(cluster)
    assert any(call.startswith("srun --nodes=2 --ntasks=2 --exclude=node1 ") for call in calls(cluster))


SKY_MAKEFILE = """
setup:
	@mkdir -p .venv
train-h100 repro:
	@test -d work/checkpoints && mkdir out && touch dvc.lock out/$@ && $(END)
"""
INTERRUPTED = """echo '{ "ended": "interrupted" }' > work/status.json; false"""


def rent(root: Path, nodes: str, rank: str, recipe: str, end: str) -> subprocess.CompletedProcess[str]:
    """Run SkyPilot's `run` on one machine, with `/state` in a temporary folder and a make that ends as given."""
    here = root / "sky_workdir"
    here.mkdir()
    (here / "Makefile").write_text(SKY_MAKEFILE.replace("$(END)", end), encoding="utf-8")
    for name in ("params.yaml", "reports/train.json", "bin/dvc"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("#!/bin/bash\n", encoding="utf-8")
        (here / name).chmod(0o755)
    (here / "work").mkdir()
    (here / "work/status.json").write_text('{ "ended": "interrupted" }', encoding="utf-8")  # of an earlier run
    (root / "state").mkdir(exist_ok=True)
    given = {
        "IMAGE": "",
        "SKYPILOT_TASK_ID": "sky-1/x",
        "SKYPILOT_NODE_RANK": rank,
        "SKYPILOT_NUM_NODES": nodes,
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["bash", "-c", SKYPILOT["run"].replace("/state", str(root / "state"))],
        cwd=here,
        env=plain | given | {"RECIPE": recipe, "PATH": f"{here / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(("end", "code"), [("true", 0), ("false", 2), (INTERRUPTED, 5)])
def test_a_rented_machine_leaves_its_results(tmp_path: Path, end: str, code: int) -> None:
    """SkyPilot retries only after an interruption of this run; existing results are copied to the bucket."""
    done = rent(tmp_path, "1", "0", "h100", end)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "state/results/out/train-h100").is_file()
    assert (tmp_path / "sky_workdir/work/checkpoints").resolve() == tmp_path / "state/checkpoints"


def test_without_a_recipe_params_yaml_is_run(tmp_path: Path) -> None:
    """`--env RECIPE=` means `make repro`."""
    assert rent(tmp_path, "1", "0", "", "true").returncode == 0
    assert (tmp_path / "state/results/out/repro").is_file()


def test_the_first_of_several_machines_shares_its_folder(tmp_path: Path) -> None:
    """The other machines wait for the set-up and for the training."""
    assert rent(tmp_path, "2", "0", "h100", "true").returncode == 0
    assert (tmp_path / "state/finetune/out/train-h100").is_file()
    assert not (tmp_path / "sky_workdir/out").exists()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            "org/image:tag",
            "--container-image=org/image:tag --container-mounts={here}:{here},{cache}:{cache},/data:/data "
            "--container-workdir={here}",
        ),
        (
            "image.sif",
            "apptainer exec --nv --contain --workdir {here}/work/apptainer "
            "--bind {here}:{here},{cache}:{cache},/data:/data "
            "--pwd {here} image.sif make setup",
        ),
    ],
)
def test_an_image_is_used_for_every_step(cluster: dict[str, str], image: str, expected: str) -> None:
    """Set-up and run both use the image; otherwise they would have different Pythons."""
    here = cluster["SLURM_SUBMIT_DIR"]
    apptainer = Path(here, "bin/apptainer")
    apptainer.write_text(
        '#!/bin/bash\nwhile [ "$1" != image.sif ]; do shift; done\nshift\nexec "$@"\n', encoding="utf-8"
    )
    apptainer.chmod(0o755)
    cache = f"{here}/cache/hub"
    job = submit(cluster | {"IMAGE": image, "HF_HOME": f"{here}/cache", "MOUNTS": "/data:/data"}, "done")
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output
    steps = [call for call in calls(cluster) if call.startswith("srun")]
    assert len(steps) == 2
    assert expected.format(here=here, cache=cache) in steps[0]
    assert all(image in step for step in steps)


def test_jobs_run_the_same_containers_as_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image, mounts and command are those of containerised stages; otherwise the job would be a different run."""
    from finetune.containers.command_line import Mount, mounts
    from finetune.containers.images import image_name

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text, documented = scripts()["slurm.sh"], (JOBS / "README.md").read_text(encoding="utf-8")
    config = load_config(ROOT / "params.yaml")
    mounted = mounts(config, ROOT, network=True)  # for a linked worktree of git, its repository is mounted too
    assert Mount(ROOT, True) in mounted and Mount(tmp_path, True) in mounted  # each under its own path
    assert "mounts=$PWD:$PWD,$HF_HUB_CACHE:$HF_HUB_CACHE${MOUNTS:+,$MOUNTS}\n" in text
    assert text.count("$mounts") == 2
    for environment in ("cpu", "cuda"):
        name = image_name(environment, ROOT).partition(":")[0]
        assert name in documented
        assert f"ARG NAME={name}\n" in (ROOT / f"Dockerfile.{environment}").read_text(encoding="utf-8")
    # make runs the stages natively in the image, which identifies itself as one
    assert re.findall(r'bash -c .*make "\$1"', text) and 'make "${RECIPE:+train-}${RECIPE:-repro}"' in SKYPILOT["run"]
    assert runtime_of(config, {"FINETUNE_IMAGE": "finetune-cpu:1"}) == "native"
    assert "ENV FINETUNE_IMAGE=${NAME}" in (ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")
