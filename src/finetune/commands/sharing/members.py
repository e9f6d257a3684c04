"""The members of a bundle: the adapter, the results and the materials of one finished run.

Reads out/adapter, the outputs that dvc.lock lists under reports/, the card, the params and the locks.
"""

from pathlib import Path
from typing import Any

from finetune.commands.sharing.archive import require_harmless
from finetune.config.model import Environment
from finetune.config.params import Config
from finetune.decide.evidence import check_hashes, require_current
from finetune.decide.run_reports import RunReports
from finetune.errors import DataError
from finetune.files.hashing import files_in, sha256_tensors
from finetune.files.manifests import MANIFEST, read_manifest
from finetune.files.strict_json import read_json
from finetune.hardware.locks import lock_files
from finetune.paths import Paths
from finetune.pipeline.outputs import outs_of, read_lock, require_recorded
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport

WEIGHTS = "adapter_model.safetensors"
PLAIN = ("params.yaml", "dvc.yaml", "dvc.lock", "data/looks.json", "data/seeds.json")
SBOM = "sbom.cdx.json"


def collect(paths: Paths, config: Config, adapter: dict[str, Any]) -> dict[str, Path]:
    """Return the files of the bundle by their names in it, which are their paths in the repository.

    Raises DataError if one is missing or is not an output of the last `dvc repro`.
    """
    outs = outs_of(read_lock(paths.root))
    shared = [out for out in outs if out.startswith("reports/") or out == "out/model_card.md"]
    validated = f"data/validated/{MANIFEST}"
    names = [*shared, *PLAIN, *locks_of(config.environment, adapter), validated]
    members = {name: paths.root / name for name in names}
    members |= {f"out/adapter/{path.relative_to(paths.adapter).as_posix()}": path for path in files_in(paths.adapter)}
    missing = [name for name, path in members.items() if not path.is_file()]
    if missing:
        raise DataError(missing[0], "is missing", "bundle needs a finished run (make repro)")
    require_recorded(paths.root, members)
    return dict(sorted(members.items()))


def locks_of(environment: Environment, adapter: dict[str, Any]) -> list[str]:
    """Return the locks of the environment in which the adapter was trained, as chosen by requirements/setup.sh."""
    if environment == "cpu" and not str(adapter["versions"].get("torch", "")).endswith("+cpu"):
        environment = "cuda"  # PyTorch's default build on a CPU
    return [path.as_posix() for path in lock_files(environment, Path())]


def require_sound(paths: Paths, config: Config) -> tuple[dict[str, Any], RunReports, DecisionReport]:
    """Return the adapter's manifest, the reports and the decision. Raise DataError unless the decision covers them."""
    reports = RunReports.read(paths.reports)
    decision = read_report(paths.reports / "decision.json", DecisionReport)
    require_current(decision, paths, config.decide)
    check_hashes(paths, reports)
    return require_adapter(paths.adapter), reports, decision


def require_adapter(folder: Path) -> dict[str, Any]:
    """Return the manifest of a published adapter. Raise DataError unless its files and tensors match it."""
    manifest = read_manifest(folder)
    extra = {path.relative_to(folder).as_posix() for path in files_in(folder)} - {MANIFEST, *manifest["files"]}
    if extra:
        raise DataError(
            f"{folder / min(extra)}", "is not part of the published adapter", "move it elsewhere, then try again"
        )
    if sha256_tensors(folder / WEIGHTS) != manifest.get("adapter_sha256"):
        raise DataError(folder / WEIGHTS, f"contains other tensors than its {MANIFEST} lists", "run train again")
    return manifest


def require_one_adapter(folder: Path, claimed: dict[str, Any]) -> DecisionReport:
    """Return the decision of an unpacked bundle. Raise DataError unless all its members refer to one adapter."""
    listed = read_json(folder / "out/adapter" / MANIFEST).get("files")
    for name, expected in (listed if isinstance(listed, dict) else {}).items():
        require_harmless(name, expected, "out/adapter")  # otherwise a file outside the bundle could be hashed
    adapter = require_adapter(folder / "out/adapter")
    reports = RunReports.read(folder / "reports")
    decision = read_report(folder / "reports/decision.json", DecisionReport)
    sha256 = adapter["adapter_sha256"]
    named = {
        "train": reports.train.adapter_sha256,
        "evaluation": reports.evaluation.adapter_sha256,
        "cost": reports.cost.adapter_sha256,
        "decision": decision.adapter_sha256,
    }
    for name, other in named.items():
        if other != sha256:
            message = "names a different adapter than out/adapter"
            raise DataError(f"reports/{name}.json", message, "do not use the bundle")
    for name in ("out/model_card.md", "reports/summary.md", "reports/report.html"):
        if sha256 not in (folder / name).read_text(encoding="utf-8"):
            raise DataError(name, "does not name the adapter in out/adapter", "do not use the bundle")
    test = reports.prepare.prepared_sha256.get("test")
    if not test == reports.evaluation.test_sha256 == decision.test_sha256:
        raise DataError(
            "reports/decision.json",
            "was reached on a different test set than the prepared one",
            "do not use the bundle",
        )
    for name, value in (("verdict", decision.verdict), ("adapter_sha256", sha256)):
        if claimed.get(name) != value:
            raise DataError(MANIFEST, f"its {name} is not the one in the bundle", "do not use it")
    return decision
