"""DVC's own words without the secrets of its remotes: passwords, keys, and what addresses carry."""

import re
from collections.abc import Iterable, Mapping

from finetune.commands.sharing.leaks import SHORTEST, secrets_here

SECRET_KEYS = re.compile(r"password|passphrase|secret|token|key|connection_string|credential|signature|auth", re.I)
ACCOUNT = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]*@", re.I)  # of an address: user and password
QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*", re.I)
HIDDEN = "…"


def secrets_of(settings: Mapping[str, str]) -> list[str]:
    """The secrets in DVC's configuration and in the environment, longest first."""
    found = {value for key, value in settings.items() if key.startswith("remote.") and is_secret(key.split(".")[-1])}
    found |= {value.decode() for value in secrets_here([])}
    return sorted((value for value in found if len(value) >= SHORTEST // 2), key=len, reverse=True)


def is_secret(key: str) -> bool:
    """Whether an option of a remote holds a secret, and no file or switch."""
    return bool(SECRET_KEYS.search(key)) and not re.search(r"path|file|ask_|allow_|url|use_", key)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret, and every address' user, password and query, hidden."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return QUERY.sub(rf"\1?{HIDDEN}", ACCOUNT.sub(rf"\1{HIDDEN}@", text))
