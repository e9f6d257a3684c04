"""What a bundle holds: the adapter, what was found out about it, and what it was made of; all of one finished run.

Reads out/adapter, the outputs that dvc.lock names under reports/, the card, the params and the locks.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import MANIFEST, files_in, read_json, read_manifest, sha256_tensors
from finetune.config import Config
from finetune.config_model import Environment
from finetune.decide.soundness import check_hashes, require_current
from finetune.errors import ConfigError, DataError
from finetune.experiments.table import dig
from finetune.images import lock_files
from finetune.paths import Paths
from finetune.sharing.names import require_harmless
from finetune.sharing.plain_yaml import read_plain

WEIGHTS = "adapter_model.safetensors"
EVIDENCE = ("prepare", "validation", "train", "train_cost", "evaluation", "cost", "decision")  # reports as JSON
PLAIN = ("params.yaml", "dvc.yaml", "dvc.lock", "data/looks.json", "data/seeds.json")
SBOM = "sbom.cdx.json"


def collect(paths: Paths, config: Config, adapter: dict[str, Any]) -> dict[str, Path]:
    """The files of the bundle by the names that they have in it, which are those in the repository.

    Raises DataError where one is missing, or is not the output of the last `dvc repro`.
    """
    outs = outs_of(read_lock(paths.root))
    shared = [out for out in outs if out.startswith("reports/") or out == "out/model_card.md"]
    validated = f"data/validated/{MANIFEST}"
    names = [*shared, *PLAIN, *locks_of(config.environment, adapter), validated]
    found = {name: paths.root / name for name in names}
    found |= {f"out/adapter/{path.relative_to(paths.adapter).as_posix()}": path for path in files_in(paths.adapter)}
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: is missing; bundle needs a finished run (make repro)")
    require_recorded(paths.root, found)
    return dict(sorted(found.items()))


def locks_of(environment: Environment, adapter: dict[str, Any]) -> list[str]:
    """The locks of the environment that the adapter was made in: requirements/setup.sh chooses the same."""
    if environment == "cpu" and not str(adapter["versions"].get("torch", "")).endswith("+cpu"):
        environment = "cuda"  # PyTorch's default build on a CPU
    return [path.as_posix() for path in lock_files(environment, Path())]


def read_lock(root: Path) -> dict[str, Any]:
    """The stages in dvc.lock; DataError where nothing was run, or the file is of another form."""
    try:
        stages = read_plain(root / "dvc.lock", "dvc.lock")["stages"]
        found = {name: stage for name, stage in stages.items() if stage.get("outs") is not None}
        for stage in found.values():
            for item in [*stage["outs"], *stage.get("deps", [])]:
                str.lower(item["path"]), str.lower(item["md5"])  # TypeError where one is no text
        return found
    except (ConfigError, KeyError, TypeError, AttributeError):
        raise DataError("dvc.lock: is missing, broken or names no outputs; run make repro") from None


def outs_of(stages: dict[str, Any]) -> dict[str, str]:
    """Every output of these stages and its MD5."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def require_recorded(root: Path, files: Mapping[str, Path]) -> None:
    """DataError where a file, or a parameter, is not the one that dvc.lock names: then all is not of one run."""
    stages = read_lock(root)
    named = {
        item["path"]: item["md5"] for stage in stages.values() for item in [*stage["outs"], *stage.get("deps", [])]
    }
    for name, recorded in named.items():
        inside = {file: path for file, path in files.items() if file.startswith(f"{name}/")}
        if name in files:
            found = md5(files[name])
        elif inside and name == "out/adapter":  # the one folder that is bundled whole
            found = md5_of_folder(name, inside)
        else:
            continue
        if found != recorded:
            raise DataError(f"{name}: is not the file that dvc.lock names; run make repro, so that all is of one run")
    params = read_plain(root / "params.yaml", "params.yaml")
    for stage in stages.values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            if dig(params, tuple(key.split("."))) != value:
                raise DataError(
                    f"params.yaml: {key} is not what dvc.lock names; run make repro, so that all is of one run"
                )


