"""What must not leave this machine with a bundle: its folders, and the secrets that its environment holds.

Params hold no secret by design, only names of environment variables, and addresses without user or password. But a
tokenizer, a report or a scorer's name may carry anything along, so every member is read once more before it is packed.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from finetune.errors import DataError

SECRET_NAMES = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|PRIVATE_?KEY|CONNECTION_STRING", re.I
)
NAMES_A_FILE = re.compile(r"_(FILE|PATH|DIR)$|^SSH_|PARALLELISM", re.I)  # HF_TOKEN_PATH says where, not what
SHORTEST = 8  # characters: "true" and "1" are no secrets
CHUNK = 1 << 22


def secrets_here(asked: Iterable[str]) -> dict[bytes, str]:
    """Each secret of this environment and the variable that holds it; `asked` are variables that params name."""
    named = set(asked)
    return {
        value.strip().encode(): name
        for name, value in os.environ.items()
        if len(value.strip()) >= SHORTEST
        and not value.strip().isdigit()
        and (name in named or (SECRET_NAMES.search(name) and not NAMES_A_FILE.search(name)))
    }


def places_here(root: Path) -> dict[bytes, str]:
    """The folders of this machine that nobody else has, and what to call them; a short one like /root means nothing."""
    found = {str(root.resolve()): "this repository's folder", str(Path.home().resolve()): "your home folder"}
    return {place.encode(): what for place, what in found.items() if len(Path(place).parts) > 2}


def require_none(member: str, source: Path | bytes, secrets: Mapping[bytes, str], places: Mapping[bytes, str]) -> None:
    """DataError where a member holds a secret of this environment, or names a folder of this machine."""
    if not secrets and not places:
        return
    alone = [rb"(?<![\w./-])" + re.escape(place) + rb"(?![\w-])" for place in places]  # /srv/run is not in /srv/runs
    pattern = re.compile(b"|".join([*map(re.escape, secrets), *alone]))
    for text, first, last in windows(source, max(map(len, [*secrets, *places])) + 1):
        for found in pattern.finditer(text):
            if (found.start() == 0 and not first) or (found.end() == len(text) and not last):
                continue  # what stands beside it is in the piece before or after, and so is it
            if found[0] in secrets:
                raise DataError(
                    member,
                    f"holds the value of the environment variable {secrets[found[0]]}, a secret by its name",
                    "nothing was bundled: remove it from what made the file, make repro, and change the secret",
                )
            raise DataError(
                member,
                f"names {places[found[0]]} ({found[0].decode()}), which exists on this machine alone",
                "name files relative to the repository in params.yaml, then make repro",
            )


def windows(source: Path | bytes, overlap: int) -> Iterator[tuple[bytes, bool, bool]]:
    """(a piece of the content, whether it is the first, the last); pieces overlap, so that no border hides anything."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        piece, first = file.read(CHUNK), True
        while piece:
            following = file.read(CHUNK)
            yield piece, first, not following
            piece, first = (piece[-overlap:] + following if following else b""), False
