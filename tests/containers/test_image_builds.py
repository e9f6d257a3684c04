"""Real image builds: their content, excluded content, and the effects of failed builds."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config.model import Environment
from finetune.containers import images
from finetune.errors import MachineError
from tests.builders.dockerfile_steps import BOTH
from tests.builders.standin import (
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

# -------------------------------------------------------------------------------------------------------- real builds


@pytest.fixture
def image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Callable[[Any], Built]:
    """`image("cpu")`: return the image, built once for all tests; print its size and its uncached build time."""

    def give(environment: Any) -> Built:
        require_tools(free_gigabytes=12 if environment == "cpu" else 25)
        request.getfixturevalue("early_build")
        built = built_image(environment)
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(workplace() / "storage.conf"))
        with capsys.disabled():
            print(f"\n{built.told} (cold, on a stand-in base)")
        return built

    return give


@pytest.mark.images
@BOTH
def test_the_built_image_is_as_specified(image: Callable[[Any], Built], environment: Any) -> None:
    """The image has labels, user and tools, and passed the checks in the build."""
    built = image(environment)
    for engine in ("podman", "buildah"):
        found = images.find_image(engine, built.name)
        assert found and found.labels[images.LOCK_LABEL] == images.locks_sha256(environment, ROOT), engine
        assert found.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found.labels["org.opencontainers.image.revision"])
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
@pytest.mark.when_nothing_builds
def test_no_secret_stays_in_the_images(image: Callable[[Any], Built]) -> None:
    """Secrets are in no file of any layer, also of earlier stages, nor in history or settings."""
    built: dict[Environment, Built] = {environment: image(environment) for environment in ("cpu", "cuda")}
    for environment in built:
        assert SECRET in Path(stand_in_environment(environment)["PIP_CONF"]).read_text(encoding="utf-8")
    layers = call(["grep", "--recursive", "-l", "-a", "-F", SECRET, str(workplace() / "storage")], dict(os.environ))
    assert (layers.returncode, layers.stdout) == (1, ""), layers.stderr
    for one in built.values():
        for words in (["history", "--no-trunc", "--format", "json"], ["image", "inspect"]):
            told = call(["podman", *words, one.name], dict(os.environ))
            assert told.returncode == 0 and "finetune" in told.stdout
            assert SECRET not in told.stdout
        with container(one.name) as (_, files):
            assert not list((files / "run/secrets").rglob("*"))
            assert not list((files / "opt/finetune").rglob("pip*.conf"))
            left = {path.name for path in (files / "opt/finetune").iterdir()}
            assert left == {".venv", "src", "requirements", "LICENSE"}


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """Return a copy of the build context that may be changed."""
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
    """All other layers come from the cache."""
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
@pytest.mark.when_nothing_builds
def test_failed_builds_keep_the_old_image(image: Callable[[Any], Built], tmp_path: Path) -> None:
    """Cases: locks that differ from the label, no base, no CPU build of PyTorch; real messages are parsed."""
    built = image("cpu")
    before = images.find_image("podman", built.name)
    options = stand_in_environment()["BUILD_OPTIONS"]
    nothing = tmp_path / "pip.conf"
    nothing.write_text("[global]\nno-index = true\n", encoding="utf-8")
    cases = [
        ({"BUILD_OPTIONS": f"{options} --build-arg LOCKS=0123"}, "error: LOCKS=0123 is not the sha256 of "),
        ({"BASE_IMAGE": "localhost/no/such:1"}, "error: image: BASE_IMAGE=localhost/no/such:1 can't be pulled: "),
        # another index, as engines reuse cached steps whatever the secrets are
        (
            {"TORCH_INDEX": "file:///nowhere", "PIP_CONF": str(nothing)},
            "error: image: none of the package indexes tried has PyTorch's CPU build",
        ),
    ]
    for changed, expected in cases:
        for engine in ("podman", "buildah"):
            done, _ = try_build("cpu", engine, ROOT, changed)
            assert done.returncode == MachineError.exit_code
            assert expected in done.stdout, done.stdout
            assert images.find_image("podman", built.name) == before
    assert call(["buildah", "containers", "--quiet"], dict(os.environ)).stdout == ""
