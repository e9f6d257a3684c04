"""The prepare stage on small files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import Config, params_of
from finetune.config.types import SPLITS
from finetune.errors import DataError
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.prepare import stage
from finetune.records.examples import Example
from finetune.records.io import read_examples

HALF = {"method": "exact", "train": 0.5, "validation": 0.25, "test": 0.25, "stratify_by": "agent"}
NEAR = {"exact": "drop", "near": "drop", "threshold": 0.5, "shingle_words": 2, "permutations": 64}


def row(task: str, output: str = "ValueError", success: bool = True, agent: str = "namer") -> bytes:
    """Return one good line."""
    return json.dumps({"agent": agent, "task": task, "output": output, "success": success}).encode()


def rows(count: int) -> list[bytes]:
    """Return this number of good lines with different prompts."""
    return [row(f"task {at}") for at in range(count)]


class Run:
    """The prepare stage in its own folder."""

    def __init__(self, root: Path, change: Callable[..., Config]) -> None:
        self.paths = Paths(root)
        self.change = change
        (root / "raw").mkdir()

    def __call__(self, *files: Sequence[bytes], **changed: Any) -> dict[str, Any]:
        """Return the ledger of prepare on files with these lines; `on_bad_row="skip"` changes `data.on_bad_row`."""
        sources = []
        for at, lines in enumerate(files):
            (self.paths.root / f"raw/{at}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
            sources.append({"name": f"s{at}", "path": f"{at}.jsonl", "format": "interactions"})
        settings: dict[str, Any] = {
            "directory": "raw",
            "sources": sources,
            "on_bad_row": "stop",
            "max_bad_fraction": 1.0,
            "system_prompts": {},
            "duplicates.near": "ignore",
            "split": HALF,
        } | changed
        config = self.change(**{f"data.{key}": value for key, value in settings.items()})
        stage.run(params_of("prepare", config), self.paths)
        return read_json(self.paths.reports / "prepare.json")

    def error(self, *files: Sequence[bytes], **changed: Any) -> str:
        """Return the text of the DataError, with RAW for the data folder."""
        with pytest.raises(DataError) as caught:
            self(*files, **changed)
        return str(caught.value).replace(str(self.paths.root / "raw"), "RAW")

    def examples(self) -> list[Example]:
        """Return all examples in the order of their sources and lines."""
        found = [one for name in SPLITS for one in read_examples(self.paths.prepared / f"{name}.jsonl")]
        return sorted(found, key=lambda one: (one.source, one.line))


@pytest.fixture
def prepare(tmp_path: Path, change: Callable[..., Config]) -> Run:
    """Return the stage in tmp_path."""
    return Run(tmp_path, change)


def split_of(prepare: Run, name: str) -> list[Example]:
    """Return the examples of one split."""
    return read_examples(prepare.paths.prepared / f"{name}.jsonl")
