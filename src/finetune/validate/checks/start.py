"""Check the adapter that the training continues from, and fetch it."""

import shutil
from pathlib import Path
from typing import Any

from finetune.config.model import StartConfig
from finetune.config.validate import ValidateParams
from finetune.errors import DataError, FinetuneError
from finetune.files.manifests import MANIFEST
from finetune.files.strict_json import read_json
from finetune.model.adapter import CONFIG, WEIGHTS
from finetune.model.language import find_language_model
from finetune.model.start import PLACE, find_start_problem
from finetune.paths import Paths
from finetune.pipeline.revisions import fetch_directory
from finetune.validate.checks.base_model import Base
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CODES |= {
    "start-missing": Code("error", "run", "The adapter to continue from can't be fetched.", binding=True),
    "start-unfit": Code("error", "run", "The adapter to continue from does not fit this run.", binding=True),
    "start-rows-unknown": Code("note", "verdict", "The rows of an earlier training may contain test rows."),
}


def check_start(params: ValidateParams, base: Base, paths: Paths) -> tuple[list[Finding], Path | None]:
    """Return the findings about the start, and the folder with its files if training can continue from it."""
    start = params.adapter.start
    if start is None or base.architecture is None or base.tokenizer is None or base.identity is None:
        return [], None
    try:
        folder = fetch(start, paths)
    except FinetuneError as error:
        what = f"{start.source} can't be fetched: {error.problem}"
        return [Finding("start-missing", PLACE, what, "check its name, or fetch it while connected")], None
    language = find_language_model(base.config)
    tokens = base.tokenizer.convert_tokens_to_ids(list(params.model.add_tokens))
    trained_on = own_manifest(folder).get("base", base.identity)
    if trained_on["revision"] != base.identity["revision"]:
        what = f"was trained on {trained_on['name']} at {trained_on['revision']}, which is not this base"
        return [Finding("start-unfit", PLACE, what, "use its base, or another adapter")], None
    if problem := find_start_problem(folder, params.model, params.adapter, language, tokens):
        return [Finding.of(problem)], None
    what = f"the rows that {start.source} was trained on are not compared with the test rows"
    return [Finding("start-rows-unknown", PLACE, what, "nothing to do if they were split in the same way")], folder


def fetch(start: StartConfig, paths: Paths) -> Path:
    """Return the folder of the adapter; copied from an experiment or downloaded if it is not a local folder."""
    if start.path is not None:
        folder = paths.root / start.path
        if not (folder / WEIGHTS).is_file():
            raise DataError(folder, f"has no {WEIGHTS}")
        return folder
    folder = paths.work / "start"
    if start.experiment is not None:
        fetch_directory(paths.root, start.experiment, Path("out/adapter"), folder)
        return folder
    from huggingface_hub import snapshot_download

    assert start.hub is not None
    try:
        options: dict[str, Any] = {"revision": start.revision, "allow_patterns": [WEIGHTS, CONFIG, MANIFEST]}
        return Path(snapshot_download(start.hub, **options))
    except Exception as error:  # not found, gated, no network: each layer of the library has its own
        raise DataError(start.hub, str(error).strip().splitlines()[0]) from None


def keep(folder: Path, start: StartConfig, file: Path) -> dict[str, Any]:
    """Copy the adapter's weights to train's input, and return its lineage: itself, and what it started from."""
    shutil.copyfile(folder / WEIGHTS, file)
    return {"sha256": start.sha256, "source": start.source, "start": own_manifest(folder).get("start")}


def own_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an adapter of this pipeline; empty for others."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    return manifest if "adapter_sha256" in manifest else {}
