"""The Dockerfiles' properties that can be tested without a build."""

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from finetune.containers import images
from finetune.hardware.locks import lock_files
from tests.builders.dockerfile_steps import BOTH, steps
from tests.builders.standin import ROOT


def final_steps(environment: str) -> list[tuple[str, str]]:
    """Return the steps of the last stage, which alone is kept."""
    found = steps(environment)
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


@BOTH
def test_base_is_pinned_by_its_digest(environment: str) -> None:
    """A tag may move; every stage starts from the base named by BASE_IMAGE, or from an earlier stage."""
    found = steps(environment)
    assert re.fullmatch(r"BASE_IMAGE=docker\.io/library/python:[\w.-]+@sha256:[0-9a-f]{64}", dict(found[:1])["ARG"])
    starts = [rest for name, rest in found if name == "FROM"]
    named = {start.split(" AS ")[1] for start in starts if " AS " in start}
    assert len(starts) > 1
    assert all(start.split()[0] == "${BASE_IMAGE}" or start.split()[0] in named for start in starts)


@BOTH
def test_labels_user_and_variables_are_set(environment: str) -> None:
    """Labels identify an image's origin; commands in it rely on user and variables."""
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
def test_source_is_copied_after_all_slow_steps(environment: str) -> None:
    """A change in src/ must rebuild only its own copy."""
    found = final_steps(environment)
    source = found.index(("COPY", "src /opt/finetune/src"))
    assert not [step for step in found[source:] if step[0] == "RUN"]
    changing = [at for at, (name, rest) in enumerate(found) if name == "ARG"]
    assert min(changing) > source  # the revision changes with every commit


@BOTH
def test_only_features_of_old_builders_are_used(environment: str) -> None:
    """buildah 1.28 has none of these features, and a syntax line would require a registry."""
    text = (ROOT / f"Dockerfile.{environment}").read_text(encoding="utf-8")
    for word in ("<<", "--link", "--network", "# syntax=", ",env=", "ADD "):
        assert word not in text


@BOTH
def test_secrets_are_optional_and_not_copied(environment: str) -> None:
    """Secrets are never copied, so no layer contains them; a build without secrets works too."""
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
def test_locks_in_the_build_match_the_label(environment: Any) -> None:
    """The build checks that LOCKS equals the hash of its locks, in the order used for the label."""
    names = " ".join(f"requirements/{path.name}" for path in lock_files(environment, ROOT))
    runs = [rest for name, rest in steps(environment) if name == "RUN"]
    compared, installed = (next(run for run in runs if word in run) for word in ("sha256sum --check", "setup.sh"))
    assert compared.startswith(f"cat {names} > /tmp/locks")
    assert f"requirements/setup.sh {environment}" in installed
    assert ("FALLBACK=no" in installed) == (environment == "cpu")
    assert f"requirements/installed.py {environment} {names}" in runs[-1]


@BOTH
def test_hadolint_reports_nothing(environment: str) -> None:
    """Each ignored rule has a documented reason."""
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
def test_the_context_contains_only_the_source(path: str) -> None:
    """Data, outputs, keys and caches are never sent to an engine, but everything that the Dockerfiles copy is."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]

    def seen(name: str) -> bool:
        parts = Path(name).parts
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        answer = True
        for rule in rules:  # the last matching rule applies
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
    """Source, dependency and compiler are locked by hash; the compiler is for the CUDA version of PyTorch."""
    lock = (ROOT / "requirements/flash-attn.lock").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, flags=re.MULTILINE))
    blocks = re.split(r"\n(?=[a-z])", lock)[1:]
    assert {"flash-attn", "einops", "ninja", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt"} <= pinned.keys()
    assert all("--hash=sha256:" in block for block in blocks)
    cuda = (ROOT / "requirements/cuda.lock").read_text(encoding="utf-8")
    toolkit = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", cuda, flags=re.MULTILINE)
    assert toolkit and pinned["nvidia-cuda-nvcc"].startswith(toolkit[1])
