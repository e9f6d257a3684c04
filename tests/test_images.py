"""The images: what the Dockerfiles promise, how each engine is asked to build, what is told when it fails; builds."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from finetune import images
from finetune.errors import ConfigError, FinetuneError, MachineError
from tests.standin import (
    ROOT,
    SECRET,
    Built,
    build_image,
    built_image,
    call,
    container,
    require_tools,
    stand_in_environment,
    try_build,
    workplace,
)

BOTH = pytest.mark.parametrize("environment", ["cpu", "cuda"])
VARIABLES = ("BASE_IMAGE", "TORCH_INDEX", "FLASH_ATTN", "FLASH_ATTN_CUDA_ARCHS", "MAX_JOBS", "PIP_CONF", "CA_FILE")


# ----------------------------------------------------------------------------------------------- the Dockerfiles' text


def steps(environment: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, lines joined, without comments."""
    text = (ROOT / f"Dockerfile.{environment}").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, re.sub(r"\s+", " ", rest)) for name, rest in pairs]


def final_steps(environment: str) -> list[tuple[str, str]]:
    """Those of the last stage, which alone is kept."""
    found = steps(environment)
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


@BOTH
def test_base_is_pinned_by_its_digest(environment: str) -> None:
    """A tag moves; every stage starts from the one base that BASE_IMAGE names, or from a stage before."""
    found = steps(environment)
    assert re.fullmatch(r"BASE_IMAGE=docker\.io/library/python:[\w.-]+@sha256:[0-9a-f]{64}", dict(found[:1])["ARG"])
    starts = [rest for name, rest in found if name == "FROM"]
    named = {start.split(" AS ")[1] for start in starts if " AS " in start}
    assert len(starts) > 1
    assert all(start.split()[0] == "${BASE_IMAGE}" or start.split()[0] in named for start in starts)


@BOTH
def test_labels_user_and_variables(environment: str) -> None:
    """What tells an image's origin, and what a command in it counts on."""
    found = final_steps(environment)
    labels = next(rest for name, rest in found if name == "LABEL")
    for key in ("revision", "title", "description", "licenses"):
        assert f"org.opencontainers.image.{key}=" in labels
    assert f'{images.LOCK_LABEL}="${{LOCKS}}"' in labels
    assert 'licenses="Apache-2.0"' in labels
    variables = " ".join(rest for name, rest in found if name == "ENV")
    expected = ["PATH=/opt/finetune/.venv/bin:$PATH", "PYTHONPATH=/opt/finetune/src", "PYTHONDONTWRITEBYTECODE=1"]
    expected += ["PYTHONUNBUFFERED=1", "DVC_NO_ANALYTICS=1", "FINETUNE_IMAGE=${NAME}", "FINETUNE_LOCKS=${LOCKS}"]
    if environment == "cuda":
        expected += ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
    assert [word for word in expected if word not in variables.split()] == []
    assert "HF_HUB_OFFLINE" not in variables
    assert [rest for name, rest in found if name == "USER"] == ["10001:10001"]
    assert [rest for name, rest in found if name == "WORKDIR"][-1] == "/work"
    assert dict(found)["ENTRYPOINT"] == '["/usr/bin/tini", "--"]'


@BOTH
def test_source_comes_after_everything_that_takes_long(environment: str) -> None:
    """A change under src/ must build nothing anew but its own copy."""
    found = final_steps(environment)
    source = found.index(("COPY", "src /opt/finetune/src"))
    assert not [step for step in found[source:] if step[0] == "RUN"]
    changing = [at for at, (name, rest) in enumerate(found) if name == "ARG"]
    assert min(changing) > source  # the revision changes with every commit


@BOTH
def test_only_what_old_builders_know(environment: str) -> None:
    """buildah 1.28 has none of these, and a syntax line makes a registry necessary."""
    text = (ROOT / f"Dockerfile.{environment}").read_text(encoding="utf-8")
    for word in ("<<", "--link", "--network", "# syntax=", ",env=", "ADD "):
        assert word not in text


