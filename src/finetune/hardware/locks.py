"""The locks in requirements/: which of them an environment is installed from, and the packages that they pin."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from finetune.config.model import Environment
from finetune.errors import DataError


@dataclass(frozen=True, slots=True)
class Package:
    """A locked package, with the SHA-256 of each of its files."""

    name: str
    version: str
    hashes: tuple[str, ...]


def lock_files(environment: Environment, root: Path) -> list[Path]:
    """Return the locks that an environment is installed from, in the order of their installation."""
    names = ["torch-cpu", "cpu"] if environment == "cpu" else [environment]
    return [root / f"requirements/{name}.lock" for name in names]


def locks_sha256(environment: Environment, root: Path) -> str:
    """Return one hash of an environment's locks: of their concatenated bytes (as in `cat LOCKS | sha256sum`)."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in lock_files(environment, root))).hexdigest()


def locked_packages(locks: Sequence[Path], markers: Mapping[str, str] | None = None) -> list[Package]:
    """Return the packages that pip installs from these locks, by name. Raise DataError if one is not pinned.

    `markers` override the values of this Python and machine (PEP 508).
    """
    packages: dict[str, Package] = {}
    for lock in locks:
        for text, hashes in requirements_in(lock):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(dict(markers or {})):
                version = str(requirement.specifier).removeprefix("==")
                name = canonicalize_name(requirement.name)
                packages[name] = Package(name, version, tuple(sorted(hashes)))
    return [packages[name] for name in sorted(packages)]


def requirements_in(lock: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each requirement of a lock (`name==1.0 ; marker \\` and lines of `--hash=sha256:...`), with hashes."""
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement, *hashes = line.split("--hash=sha256:")
        if "==" not in requirement or not hashes:
            message = f"{line[:60].strip()!r} does not pin a version with hashes"
            raise DataError(lock, message, "run make lock to write it again")
        yield requirement.strip(), [value.strip() for value in hashes]
