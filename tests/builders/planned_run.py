"""A run to plan: the same simulated machine for every test, and small prepared and validated rows."""

from pathlib import Path

import pytest

from finetune.hardware import preflight
from finetune.plan import outlook as outlooks
from finetune.validate.checks import machine, plan
from tests.builders.small_run import ROOT, validated

COMMIT = "b2" * 20


def make_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate the same machine for every test: a CPU with 32 GB, no accelerator; and change to the root folder."""
    monkeypatch.chdir(ROOT)
    absent = {"cuda": "no CUDA device found", "apple": "torch finds no Apple GPU (MPS)"}
    for module in (preflight, plan, outlooks):
        monkeypatch.setattr(module, "find_missing_device", absent.get)
    for module in (plan, outlooks):
        monkeypatch.setattr(module, "memory_bytes", lambda environment: 32 * 10**9)
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda: True)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small run, prepared and validated."""
    root, present = tmp_path_factory.mktemp("planned") / "run", Path.cwd()
    import os

    try:
        validated(root)
    finally:
        os.chdir(present)
    return root
