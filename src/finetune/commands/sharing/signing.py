"""Signatures of a bundle with OpenSSH (`ssh-keygen -Y`), so that existing keys can be used.

A signature is made for the namespace `finetune-bundle`, so a signature for another purpose is not accepted. It is
written beside the archive as `<archive>.sig`. Permitted signers are listed in a file of allowed signers (`man
ssh-keygen`), one per line: `anna@example.org namespaces="finetune-bundle" ssh-ed25519 AAAA...`
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

from finetune.console import printable
from finetune.errors import ConfigError, DataError, MachineError

NAMESPACE = "finetune-bundle"


def signature_of(archive: Path) -> Path:
    """Return the path of an archive's signature."""
    return archive.with_name(f"{archive.name}.sig")


def require_key(key: Path) -> None:
    """Raise ConfigError if the key does not exist, MachineError without OpenSSH. Called before anything is packed."""
    find_ssh_keygen()
    if not key.is_file():
        raise ConfigError(
            key, "no such key", "pass an OpenSSH private key, or a public key held by a running ssh-agent"
        )


def find_ssh_keygen() -> str:
    """Return the path of ssh-keygen. Raise MachineError if it is not installed."""
    program = shutil.which("ssh-keygen")
    if program is None:
        remedy = "install OpenSSH 8.1 or newer, which is used to sign and verify bundles"
        raise MachineError("", "ssh-keygen is not on PATH", remedy)
    return program


def sign(archive: Path, key: Path) -> Path:
    """Write the archive's signature beside it; return its path. Raise ConfigError if the key cannot sign.

    A passphrase is requested on the terminal. Without a terminal, the key must have no passphrase or be held by an
    agent.
    """
    target = signature_of(archive)
    target.unlink(missing_ok=True)  # ssh-keygen would ask before overwriting
    interactive = sys.stdin.isatty()
    # detached from any terminal, where it would wait for a passphrase indefinitely
    alone: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    done = subprocess.run(
        [find_ssh_keygen(), "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(archive)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        **({} if interactive else alone | {"env": {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}}),
    )
    if done.returncode != 0 or not target.is_file():
        target.unlink(missing_ok=True)
        why = last_line(done.stderr) or f"exit code {done.returncode}"
        hint = "" if interactive else "; a key with a passphrase needs a terminal or ssh-agent"
        raise ConfigError(key, f"can't sign: {why}{hint}")
    return target


def verify(archive: BinaryIO, path: Path, signers: Path, identity: str | None) -> str:
    """Return the signer of the archive. Raise DataError if it is not an allowed signer, or not `identity`."""
    signature = signature_of(path)
    if not signers.is_file():
        raise ConfigError(
            signers, "no such allowed signers file", "it must have lines of the form: IDENTITY ssh-ed25519 KEY"
        )
    if not signature.is_file():
        raise DataError(signature, f"is missing, so {path.name} can't be verified", "ask the sender for the signature")
    who = identity or find_signer(signature, signers)
    done = run_verify(["verify", "-f", str(signers), "-I", who, "-n", NAMESPACE, "-s", str(signature)], archive)
    if done.returncode != 0:
        raise DataError(
            path,
            f"does not match what {printable(who)} signed, or was signed with a key that {signers} does not "
            "list for them: "
            f"{last_line(done.stderr) or last_line(done.stdout)}",
            "do not use it",
        )
    return who


def find_signer(signature: Path, signers: Path) -> str:
    """Return the identity of the signature's key among the allowed signers. Raise DataError if it is not listed."""
    done = run_verify(["find-principals", "-f", str(signers), "-s", str(signature)], None)
    names = done.stdout.splitlines()
    if done.returncode != 0 or not names:
        raise DataError(
            signature,
            f"was not signed by anyone that {signers} allows ({last_line(done.stderr) or 'no such key'})",
            "do not use the bundle, or add the signer's key after you have received it from them",
        )
    return names[0]


def run_verify(arguments: list[str], content: BinaryIO | None) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen -Y over an open file from its beginning, without prompts."""
    if content is not None:
        content.seek(0)
    return subprocess.run(
        [find_ssh_keygen(), "-Y", *arguments],
        stdin=subprocess.DEVNULL if content is None else content.fileno(),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def last_line(text: str | None) -> str:
    """Return the last non-empty line, safe to print on a terminal."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return printable(lines[-1]) if lines else ""