@BOTH
def test_secrets_are_optional_and_read_in_place(environment: str) -> None:
    """Nothing copies them, so nothing of them can stay; a plain build goes without."""
    for name, rest in steps(environment):
        if "secret" in rest:
            assert name == "RUN"
            assert "required" not in rest
            assert not re.search(r"(cp|mv|cat|tee|install) [^;&|]*/run/secrets", rest)
        for secret in re.findall(r"/run/secrets/(\w+)", rest):
            assert secret in images.SECRETS
            assert f"[ -s /run/secrets/{secret} ]" in rest
            assert f"--mount=type=secret,id={secret}" in rest


@BOTH
def test_locks_in_the_build_are_those_of_the_label(environment: Any) -> None:
    """The build refuses another LOCKS than the locks that it installs, in the order that the label is computed in."""
    names = " ".join(f"requirements/{path.name}" for path in images.lock_files(environment, ROOT))
    runs = [rest for name, rest in steps(environment) if name == "RUN"]
    compared, installed = (next(run for run in runs if word in run) for word in ("sha256sum --check", "setup.sh"))
    assert compared.startswith(f"cat {names} > /tmp/locks")
    assert f"requirements/setup.sh {environment}" in installed
    assert ("FALLBACK=no" in installed) == (environment == "cpu")
    assert f"requirements/installed.py {environment} {names}" in runs[-1]


@BOTH
def test_hadolint_finds_nothing(environment: str) -> None:
    """Each rule that is ignored has its reason beside it."""
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        (pytest.fail if os.environ.get("REQUIRE_IMAGE") == "1" else pytest.skip)("no hadolint: make setup-dev")
    path = ROOT / f"Dockerfile.{environment}"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    lines = path.read_text(encoding="utf-8").splitlines()
    for at, line in enumerate(lines):
        assert "hadolint ignore" not in line or (lines[at - 1].startswith("# ") and len(lines[at - 1]) > 30)


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", "work/log", "out/adapter/x", "data/raw/x.jsonl", "reports/x.json"),
        *(".dvc/config", ".dvc/config.local", "params.yaml", "pip.conf", ".env"),
        *("src/finetune/__pycache__/x.pyc", "src/finetune/x.pyc"),
    ],
)
def test_the_context_is_the_source_alone(path: str) -> None:
    """Data, outputs, keys and caches are never sent to an engine; what the Dockerfiles copy is."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]

    def seen(name: str) -> bool:
        parts = Path(name).parts
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        answer = True
        for rule in rules:  # the last one that fits wins
            pattern = rule.removeprefix("!").removeprefix("**/")
            whole = list(parts) if "**/" in rule else prefixes
            if any(fnmatch(prefix, pattern) for prefix in whole):
                answer = rule.startswith("!")
        return answer

    assert not seen(path)
    for environment in ("cpu", "cuda"):
        for name, rest in steps(environment):
            if name == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert seen(source) and (ROOT / source).exists(), source


def test_flash_attention_is_locked() -> None:
    """Its source, its only need and its compiler by hash; the compiler is of the CUDA that PyTorch brings."""
    lock = (ROOT / "requirements/flash-attn.lock").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, flags=re.MULTILINE))
    blocks = re.split(r"\n(?=[a-z])", lock)[1:]
    assert {"flash-attn", "einops", "ninja", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt"} <= pinned.keys()
    assert all("--hash=sha256:" in block for block in blocks)
    cuda = (ROOT / "requirements/cuda.lock").read_text(encoding="utf-8")
    toolkit = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", cuda, flags=re.MULTILINE)
    assert toolkit and pinned["nvidia-cuda-nvcc"].startswith(toolkit[1])


# ------------------------------------------------------------------------------------------------- the engines' part

Fake = Callable[..., None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`fake("podman", build="echo no; exit 1")`: an engine on PATH; commands not named do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{tmp_path / 'git'}")
    (tmp_path / "git").mkdir()
    for tool in ("git", "cat", "sh", "env"):
        (tmp_path / "git" / tool).symlink_to(str(shutil.which(tool, path="/usr/bin:/bin:/usr/local/bin")))
    for name in (*VARIABLES, "BUILD_OPTIONS"):
        monkeypatch.delenv(name, raising=False)

    def make(engine: str, **commands: str) -> None:
        cases = "".join(f"{name}) {what} ;;\n" for name, what in commands.items())
        path = folder / engine
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$1" in\n{cases}esac\n', encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def inspected(environment: Any, **changed: Any) -> str:
    """What docker and podman tell of an image, as a shell command that prints it."""
    labels = {images.LOCK_LABEL: images.locks_sha256(environment, ROOT)}
    told = {"Id": "sha256:1234", "Size": 1_400_000_000, "Created": "2026-01-01T00:00:00Z", "Config": {"Labels": labels}}
    return f"echo '{json.dumps([told | changed])}'"


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
@BOTH
def test_command_line(engine: str, environment: Any, tmp_path: Path) -> None:
    """One engine's line differs from another's in its name alone, and buildah's in keeping layers and no containers."""
    secret = tmp_path / "pip.conf"
    secret.touch()
    variables = {"BASE_IMAGE": "x/y:1", "TORCH_INDEX": "https://t", "FLASH_ATTN": "2.8", "PIP_CONF": str(secret)}
    line = images.build_command(
        engine, environment, ROOT, variables | {"BUILD_OPTIONS": "--network host --volume '/a b:/c'", "CA_FILE": ""}
    )
    name = images.image_name(environment, ROOT)
    assert line[:6] == [engine, "build", "--file", str(ROOT / f"Dockerfile.{environment}"), "--tag", name]
    assert ("--layers" in line) == ("--force-rm" in line) == (engine == "buildah")
    arguments = dict(line[at + 1].split("=", 1) for at, word in enumerate(line) if word == "--build-arg")
    own = {"TORCH_INDEX": "https://t"} if environment == "cpu" else {"FLASH_ATTN": "2.8"}
    locks = images.locks_sha256(environment, ROOT)
    assert arguments.pop("REVISION") == images.revision(ROOT)
    assert arguments == {"BASE_IMAGE": "x/y:1", "LOCKS": locks, "NAME": name} | own
    assert line[line.index("--secret") + 1] == f"id=pip_conf,src={secret}"
    assert line[-5:] == ["--network", "host", "--volume", "/a b:/c", str(ROOT)]


