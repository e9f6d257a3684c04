"""Keep private data on this machine: its folder names, and the secrets of its environment and of DVC's remotes.

By design, params contain no secrets, only names of environment variables, and addresses without user or password. But a
tokenizer, a report or a scorer's name may contain anything, so every member of a bundle is searched before it is
packed. DVC's messages about a remote may contain a password, a key or an address with both, so these are redacted.
"""

import mmap
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune.errors import DataError

SECRET_NAMES = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|PRIVATE_?KEY|CONNECTION_STRING", re.I
)
NAMES_A_FILE = re.compile(r"_(FILE|PATH|DIR)$|^SSH_|PARALLELISM", re.I)  # HF_TOKEN_PATH holds a location, not a secret
SECRET_KEYS = re.compile(r"password|passphrase|secret|token|key|connection_string|credential|signature|auth", re.I)
PLAIN_KEYS = re.compile(r"path|file|ask_|allow_|url|use_")  # of a remote: files and switches
SHORTEST = 8  # characters: values such as "true" and "1" are not secrets
ACCOUNT = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]*@", re.I)  # user and password in an address
QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*", re.I)
HIDDEN = "…"


def secrets_here(asked: Iterable[str]) -> dict[bytes, str]:
    """Return each secret of this environment and the variable that holds it; `asked` are the variables in params."""
    named = set(asked)
    return {
        value.strip().encode(): name
        for name, value in os.environ.items()
        if len(value.strip()) >= SHORTEST
        and not value.strip().isdigit()
        and (name in named or (SECRET_NAMES.search(name) and not NAMES_A_FILE.search(name)))
    }


def places_here(root: Path) -> dict[bytes, str]:
    """Return the folders that exist only on this machine, with a description; short ones such as /root are omitted."""
    found = {str(root.resolve()): "this repository's folder", str(Path.home().resolve()): "your home folder"}
    return {place.encode(): what for place, what in found.items() if len(Path(place).parts) > 2}


def require_none(member: str, source: Path | bytes, secrets: Mapping[bytes, str], places: Mapping[bytes, str]) -> None:
    """Raise DataError if a member contains a secret of this environment or a folder of this machine."""
    alone = [rb"(?<![\w./-])" + re.escape(place) + rb"(?![\w-])" for place in places]  # not /srv/run in /srv/runs
    patterns = [*map(re.escape, secrets), *alone]
    found = search(b"|".join(patterns), source) if patterns else None
    if found is None:
        return
    if found[0] in secrets:
        raise DataError(
            member,
            f"contains the value of the environment variable {secrets[found[0]]}, which looks like a secret",
            "nothing was bundled: remove it from the source of the file, run make repro, and revoke the secret",
        )
    raise DataError(
        member,
        f"names {places[found[0]]} ({found[0].decode()}), which exists only on this machine",
        "name files relative to the repository in params.yaml, then make repro",
    )


def search(pattern: bytes, source: Path | bytes) -> re.Match[bytes] | None:
    """Return the first match in bytes or in a file, which is memory-mapped because adapters may have gigabytes."""
    if isinstance(source, bytes) or not source.stat().st_size:
        return re.search(pattern, b"" if isinstance(source, Path) else source)
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(pattern, content)
        return re.search(pattern, found[0]) if found else None  # match in a copy, since the mapping is closed


def secrets_of(settings: Mapping[str, str]) -> list[str]:
    """Return the secrets in DVC's configuration and in the environment, longest first."""
    keys = {key: key.rpartition(".")[2] for key in settings if key.startswith("remote.")}
    found = {settings[key] for key, last in keys.items() if SECRET_KEYS.search(last) and not PLAIN_KEYS.search(last)}
    found |= {value.decode() for value in secrets_here([])}
    return sorted((value for value in found if len(value) >= SHORTEST // 2), key=len, reverse=True)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Return the text with all secrets, and the user, password and query of every address, redacted."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return QUERY.sub(rf"\1?{HIDDEN}", ACCOUNT.sub(rf"\1{HIDDEN}@", text))
