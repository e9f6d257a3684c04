"""Verify the files that DVC stores of a run against their hashes: objects in its cache, and files in the working tree.

DVC names an object after the MD5 of its content and does not verify the name again: a damaged object is fetched, linked
into the working tree and reported as up to date. So every byte is hashed here before it is uploaded or put in place.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.decide.evidence import check_hashes
from finetune.decide.run_reports import RunReports
from finetune.errors import DataError
from finetune.files.hashing import sha256_file
from finetune.files.manifests import read_manifest
from finetune.paths import Paths
from finetune.pipeline.outputs import md5
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport

LISTED = 5  # files listed in an error


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the working tree as DVC stores it: its MD5, and its object in the cache."""

    name: str  # relative to the repository
    md5: str
    cached: Path
    listing: bool = False  # the list of a folder's files, which is not in the working tree

    @property
    def object_name(self) -> str:
        """The name of the object, in the cache and in a remote."""
        return f"{self.md5}.dir" if self.listing else self.md5


def stored_files(root: Path) -> list[Stored]:
    """Return every file that dvc.lock and .dvc files name; if a folder's list is missing or damaged, only the list."""
    from dvc.repo import Repo

    stored: list[Stored] = []
    with Repo(str(root.absolute())) as repository:
        for out in repository.index.outs:
            if out.use_cache and out.hash_info and out.hash_info.name == "md5":
                name = Path(out.fs_path).relative_to(repository.root_dir).as_posix()
                stored += files_of(name, out.hash_info.value, out.cache)
    return sorted(stored, key=lambda file: file.name)


def files_of(name: str, digest: str, cache: Any) -> Iterator[Stored]:
    """Yield the file of one output, or its folder's list and the files in it."""
    plain, cached = digest.removesuffix(".dir"), Path(cache.oid_to_path(digest))
    if digest == plain:
        yield Stored(name, digest, cached)
        return
    yield Stored(name, plain, cached, listing=True)
    if cached.is_file() and md5(cached) == plain:
        for item in json.loads(cached.read_text(encoding="utf-8")):
            yield Stored(f"{name}/{item['relpath']}", item["md5"], Path(cache.oid_to_path(item["md5"])))


def forget_lists(root: Path) -> None:
    """Make DVC read the lists of folders again: it would keep using a damaged one after the remote was repaired."""
    from dvc.repo import Repo

    with Repo(str(root.absolute())) as repository:
        repository.drop_data_index()


def complete(root: Path, remote: str, files: Iterable[Stored]) -> list[str]:
    """Upload what the remote lacks after DVC's own push; return what it still lacks.

    DVC checks only a folder's list and, if the remote has it, assumes that the complete folder was pushed: an object
    lost or deleted in the remote would never be pushed again.
    """
    from dvc.config import RemoteConfigError
    from dvc.repo import Repo

    with Repo(str(root.absolute())) as repository:
        try:
            store = repository.cloud.get_remote_odb(remote, "push")
        except RemoteConfigError:  # a remote with its own versioning has no objects
            return []
        absent = not_in(store, files)
        for lists in (False, True):  # lists last: a list implies that its files exist
            some = [file for file in absent if file.listing == lists and file.cached.is_file()]
            if some:
                paths, names = [str(file.cached) for file in some], [file.object_name for file in some]
                store.add(paths, repository.cache.local.fs, names)
        return [file.name for file in not_in(store, absent)]


def not_in(store: Any, files: Iterable[Stored]) -> list[Stored]:
    """Query the remote and return the files whose objects it lacks."""
    wanted = list(files)
    there = set(store.oids_exist([file.object_name for file in wanted])) if wanted else set()
    return [file for file in wanted if file.object_name not in there]


def damaged(files: Iterable[Stored]) -> list[Stored]:
    """Return the files whose object in the cache does not match its hash."""
    return [file for file in files if file.cached.is_file() and md5(file.cached) != file.md5]


def require_in_place(root: Path, files: Iterable[Stored]) -> None:
    """Raise DataError if a file of the working tree is missing or does not match its hash in DVC."""
    wrong = [
        file.name
        for file in files
        if not file.listing and not ((root / file.name).is_file() and md5(root / file.name) == file.md5)
    ]
    if wrong:
        raise DataError(
            f"{listed(wrong)}", "differs from dvc.lock", "remove it here, then ./finetune pull (or make repro)"
        )


def require_manifests(paths: Paths) -> None:
    """Raise DataError unless adapter, tokens, splits and answers match their manifests and reports byte for byte."""
    reports = RunReports.read(paths.reports)
    read_report(paths.reports / "decision.json", DecisionReport)
    read_manifest(paths.validated)
    for split, expected in reports.prepare.prepared_sha256.items():
        path = paths.prepared / f"{split}.jsonl"
        if not path.is_file() or sha256_file(path) != expected:
            raise DataError(path, "is not the prepared split (reports/prepare.json)", "run prepare again")
    check_hashes(paths, reports)


def listed(names: Iterable[str]) -> str:
    """List the first names, and how many more there are."""
    every = sorted(set(names))
    rest = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + rest