def test_arguments_are_what_the_dockerfiles_declare() -> None:
    """An argument that a Dockerfile does not know is dropped by engines with a mere warning."""
    for environment, names in images.ARGUMENTS.items():
        declared = {rest.split("=")[0] for name, rest in steps(environment) if name == "ARG"}
        assert {*names, "LOCKS", "NAME", "REVISION"} == declared
        secrets = {word for _, rest in steps(environment) for word in re.findall(r"type=secret,id=(\w+)", rest)}
        assert secrets == images.SECRETS.keys()


def test_a_build_tells_name_size_and_time(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    """Its last line is what a person wants to know; the engine's own words went before."""
    fake("podman", build="echo STEP 1/2: FROM x", image=inspected("cpu"))
    images.run(ROOT, "cpu")
    told = capfd.readouterr()
    name = images.image_name("cpu", ROOT)
    assert re.fullmatch(rf"{name}: 1\.40 GB, built by podman in \d+ seconds\n", told.out)
    assert "STEP 1/2: FROM x" in told.err


@pytest.mark.parametrize(
    ("here", "preferred", "chosen"),
    [
        (("docker", "podman", "buildah"), None, "docker"),
        (("docker", "podman", "buildah"), "native", "docker"),
        (("docker", "podman"), "podman", "podman"),
        (("docker", "buildah"), "podman", "buildah"),
        (("podman", "buildah"), "docker", None),
        (("buildah",), None, "buildah"),
        ((), None, None),
    ],
)
def test_choice_of_the_engine(fake: Fake, here: tuple[str, ...], preferred: str | None, chosen: str | None) -> None:
    """docker before podman before buildah; never one whose images the run's runtime can't see."""
    for engine in here:
        fake(engine)
    if chosen:
        assert images.choose_engine(preferred) == chosen
    else:
        with pytest.raises(MachineError, match=r"install one: `sudo apt-get install podman`"):
            images.choose_engine(preferred)


def test_an_engine_without_its_daemon_gives_way(fake: Fake) -> None:
    """A docker client alone, left on many machines, is no reason to fail where podman works."""
    fake(
        "docker",
        info="echo 'Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?' >&2; exit 1",
    )
    fake("podman")
    assert images.choose_engine() == "podman"
    with pytest.raises(MachineError, match="docker is installed but not running"):
        images.choose_engine("docker")


DENIED = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
FAILURES = {
    "daemon": (
        {"info": "echo 'Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?' >&2; exit 1"},
        "docker is installed but not running; start it: `sudo systemctl start docker`, or Docker Desktop on a Mac",
    ),
    "denied": (
        {"info": f"echo '{DENIED}' >&2; exit 1"},
        "docker: you may not use it; add yourself to the group docker (`sudo usermod -aG docker $USER`, then log in "
        "again)",
    ),
    "lost daemon": (
        {"build": "echo 'ERROR: Cannot connect to the Docker daemon at unix:///x.'; exit 1"},
        "docker is installed but not running; start it: `sudo systemctl start docker`, or Docker Desktop on a Mac",
    ),
    "buildkit": (
        {"build": "echo 'ERROR: BuildKit is enabled but the buildx component is missing or broken.'; exit 1"},
        "image: docker lacks BuildKit; install it (`sudo apt-get install docker-buildx`, or docker-buildx-plugin from "
        "Docker's own packages)",
    ),
    "base": (
        {"build": "echo 'ERROR: no.such/base:1: failed to resolve source metadata: no such host'; exit 1"},
        "image: BASE_IMAGE=no.such/base:1 can't be pulled: ERROR: no.such/base:1: failed to resolve "
        "source metadata: no such host; name one that this machine can reach (a Debian with Python 3.11 to 3.13): "
        "make image-cpu BASE_IMAGE=...",
    ),
    "space": (
        {"build": "echo 'write /x: no space left on device'; exit 1"},
        "image: no space is left; `docker images` shows what images take",
    ),
    "torch": (
        {"build": "echo 'error: the CPU build is not on the index; set TORCH_INDEX to the one that'; exit 1"},
        "image: PyTorch's CPU build is not on pip's index; set TORCH_INDEX to the CPU index that PyTorch's "
        "installation page names: make image-cpu TORCH_INDEX=https://...",
    ),
    "step": (
        {"build": "echo '[2/2] STEP 5/9: RUN make it'; echo 'make: no such rule'; exit 2"},
        "image: the build failed in STEP 5/9: RUN make it; its last lines:\n"
        "[2/2] STEP 5/9: RUN make it\nmake: no such rule",
    ),
    "buildkit step": (
        {"build": "echo ' > [packages 4/5] RUN make it:'; echo '0.1 no rule'; exit 1"},
        "image: the build failed in [packages 4/5] RUN make it; its last lines:\n"
        " > [packages 4/5] RUN make it:\n0.1 no rule",
    ),
    "vanished": (
        {"image": "echo 'Error: No such image: x' >&2; exit 1"},
        f"docker says that it built {images.image_name('cpu', ROOT)}, and has no such image of these locks; "
        "build it again",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_say_what_to_do(fake: Fake, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The whole text of each."""
    commands, told = FAILURES[kind]
    fake("docker", **commands)
    monkeypatch.setenv("BASE_IMAGE", "no.such/base:1")
    with pytest.raises(MachineError) as error:
        images.run(ROOT, "cpu")
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"PIP_CONF": "/no/such/pip.conf"}, "PIP_CONF=/no/such/pip.conf: there is no such file"),
        ({"CA_FILE": "/no/such/ca"}, "CA_FILE=/no/such/ca: there is no such file"),
        ({"BUILD_OPTIONS": "--x 'y"}, "BUILD_OPTIONS: No closing quotation; it is read as a shell reads words"),
    ],
)
def test_wrong_variables(variables: Mapping[str, str], told: str) -> None:
    """They are bad use, seen before anything is built."""
    with pytest.raises(ConfigError) as error:
        images.build_command("docker", "cpu", ROOT, variables)
    assert str(error.value) == told


def test_apple_has_no_image() -> None:
    """A Mac's GPU is out of a container's reach."""
    with pytest.raises(ConfigError, match="use cpu or cuda"):
        images.build("apple", ROOT)


def test_an_interrupted_build_stops_its_engine(fake: Fake, tmp_path: Path) -> None:
    """Ctrl-C and make stop: the engine is told, waited for, and nothing is tagged."""
    fake("docker", build=f"trap 'echo gone > {tmp_path}/ended; exit 1' TERM; echo go; while :; do :; done")
    code = "from pathlib import Path; from finetune.images import run; run(Path(), 'cpu')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr and process.stderr.readline() == "go\n"
    process.send_signal(2)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "gone\n"


def test_revision(tmp_path: Path) -> None:
    """The commit, with -dirty where files differ; unknown outside of git."""
    assert images.revision(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    clean = images.revision(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "new").touch()
    assert images.revision(tmp_path) == f"{clean}-dirty"


def test_found_images(fake: Fake) -> None:
    """Present, absent and unreachable are three answers."""
    fake("docker", image=inspected("cpu", Config={"Labels": None}), images="printf 'finetune-cpu:1\\nother:2\\n'")
    assert images.find_image("docker", "x") == images.Image("1234", {}, 1_400_000_000, "2026-01-01T00:00:00Z")
    assert images.other_images("docker", "cpu") == ["finetune-cpu:1"]
    fake("podman", image="echo 'Error: x: image not known' >&2; exit 125", images="echo localhost/finetune-cuda:9")
    assert images.find_image("podman", "x") is None
    assert images.other_images("podman", "cuda") == ["finetune-cuda:9"]
    fake("docker", image="echo broken >&2; exit 1", images="echo broken >&2; exit 1")
    for asked in (lambda: images.find_image("docker", "x"), lambda: images.other_images("docker", "cpu")):
        with pytest.raises(MachineError, match="docker can't be used: broken"):
            asked()
    with pytest.raises(FinetuneError, match="buildah is not installed here"):
        images.find_image("buildah", "x")


# -------------------------------------------------------------------------------------------------------- real builds


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Any], Built]:
    """`image("cpu")`: the image, built once for all tests; tells its size and the time of its cold build."""

    def give(environment: Any) -> Built:
        require_tools(free_gigabytes=12 if environment == "cpu" else 25)
        built = built_image(environment)
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(workplace() / "storage.conf"))
        with capsys.disabled():
            print(f"\n{built.told} (cold, on a stand-in base)")
        return built

    return give


@pytest.mark.images
@BOTH
def test_built_image_is_what_was_asked_for(image: Callable[[Any], Built], environment: Any) -> None:
    """Labels, user, tools, and the checks that ran in the build."""
    built = image(environment)
    for engine in ("podman", "buildah"):
        found = images.find_image(engine, built.name)
        assert found and found.labels[images.LOCK_LABEL] == images.locks_sha256(environment, ROOT), engine
        assert found.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found.labels[images.REVISION_LABEL])
        assert 0.5e9 < found.bytes < (2.5e9 if environment == "cpu" else 8e9)
        assert built.name in images.other_images(engine, environment)
    assert re.search(r"\d+ packages at their locked versions", built.log)
    if environment == "cpu":
        assert re.search(r"torch [\d.]+\+cpu", built.log)
    else:
        assert re.search(r"torch [\d.]+\+cu13", built.log) and re.search(r"triton \S+ compiles", built.log)
    with container(built.name) as (name, _):
        run = ["buildah", "run", "--isolation", "chroot", name, "--", "sh", "-c"]
        told = call(
            [*run, "id -u; pwd; echo $FINETUNE_IMAGE; touch /opt/finetune/x 2>&1; which make git tini"],
            dict(os.environ),
        )
        user, place, own, refused, *tools = told.stdout.splitlines()
        assert (user, place, own) == ("10001", "/work", built.name)
        assert "Permission denied" in refused
        assert tools == ["/usr/bin/make", "/usr/bin/git", "/usr/bin/tini"]
        help_text = call([*run, "python -m finetune --help"], dict(os.environ))
        assert "decide" in help_text.stdout, help_text.stderr


@pytest.mark.images
@BOTH
def test_no_secret_stays(image: Callable[[Any], Built], environment: Any) -> None:
    """Neither in a file of any layer, also those of the stages before, nor in the history, nor in the settings."""
    built = image(environment)
    assert SECRET in Path(stand_in_environment(environment)["PIP_CONF"]).read_text(encoding="utf-8")
    layers = call(["grep", "--recursive", "-l", "-a", "-F", SECRET, str(workplace() / "storage")], dict(os.environ))
    assert (layers.returncode, layers.stdout) == (1, ""), layers.stderr
    for words in (["history", "--no-trunc", "--format", "json"], ["image", "inspect"]):
        told = call(["podman", *words, built.name], dict(os.environ))
        assert told.returncode == 0 and "finetune" in told.stdout
        assert SECRET not in told.stdout
    with container(built.name) as (_, files):
        assert not list((files / "run/secrets").rglob("*"))
        assert not list((files / "opt/finetune").rglob("pip*.conf"))
        left = {path.name for path in (files / "opt/finetune").iterdir()}
        assert left == {".venv", "src", "requirements", "LICENSE"}


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """What a build sees of this tree, to be changed."""
    names = ["src", "requirements", "LICENSE", ".dockerignore", "Dockerfile.cpu", "Dockerfile.cuda"]
    for name in names:
        source, target = ROOT / name, tmp_path / "tree" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    return tmp_path / "tree"


@pytest.mark.images
def test_a_change_of_the_source_is_built_in_seconds(
    image: Callable[[Any], Built], copied_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All the rest comes from the layers that are there."""
    built = image("cpu")
    (copied_tree / "src/finetune/added.py").write_text('"""Added."""\n', encoding="utf-8")
    for engine in ("podman", "buildah"):
        again = build_image("cpu", engine, copied_tree)
        with capsys.disabled():
            print(f"\nafter a change of the source: {again.seconds:.1f} seconds ({engine})")
        assert again.name == built.name
        runs = re.findall(r"STEP \d+/\d+: RUN .*\n(.*)", again.log)
        assert len(runs) > 3 and all(line.startswith("--> Using cache") for line in runs), again.log
        with container(again.name) as (_, files):
            assert (files / "opt/finetune/src/finetune/added.py").is_file()


@pytest.mark.images
def test_failed_builds_leave_the_image_as_it_was(image: Callable[[Any], Built], tmp_path: Path) -> None:
    """Other locks than the label's, no base, and no CPU build of PyTorch: real engines' words are understood."""
    built = image("cpu")
    before = images.find_image("podman", built.name)
    options = stand_in_environment()["BUILD_OPTIONS"]
    nothing = tmp_path / "pip.conf"
    nothing.write_text("[global]\nno-index = true\n", encoding="utf-8")
    cases = [
        ({"BUILD_OPTIONS": f"{options} --build-arg LOCKS=0123"}, "error: LOCKS=0123 is not the sha256 of "),
        ({"BASE_IMAGE": "localhost/no/such:1"}, "error: image: BASE_IMAGE=localhost/no/such:1 can't be pulled: "),
        # another index, as an engine takes a step from what is there whatever its secrets are
        (
            {"TORCH_INDEX": "file:///nowhere", "PIP_CONF": str(nothing)},
            "error: image: PyTorch's CPU build is not on pip's",
        ),
    ]
    for changed, expected in cases:
        for engine in ("podman", "buildah"):
            done, _ = try_build("cpu", engine, ROOT, changed)
            assert done.returncode == MachineError.exit_code
            assert expected in done.stdout, done.stdout
            assert images.find_image("podman", built.name) == before
    assert call(["buildah", "containers", "--quiet"], dict(os.environ)).stdout == ""
