"""The instructions of the Dockerfiles, parsed."""

import re

import pytest

from tests.builders.standin import ROOT

BOTH = pytest.mark.parametrize("environment", ["cpu", "cuda"])


def steps(environment: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, lines joined, without comments."""
    text = (ROOT / f"Dockerfile.{environment}").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, re.sub(r"\s+", " ", rest)) for name, rest in pairs]
