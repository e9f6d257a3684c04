"""`finetune bundle`: pack everything that is needed to verify and use the adapter into one archive.

Writes `out/bundle/finetune-<recipe>-<adapter>.tar.gz`, and a signature beside it if a key is given.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from finetune.commands.sharing import signing
from finetune.commands.sharing.archive import replacing, write_archive
from finetune.commands.sharing.check_bundle import inspect
from finetune.commands.sharing.leaks import places_here, require_none, secrets_here
from finetune.commands.sharing.materials import bill_of_materials
from finetune.commands.sharing.members import SBOM, collect, require_sound
from finetune.config.loading import read_yaml
from finetune.config.params import Config, load_config
from finetune.console import gigabytes, say
from finetune.containers.command_line import key_variables
from finetune.errors import ConfigError
from finetune.files.hashing import sha256_file
from finetune.files.run_lock import pipeline_lock
from finetune.paths import Paths
from finetune.pipeline.revisions import git_state
from finetune.processes.running import require_idle
from finetune.reports.decision import DecisionReport

FORMAT = 1  # version of the bundle's layout


def run(root: Path, key: Path | None, output: Path | None) -> None:
    """Bundle the finished run, and sign it if a key is given. Raise DataError if no verdict covers these files."""
    paths, config = Paths(root), load_config(root / "params.yaml")
    if key is not None:
        signing.require_key(key)
    require_idle(paths)
    with pipeline_lock(paths.work / "pipeline.lock", "bundle"):
        target, manifest = write_bundle(paths, config, output)
    if key is not None:
        say(f"signed: {signing.sign(target, key)}")
    print_bundle(target, manifest)


def write_bundle(paths: Paths, config: Config, output: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write the archive atomically and verify it as a receiver would; return its path and manifest."""
    adapter, reports, decision = require_sound(paths, config)
    sources: dict[str, Path | bytes] = {**collect(paths, config, adapter)}
    locks = [paths.root / name for name in sources if name.startswith("requirements/")]
    sources[SBOM] = bill_of_materials(config, adapter, reports, locks)
    sources = dict(sorted(sources.items()))
    top = name_of(config.recipe, adapter["adapter_sha256"])
    target = place_for(paths.root, output, f"{top}.tar.gz")
    secrets, places = secrets_here(key_variables(config)), places_here(paths.root)
    for name, source in sources.items():
        require_none(name, source, secrets, places)
    manifest = describe(paths.root, config, adapter, decision)
    manifest["files"] = {name: entry_of(source) for name, source in sources.items()}
    with replacing(target) as partial:
        write_archive(partial, top, manifest, sources)
        inspect(partial, None, None)
        signing.signature_of(target).unlink(missing_ok=True)  # of the previous archive with this name
    return target, manifest


def name_of(recipe: str, adapter_sha256: str) -> str:
    """Return the archive's name without its extension, which is also the name of the folder inside."""
    plain = re.sub(r"[^\w.-]+", "-", recipe, flags=re.ASCII).strip("-.")[:60] or "recipe"
    return f"finetune-{plain}-{adapter_sha256[:12]}"


def place_for(root: Path, output: Path | None, name: str) -> Path:
    """Return the target path. Raise ConfigError if it is inside an output of DVC, which writing there would alter."""
    target = root / "out/bundle" / name if output is None else output / name if output.is_dir() else output
    outs = [out for stage in read_yaml(root / "dvc.yaml")["stages"].values() for out in stage.get("outs", [])]
    for out in outs:
        if (root / out).resolve() in (target.resolve(), *target.resolve().parents):
            raise ConfigError(f"--output {target}", f"is inside {out}, an output of DVC", "choose another place")
    return target


def describe(root: Path, config: Config, adapter: dict[str, Any], decision: DecisionReport) -> dict[str, Any]:
    """Return the manifest's header: the identity of the run and its decision."""
    revision, clean = git_state(root, untracked=False)
    return {
        "format": FORMAT,
        "recipe": config.recipe,
        "verdict": decision.verdict,
        "sentence": decision.sentence,
        "adapter_sha256": adapter["adapter_sha256"],
        "test_sha256": decision.test_sha256,
        "fingerprint": adapter["fingerprint"],
        "tier": adapter["tier"],
        "base": adapter["base"],
        "revision": revision,
        "committed": clean,
    }


def entry_of(source: Path | bytes) -> dict[str, Any]:
    """Return size and SHA-256 of a member."""
    if isinstance(source, bytes):
        return {"bytes": len(source), "sha256": hashlib.sha256(source).hexdigest()}
    return {"bytes": source.stat().st_size, "sha256": sha256_file(source)}


def print_bundle(target: Path, manifest: dict[str, Any]) -> None:
    """Print what was written, with a warning if the verdict is not deploy."""
    size = target.stat().st_size
    say(f"{target}: {len(manifest['files'])} files, {gigabytes(size) if size > 1e8 else f'{size / 1e6:.1f} MB'}")
    say(f"  verdict {manifest['verdict']}: {manifest['sentence']}")
    if manifest["verdict"] != "deploy":
        say(f"warning: the verdict is {manifest['verdict'].upper()}, NOT DEPLOY; the bundle says so too")
    if not manifest["committed"]:
        say(
            "warning: tracked files differ from the commit, or there is no commit: this run can't be traced to its code"
        )
    say(f"  verify it on any machine: ./finetune check-bundle {target}")