def require_outputs(root: Path) -> None:
    """DataError where an output is not here as dvc.lock names it, or a stage ran on others: damaged, or of two runs."""
    stages = read_lock(root)
    for stage, named in stages.items():
        for out in named["outs"]:
            path = root / out["path"]
            inside = {file.relative_to(root).as_posix(): file for file in files_in(path)} if path.is_dir() else {}
            found = md5_of_folder(out["path"], inside) if inside else md5(path) if path.is_file() else None
            if found != out["md5"]:
                what = "is missing" if found is None else "is not what dvc.lock names"
                raise DataError(
                    f"{out['path']}: {what}; run make repro, and where it finds nothing to do, dvc repro -f -s {stage}"
                )
    made = outs_of(stages)
    for stage, named in stages.items():
        for dependency in named.get("deps", []):
            if made.get(dependency["path"], dependency["md5"]) != dependency["md5"]:
                raise DataError(f"{dependency['path']}: was made anew after {stage} had run on it; run make repro")


def md5(path: Path) -> str:
    """DVC's name of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_of_folder(out: str, inside: Mapping[str, Path]) -> str:
    """DVC's name of a folder's content: the MD5 of the list of its files."""
    listed = [{"md5": md5(path), "relpath": name[len(out) + 1 :]} for name, path in inside.items()]
    text = json.dumps(sorted(listed, key=lambda item: item["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def require_sound(paths: Paths, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the adapter's manifest, the reports by name); DataError unless a verdict stands on what lies here."""
    reports = {name: read_json(paths.reports / f"{name}.json") for name in EVIDENCE}
    require_current(reports["decision"], paths, config)
    check_hashes(paths, reports)
    return require_adapter(paths.adapter), reports


def require_adapter(folder: Path) -> dict[str, Any]:
    """The manifest of a published adapter; DataError unless files, tensors and manifest are the published ones."""
    manifest = read_manifest(folder)
    extra = {path.relative_to(folder).as_posix() for path in files_in(folder)} - {MANIFEST, *manifest["files"]}
    if extra:
        raise DataError(f"{folder / min(extra)}: was not published with the adapter; move it elsewhere, then try again")
    if sha256_tensors(folder / WEIGHTS) != manifest.get("adapter_sha256"):
        raise DataError(f"{folder / WEIGHTS}: holds other tensors than its {MANIFEST} says; run train again")
    return manifest


def require_one_adapter(folder: Path, claimed: dict[str, Any]) -> dict[str, Any]:
    """The decision in an unpacked bundle; DataError unless all of it speaks of one adapter."""
    listed = read_json(folder / "out/adapter" / MANIFEST).get("files")
    for name, expected in (listed if isinstance(listed, dict) else {}).items():
        require_harmless(name, expected, "out/adapter")  # else a file of the reader's own would be hashed
    adapter = require_adapter(folder / "out/adapter")
    reports = {name: read_json(folder / f"reports/{name}.json") for name in EVIDENCE}
    sha256 = adapter["adapter_sha256"]
    for name in ("train", "evaluation", "cost", "decision"):
        if reports[name].get("adapter_sha256") != sha256:
            raise DataError(f"reports/{name}.json: speaks of another adapter than out/adapter; do not use the bundle")
    for name in ("out/model_card.md", "reports/summary.md", "reports/report.html"):
        if sha256 not in (folder / name).read_text(encoding="utf-8"):
            raise DataError(f"{name}: does not name the adapter in out/adapter; do not use the bundle")
    test = reports["prepare"].get("prepared_sha256", {}).get("test")
    if not test == reports["evaluation"].get("test_sha256") == reports["decision"].get("test_sha256"):
        raise DataError(
            "reports/decision.json: was reached on another test set than was prepared; do not use the bundle"
        )
    for name, value in (("verdict", reports["decision"].get("verdict")), ("adapter_sha256", sha256)):
        if claimed.get(name) != value:
            raise DataError(f"{MANIFEST}: its {name} is not the one in the bundle; do not use it")
    return reports["decision"]
