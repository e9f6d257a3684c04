"""The identity of a run: where its checkpoints are, what its adapter is made of, and the adapter's manifest."""

from pathlib import Path
from typing import Any

from finetune.config.loading import read_yaml
from finetune.config.model import Environment
from finetune.config.train import TrainParams
from finetune.errors import DataError
from finetune.files.hashing import sha256_file, sha256_json
from finetune.files.manifests import read_manifest
from finetune.hardware.versions import versions
from finetune.model.base import attention_used, identify_base
from finetune.paths import Paths
from finetune.train.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[3]  # of the working tree, which contains dvc.yaml
CHANGES_NOTHING = {"budget", "effective_batch_size", "dataloader_num_workers", "save_total_limit", "report_to"}
TIERS: dict[Environment, str] = {"cpu": "bitwise", "cuda": "same-device", "apple": "statistical"}


def find_run(params: TrainParams, paths: Paths) -> tuple[Checkpoints, dict[str, Any]]:
    """Return the run's checkpoints and its adapter's manifest. Raise DataError if validate used other params."""
    validated, base = read_manifest(paths.validated), identify_base(params.model)
    if validated["max_length"] != params.train.max_length:
        raise DataError(
            paths.validated, "was truncated at a different train.max_length", "run validate again (dvc repro)"
        )
    if validated["packing"] != params.train.packing:
        raise DataError(paths.validated, "was made with a different train.packing", "run validate again (dvc repro)")
    if validated["base"] != base:
        raise DataError(
            f"{paths.validated}", "was made for a different base", "run validate again (dvc repro -f -s validate)"
        )
    attention = attention_used(params.model, params.environment)
    data_sha256 = {name: file["sha256"] for name, file in validated["files"].items()}
    identity = {
        "fingerprint": fingerprint(params, data_sha256, base, attention),
        "tier": TIERS[params.environment] if params.train.deterministic else "statistical",
        "attention": attention,
        "base": base,
        "data_sha256": data_sha256,
        "prepared_sha256": validated["prepared_sha256"],
        "start": validated.get("start"),
        "params": params.model_dump(mode="json"),
        "versions": versions(),
    }
    store = Checkpoints(paths.checkpoints / identity["fingerprint"][:16], params.train.save_total_limit)
    return store, identity


def code_hashes() -> dict[str, str]:
    """Return the SHA-256 of each source file that dvc.yaml lists for train: the code that determines the adapter."""
    dependencies = read_yaml(ROOT / "dvc.yaml")["stages"]["train"]["deps"]
    watched = [ROOT / name for name in dependencies if name.startswith("src/")]
    files = sorted(path for place in watched for path in (place.rglob("*.py") if place.is_dir() else [place]))
    return {path.relative_to(ROOT).as_posix(): sha256_file(path) for path in files}


def fingerprint(params: TrainParams, data_sha256: dict[str, str], base: dict[str, str], attention: str) -> str:
    """Hash everything that determines the adapter: params, data, base, library versions and this package's code.

    `attention` is the implementation in use, which `model.attention: auto` does not specify.
    """
    return sha256_json(
        {
            "params": params.model_dump(mode="json", exclude={"train": CHANGES_NOTHING}),
            "data": data_sha256,
            "base": base,
            "attention": attention,
            "versions": versions(),
            "code": code_hashes(),
        }
    )
