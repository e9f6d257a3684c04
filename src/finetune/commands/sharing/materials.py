"""The software bill of materials of an adapter in CycloneDX 1.6; the same run always gives the same text.

Packages are taken from the environment's lock, for the Python and the system of the run; base model, sources and their
hashes from the reports. Licences of packages are those stated by installed packages of the same version.
"""

import json
import platform
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from finetune.config.params import Config
from finetune.console import say
from finetune.decide.run_reports import RunReports
from finetune.hardware.locks import Package, locked_packages
from finetune.reports.prepare import SourceReport

LONGEST_LICENSE = 80  # characters: longer values are the licence's text, not its name


def bill_of_materials(config: Config, adapter: dict[str, Any], reports: RunReports, locks: Sequence[Path]) -> bytes:
    """Return the bill of materials as JSON. Raise DataError if a lock cannot be read."""
    sha256 = adapter["adapter_sha256"]
    licenses = licenses_of([config.decide.license] if config.decide.license else [])
    subject = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=f"finetune-{config.recipe}",
        version=sha256,
        bom_ref=f"adapter:{sha256}",  # the library would generate a random one
        licenses=licenses,
    )
    base = base_component(adapter["base"])
    data = [source_component(name, source) for name, source in reports.prepare.sources.items()]
    pinned = locked_packages(locks, run_markers(adapter, reports))
    packages = [package_component(package) for package in as_used(pinned, adapter)]
    bom = Bom(components=[base, *data, *packages])
    bom.metadata.component = subject
    bom.register_dependency(subject, [base, *data, *packages])
    content = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    # The library adds the current time and a random serial number; the same run must give the same text.
    content["metadata"].pop("timestamp", None)
    content.pop("serialNumber", None)
    content["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))}"
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


# --------------------------------------------------------------------------------------------------------- components


def base_component(base: dict[str, str]) -> Component:
    """Describe the base model. A local folder appears only by its name, pinned by its hash, never by its path."""
    name, revision = base["name"], base["revision"]
    local = revision.startswith("sha256:")
    plain = Path(name).name if local else name
    namespace, _, last = plain.rpartition("/")
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=plain,
        version=revision,
        bom_ref=f"base:{plain}",
        hashes=[sha256_hash(revision.removeprefix("sha256:"))] if local else [],
        purl=None if local else PackageURL("huggingface", namespace or None, last, revision),
    )


def source_component(name: str, source: SourceReport) -> Component:
    """Describe one source of the mixture by the file's hash or the revision on the Hub."""
    hashes = [sha256_hash(source.sha256)] if source.sha256 else []
    kept = f"{source.kept} of {source.read} rows kept"
    return Component(
        type=ComponentType.DATA,
        name=name,
        version=source.revision,
        bom_ref=f"data:{name}",
        hashes=hashes,
        description=kept,
    )


def package_component(package: Package) -> Component:
    """Describe a package. File hashes belong to its distribution, because none of them is the component's own.

    The package URL is also the distribution's address: it is valid for every index and mirror.
    """
    purl = PackageURL("pypi", None, package.name, package.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(purl.to_string()),
        comment="the SHA-256 of each file of this version that the lock allows",
        hashes=[sha256_hash(value) for value in package.hashes],
    )
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=licenses_of(stated_licenses(package)),
        external_references=[files] if package.hashes else [],
    )


def sha256_hash(value: str) -> HashType:
    """Return a SHA-256 in CycloneDX form."""
    return HashType(alg=HashAlgorithm.SHA_256, content=value)


def licenses_of(names: Sequence[str]) -> list[Any]:
    """Return licences in CycloneDX form: an SPDX identifier or expression if possible, otherwise a name."""
    found = [LicenseFactory().make_from_string(name) for name in names]
    if len(found) > 1:  # an expression must be the only entry
        found = [item for item in found if not isinstance(item, LicenseExpression)]
    return found


def stated_licenses(package: Package) -> list[str]:
    """Return the licences stated by the installed package of exactly this version; empty if it is not installed."""
    try:
        found = metadata.metadata(package.name)
    except metadata.PackageNotFoundError:
        return []
    if found["Version"] != package.version:
        return []
    if expressions := found.get_all("License-Expression"):
        return [expressions[0]]
    named = [text.rpartition(" :: ")[2] for text in found.get_all("Classifier") or [] if text.startswith("License :: ")]
    named = [name for name in named if name != "OSI Approved"]
    plain = [text.strip() for text in found.get_all("License") or [] if 0 < len(text.strip()) <= LONGEST_LICENSE]
    return sorted(set(named)) or [text for text in plain[:1] if "\n" not in text and text != "UNKNOWN"]


# ------------------------------------------------------------------------------------------------------------ packages


def run_markers(adapter: dict[str, Any], reports: RunReports) -> dict[str, str]:
    """Return the values of a lock's markers for the machine that trained, which may be another one."""
    version = str(adapter["versions"]["python"])
    system, _, processor = reports.train_cost.machine.system.partition(" ")
    return {
        "python_full_version": version,
        "python_version": ".".join(version.split(".")[:2]),
        "platform_system": system,
        "sys_platform": system.lower(),
        "platform_machine": processor or platform.machine(),
    }


def as_used(packages: list[Package], adapter: dict[str, Any]) -> list[Package]:
    """Return the packages in the run's versions; one that differs from the lock is reported and loses its hashes."""
    used = {str(canonicalize_name(name)): str(version) for name, version in adapter["versions"].items()}
    found = []
    for package in packages:
        version = used.get(package.name, package.version)
        if version != package.version:
            say(
                f"warning: the run used {package.name} {version}, but its lock has {package.version}; no hash "
                "is recorded for it"
            )
        found.append(package if version == package.version else Package(package.name, version, ()))
    return found
