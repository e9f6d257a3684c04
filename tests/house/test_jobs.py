"""The job files: what they name exists, and a stand-in for Slurm stops, saves and requeues a run as they say."""

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
# Runs its command here and now, as the first task of a step; the options are written down.
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
    """Every shell text of the job files by its name."""
    slurm = (JOBS / "slurm.sh").read_text(encoding="utf-8")
    return {"slurm.sh": slurm, "setup": SKYPILOT["setup"], "run": SKYPILOT["run"]}


@pytest.mark.parametrize("name", ["slurm.sh", "setup", "run"])
def test_the_scripts_are_bash(name: str) -> None:
    """A missing quote would be found when the machine is paid for already."""
    done = subprocess.run(["bash", "-n"], input=scripts()[name], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["slurm.sh", "setup", "run", "README.md"])
def test_every_command_that_is_named_exists(name: str) -> None:
    """A renamed target or command must not live on in a file that nobody runs here."""
    text = scripts().get(name) or "\n".join(re.findall(r"`([^`]+)`", (JOBS / name).read_text(encoding="utf-8")))
    shipped = {f"train-{path.stem}" for path in (ROOT / "recipes").glob("*.yaml")}
    targets = set(re.findall(r"\bmake (?:-C \S+ )?([a-z][a-z0-9-]*)", text))
    assert targets <= set(makefile_targets()) | shipped
    commands = set(re.findall(r"(?:^|\./|exec |\" |; )finetune ([a-z]+)", text, flags=re.MULTILINE))
    assert commands <= {one.name for _, found in all_commands() for one in found}
    assert targets | commands or name == "setup"


def test_skypilots_fields_are_those_of_its_documentation() -> None:
    """An unknown field is refused only after the submission."""
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
    """One that is not set is empty in a shell, and the run goes wrong in silence."""
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
    """The save must be over before the limit, or the job ends instead of going on."""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", scripts()["slurm.sh"], flags=re.MULTILINE))
    assert options["open-mode"] == "append" and "requeue" in options
    shell, seconds = options["signal"].split("@")
    assert shell == "B:USR1"
    (patience,) = re.findall(r"PATIENCE:-(\d+)", scripts()["slurm.sh"])
    assert int(patience) + 30 <= int(seconds)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a batch script in a folder with a Makefile, and srun and scontrol that pretend."""
    for name, text in (("bin/srun", SRUN), ("bin/scontrol", SCONTROL), ("Makefile", MAKEFILE), ("stage.py", STAGE)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "src").symlink_to(ROOT / "src")  # the script names it as it lies in the repository
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
    """The batch script as Slurm would start it."""
    command = ["bash", str(JOBS / "slurm.sh"), *words]
    return subprocess.Popen(command, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def calls(cluster: dict[str, str]) -> list[str]:
    """What was asked of srun and scontrol, and the set-up."""
    path = Path(cluster["CALLS"])
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_a_run_that_ends_is_not_requeued(cluster: dict[str, str]) -> None:
    """It would run for ever."""
    job = submit(cluster, "done")
    told, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, told
    assert "set up" in calls(cluster)
    assert not any(call.startswith("scontrol") for call in calls(cluster))


def test_a_run_that_fails_is_not_requeued(cluster: dict[str, str]) -> None:
    """A mistake in the data stays one, however often it is tried."""
    Path(cluster["SLURM_SUBMIT_DIR"], "stage.py").write_text("raise SystemExit(3)", encoding="utf-8")
    job = submit(cluster, "quick")
    job.communicate(timeout=PATIENCE)
    assert job.returncode == 2
    assert not any(call.startswith("scontrol") for call in calls(cluster))


def test_the_warning_stops_saves_and_requeues(cluster: dict[str, str]) -> None:
    """The point of the file: five minutes before the end, the run is saved and goes back into the queue."""
    holder = Path(cluster["SLURM_SUBMIT_DIR"], "work/pipeline.holder")
    job = submit(cluster, "quick")
    wait_for(holder.exists, job)
    job.send_signal(signal.SIGUSR1)  # as B:USR1 does: the batch shell alone
    told, _ = job.communicate(timeout=PATIENCE)
    assert (
        "train stopped at step 8 of 45; the checkpoint of step 8 is kept, and running the same command again resumes"
        in told
    )
    assert calls(cluster)[-1] == "scontrol requeue 4711"
    assert job.returncode == 2
    assert not holder.exists()


def test_a_signal_to_all_tasks_leaves_the_stage_time_to_save(cluster: dict[str, str]) -> None:
    """A preemption without warning: DVC dies of SIGTERM at once, and the step must not end before the stage did."""
    root = Path(cluster["SLURM_SUBMIT_DIR"])
    slow = STAGE.replace("def end(number, frame):", "def end(number, frame):\n    time.sleep(2)")
    (root / "stage.py").write_text(slow, encoding="utf-8")
    job = submit(cluster, "dvc")
    wait_for((root / "work/pipeline.holder").exists, job)
    for process in tasks(job.pid):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    job.wait(timeout=PATIENCE)  # not its output's end, which a stage that was left behind would put off
    assert (root / "work/checkpoints/run/checkpoint-8").is_dir()
    assert not (root / "work/pipeline.holder").exists()
    assert not any(call.startswith("scontrol") for call in calls(cluster)), "Slurm requeues what it preempts itself"


def tasks(job: int) -> list[Any]:
    """All processes below the batch shell but its own copies, which no step knows."""
    found = []
    for process in psutil.Process(job).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            if not any("slurm.sh" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_several_nodes_join_the_first(cluster: dict[str, str]) -> None:
    """One pipeline, and one process more a node, which is ended where the pipeline ends before it trains."""
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
    told, _ = job.communicate(timeout=PATIENCE)  # it does not wait for nodes that wait for it
    assert job.returncode == 0, told
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
    """SkyPilot's `run` on one machine, with `/state` in a temporary folder and a make that ends as told."""
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
    """Only an interruption of this very run is tried again by SkyPilot; what there is goes into the bucket."""
    done = rent(tmp_path, "1", "0", "h100", end)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "state/results/out/train-h100").is_file()
    assert (tmp_path / "sky_workdir/work/checkpoints").resolve() == tmp_path / "state/checkpoints"


