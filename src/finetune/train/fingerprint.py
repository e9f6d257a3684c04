"""Which run this is: where its checkpoints lie, and what its adapter is made of and will be known by."""

from typing import Any

from finetune.config.model import Environment
from finetune.config.params import DETERMINES_ADAPTER, Config
from finetune.errors import DataError
from finetune.files.manifests import read_manifest
from finetune.hardware.versions import versions
from finetune.model.base import attention_used, identify_base
from finetune.paths import Paths
from finetune.train.checkpoints import Checkpoints, fingerprint

TIERS: dict[Environment, str] = {"cpu": "bitwise", "cuda": "same-device", "apple": "statistical"}


def find_run(config: Config, paths: Paths) -> tuple[Checkpoints, dict[str, Any]]:
    """Where the run's checkpoints lie, and what its adapter's manifest says of it; DataError where validate's data are
    not those of these params."""
    validated, base = read_manifest(paths.validated), identify_base(config.model)
    if validated["max_length"] != config.train.max_length:
        raise DataError(f"{paths.validated}: was cut at another train.max_length; run validate again (dvc repro)")
    if validated["packing"] != config.train.packing:
        raise DataError(f"{paths.validated}: was packed as train.packing was then; run validate again (dvc repro)")
    if validated["base"] != base:
        raise DataError(f"{paths.validated}: was made for another base; run validate again (dvc repro -f -s validate)")
    attention = attention_used(config.model, config.environment)
    data_sha256 = {name: file["sha256"] for name, file in validated["files"].items()}
    identity = {
        "fingerprint": fingerprint(config, data_sha256, base, attention),
        "tier": TIERS[config.environment] if config.train.deterministic else "statistical",
        "attention": attention,
        "base": base,
        "data_sha256": data_sha256,
        "prepared_sha256": validated["prepared_sha256"],
        "params": config.model_dump(mode="json", include=DETERMINES_ADAPTER),
        "versions": versions(),
    }
    store = Checkpoints(paths.checkpoints / identity["fingerprint"][:16], config.train.save_total_limit)
    return store, identity
