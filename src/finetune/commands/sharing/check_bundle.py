"""`finetune check-bundle PATH`: verify that a bundle is complete, consistent and signed, before it is used.

Needs neither the repository nor torch. No content of the archive is used before it was checked against the manifest;
with `--signers`, nothing is unpacked before the signature was verified.
"""

import errno
import json
import tempfile
from pathlib import Path
from typing import Any

from finetune.commands.sharing import signing
from finetune.commands.sharing.archive import OF_NAMES, unpack
from finetune.commands.sharing.members import SBOM, require_one_adapter
from finetune.console import say, short
from finetune.errors import ConfigError, DataError
from finetune.files.manifests import MANIFEST
from finetune.files.strict_json import read_json
from finetune.pipeline.outputs import require_recorded

FORMATS = (1,)
FINDINGS_SHOWN = 3


def run(path: Path, signers: Path | None, identity: str | None = None) -> dict[str, Any]:
    """Check a bundle and print its summary; return manifest and signer. Raise DataError for any defect."""
    manifest, signer = inspect(path, signers, identity)
    say(f"{path}: intact; {len(manifest['files'])} files of one run")
    say(f"  adapter {manifest['adapter_sha256']}, recipe {short(manifest['recipe'])}")
    if signer is not None:
        say(f"  signed by {signer}")
    elif signing.signature_of(path).exists():
        say("  signed, but the signature was not checked; pass the allowed signers: --signers FILE")
    else:
        say("  not signed: the bundle is intact, but its author is not verified")
    loud = "" if manifest["verdict"] == "deploy" else "warning: NOT DEPLOY: "
    say(f"  {loud}verdict {short(manifest['verdict'])}: {short(manifest['sentence'], 400)}")
    return {"whole": True, "signed_by": signer, "manifest": manifest}


def inspect(path: Path, signers: Path | None, identity: str | None) -> tuple[dict[str, Any], str | None]:
    """Run all checks; return (the manifest, the signer)."""
    if not path.is_file():
        raise ConfigError(path, "no such bundle", "./finetune bundle writes one to out/bundle")
    with path.open("rb") as archive, tempfile.TemporaryDirectory(prefix="finetune-bundle-") as place:
        signer = signing.verify(archive, path, signers, identity) if signers else None
        archive.seek(0)
        folder = Path(place)
        manifest = unpack(archive, str(path), folder)
        if manifest.get("format") not in FORMATS:
            raise ConfigError(path, "has a format that this version does not support", "check it with a newer one")
        try:
            check_contents(folder, manifest)
        except (ConfigError, DataError) as error:
            raise DataError.of(error.elsewhere(f"{folder}/", f"{path}: ").problems) from None
    return manifest, signer


def check_contents(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError unless all members belong to one run."""
    missing = [name for name in ("dvc.lock", "params.yaml", "out/model_card.md", SBOM) if name not in manifest["files"]]
    if missing:
        raise DataError(missing[0], "is missing", "do not use the bundle")
    for key in ("recipe", "verdict", "sentence"):
        if not isinstance(manifest.get(key), str):
            raise DataError(MANIFEST, f"has no text in {key}", "do not use the bundle")
    try:
        require_one_adapter(folder, manifest)
        require_recorded(folder, {name: folder / name for name in manifest["files"]})
        check_materials(folder / SBOM, manifest)
    except RecursionError:
        raise DataError("", "a file in it is nested too deeply", "do not use the bundle") from None
    except OSError as error:
        if error.errno not in {*OF_NAMES, errno.ENOENT}:
            raise
        raise DataError("", f"its files are not those of a run ({error.strerror})", "do not use the bundle") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        name = type(error).__name__
        raise DataError("", f"its files are not those of a run ({name})", "do not use the bundle") from None


def check_materials(path: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError unless the bill of materials is valid CycloneDX and describes this adapter."""
    content = read_json(path)
    subject = content.get("metadata", {}).get("component", {})
    if content.get("bomFormat") != "CycloneDX" or subject.get("version") != manifest["adapter_sha256"]:
        raise DataError(SBOM, "is not a bill of materials of this adapter", "do not use the bundle")
    kinds = {component.get("type") for component in content.get("components", [])}
    if not {"library", "machine-learning-model", "data"} <= kinds:
        raise DataError(SBOM, "lacks packages, base model or data", "do not use the bundle")
    findings = schema_findings(json.dumps(content))
    if findings:
        raise DataError(SBOM, f"is not CycloneDX: {'; '.join(findings)}", "do not use the bundle")


def schema_findings(text: str) -> list[str]:
    """Return the first violations of the schema by a bill of materials."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    violations = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True)
    return [short(str(error).split("\n", 1)[0], 200) for error in list(violations or [])[:FINDINGS_SHOWN]]