def test_without_a_recipe_the_params_are_run(tmp_path: Path) -> None:
    """`--env RECIPE=` is `make repro`."""
    assert rent(tmp_path, "1", "0", "", "true").returncode == 0
    assert (tmp_path / "state/results/out/repro").is_file()


def test_the_first_of_several_machines_shares_its_folder(tmp_path: Path) -> None:
    """The others wait there for the set-up and for the training."""
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
    """The set-up inside and the run outside would mix two Pythons."""
    here = cluster["SLURM_SUBMIT_DIR"]
    apptainer = Path(here, "bin/apptainer")
    apptainer.write_text(
        '#!/bin/bash\nwhile [ "$1" != image.sif ]; do shift; done\nshift\nexec "$@"\n', encoding="utf-8"
    )
    apptainer.chmod(0o755)
    cache = f"{here}/cache/hub"
    job = submit(cluster | {"IMAGE": image, "HF_HOME": f"{here}/cache", "MOUNTS": "/data:/data"}, "done")
    told, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, told
    steps = [call for call in calls(cluster) if call.startswith("srun")]
    assert len(steps) == 2
    assert expected.format(here=here, cache=cache) in steps[0]
    assert all(image in step for step in steps)


def test_jobs_run_what_the_containers_of_the_stages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same image by name, the same places in it, the same command in the end: or a job is another run."""
    from finetune.containers.command_line import Mount, mounts
    from finetune.containers.images import image_name

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text, documented = scripts()["slurm.sh"], (JOBS / "README.md").read_text(encoding="utf-8")
    config = load_config(ROOT / "params.yaml")
    mounted = mounts(config, ROOT, network=True)  # in a linked worktree of git, its repository too
    assert Mount(ROOT, True) in mounted and Mount(tmp_path, True) in mounted  # each under its own path
    assert "mounts=$PWD:$PWD,$HF_HUB_CACHE:$HF_HUB_CACHE${MOUNTS:+,$MOUNTS}\n" in text
    assert text.count("$mounts") == 2
    for environment in ("cpu", "cuda"):
        name = image_name(environment, ROOT).partition(":")[0]
        assert name in documented
        assert f"ARG NAME={name}\n" in (ROOT / f"Dockerfile.{environment}").read_text(encoding="utf-8")
    # make, in the image, runs the stages' own commands, natively: the image says that it is one
    assert re.findall(r'bash -c .*make "\$1"', text) and 'make "${RECIPE:+train-}${RECIPE:-repro}"' in SKYPILOT["run"]
    assert runtime_of(config, {"FINETUNE_IMAGE": "finetune-cpu:1"}) == "native"
    assert "ENV FINETUNE_IMAGE=${NAME}" in (ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")
