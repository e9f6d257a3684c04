"""Load one side of a comparison: params, reports and answers of the working tree, a git revision or an experiment.

Reads the working tree, or git and DVC's cache.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune.commands.experiments.listing import WORKSPACE
from finetune.config.loading import read_yaml
from finetune.errors import DataError, FinetuneError
from finetune.files.hashing import sha256_file
from finetune.files.strict_json import read_json
from finetune.paths import Paths
from finetune.pipeline.revisions import again, copy_file, files_of, is_written
from finetune.records.examples import Prediction
from finetune.records.io import read_predictions

NEEDED, WELCOME = ("evaluation",), ("cost", "train", "train_cost", "decision")


@dataclass(frozen=True)
class ComparedRun:
    """The data of one run, with the reports that it has."""

    name: str
    params: dict[str, Any]
    reports: dict[str, dict[str, Any]]
    predictions: list[Prediction]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The evaluation report."""
        return self.reports["evaluation"]


def read_run(name: str, root: Path) -> ComparedRun:
    """Load a run by name. Raise ConfigError if it does not exist, DataError if part of it is unavailable."""
    if name == WORKSPACE:
        return _read(name, root)
    with TemporaryDirectory() as folder:
        fetch(name, root, Path(folder))
        try:
            return _read(name, Path(folder))
        except FinetuneError as error:  # its path is a temporary one, meaningless to the user
            raise error.elsewhere(f"{folder}/", f"{name}: ") from None


def _read(name: str, root: Path) -> ComparedRun:
    paths = Paths(root)
    reports = {report: read_json(paths.reports / f"{report}.json") for report in NEEDED}
    known = [report for report in WELCOME if (paths.reports / f"{report}.json").exists()]
    reports |= {report: read_json(paths.reports / f"{report}.json") for report in known}
    for key in ("test_sha256", "adapter_sha256", "predictions_sha256", "groups"):
        if key not in reports["evaluation"]:
            raise DataError(name, f"reports/evaluation.json has no {key}", "evaluate it again with this version")
    predictions = read_predictions(paths.predictions)
    if sha256_file(paths.predictions) != reports["evaluation"]["predictions_sha256"]:
        raise DataError(
            name, "out/predictions.jsonl differs from the file that evaluation.json records", "run evaluate again"
        )
    return ComparedRun(name, read_yaml(root / "params.yaml") or {}, reports, predictions)


def fetch(name: str, root: Path, target: Path) -> None:
    """Copy the files of a revision into a folder, with their paths in the working tree."""
    here = Paths(Path())
    required = [Path("params.yaml"), *(here.reports / f"{report}.json" for report in NEEDED), here.predictions]
    optional = [here.reports / f"{report}.json" for report in WELCOME]
    with files_of(root, name) as files:
        for path in required + optional:
            if is_written(files, path):
                copy_file(files, name, path, target / path)
            elif path in required:
                what = f"has no {path}: its pipeline did not finish"
                raise DataError(name, what, f"finish it ({again(name)})")
