"""A finished run, its bundle, and manipulated bundles."""

import gzip
import json
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.sharing import archive, bundle, check_bundle
from tests.builders.shared_run import finished, lock

Names = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a finished run."""
    root = finished(tmp_path_factory.mktemp("run") / "repository")
    lock(root)
    return root


@pytest.fixture(scope="module")
def made(run: Path) -> Path:
    """Return the run's bundle."""
    bundle.run(run, None, None)
    return next((run / "out/bundle").glob("*.tar.gz"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run that may be changed."""
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("bundle")))


def check(path: Path, signers: Path | None = None, identity: str | None = None) -> None:
    """Check a bundle as the command does."""
    check_bundle.run(path, signers, identity)


def contents(path: Path) -> Names:
    """Return the members of a bundle with their bytes, in order."""
    with tarfile.open(path) as tar:
        return {info.name.partition("/")[2]: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def squeeze(target: Path, content: bytes) -> Path:
    """Write the content with gzip, as in a bundle."""
    with target.open("wb") as file, gzip.GzipFile("", "wb", archive.LEVEL, file, 0) as packed:
        packed.write(content)
    return target


def member(name: str, content: bytes = b"", **others: Any) -> tuple[tarfile.TarInfo, BytesIO]:
    """Return a member of a tar archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in others.items():
        setattr(info, key, value)
    return info, BytesIO(content)


def rebuilt(path: Path, target: Path, change: Callable[[Names], None]) -> Path:
    """Write the bundle with changed members and a matching manifest, as a forger would."""
    files = contents(path)
    manifest = json.loads(files.pop("manifest.json"))
    change(files)
    files = dict(sorted(files.items()))
    manifest["files"] = {name: bundle.entry_of(content) for name, content in files.items()}
    archive.write_archive(target, path.name.removesuffix(".tar.gz"), manifest, files)
    return target


def hostile(change: Callable[[tarfile.TarFile], None], place: Path, first: bytes | None = None) -> Path:
    """Write an archive that begins with a manifest and continues with other content."""
    top = "finetune-x-0123456789ab"
    text = first or json.dumps({"files": {"a": {"bytes": 1, "sha256": "0" * 64}}}).encode()

    raw = BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(*member(f"{top}/manifest.json", text))
        change(tar)
    return squeeze(place / "hostile.tar.gz", raw.getvalue())


def swap(name: str, before: bytes, after: bytes) -> Callable[[Names], None]:
    """Return a change of one member."""

    def change(files: Names) -> None:
        assert before in files[name]
        files[name] = files[name].replace(before, after)

    return change


def bomb(levels: int = 10) -> str:
    """Return YAML of some hundred bytes that expands to 9 ** levels values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    return "\n".join(lines + [f"a{at}: &a{at} [{','.join([f'*a{at - 1}'] * 9)}]" for at in range(1, levels)])
