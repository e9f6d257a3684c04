"""Attention kernels of the Hub: what a machine without a network needs to load them."""

from pathlib import Path

import pytest

from finetune.hardware import preflight
from finetune.hardware.preflight import find_kernel_problem

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "kernels-community/flash-attn2"


def test_the_package_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers refuses to load a kernel without it, or with another version."""
    monkeypatch.setattr(preflight, "kernels_supported", lambda: False)
    problem = find_kernel_problem(f"{NAME}@{COMMIT}")
    assert problem is not None
    assert problem.code == "attention-missing"
    assert problem.message == f"{NAME} needs the package kernels, in a version that transformers supports"


def test_a_kernel_must_be_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commit of params.yaml, not another one; an attention of transformers needs nothing."""
    from huggingface_hub import constants

    monkeypatch.setattr(preflight, "kernels_supported", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    problem = find_kernel_problem(f"{NAME}@{COMMIT}")
    assert problem is not None
    assert problem.message == f"{NAME} at {COMMIT} is not in the cache"
    assert problem.remedy == "run ./finetune pin with the recipe while connected"
    (tmp_path / "kernels--kernels-community--flash-attn2/snapshots" / COMMIT).mkdir(parents=True)
    assert find_kernel_problem(f"{NAME}@{COMMIT}") is None
    assert find_kernel_problem(f"{NAME}@{COMMIT[::-1]}") is not None
    assert find_kernel_problem("sdpa") is None
