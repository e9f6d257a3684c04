"""A bundle's signature: it proves the author, and invalid signatures are refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.sharing import bundle, signing
from finetune.errors import ConfigError, DataError, MachineError
from tests.builders.changed_bundle import check
from tests.builders.changed_bundle import copy as copy
from tests.builders.changed_bundle import made as made
from tests.builders.changed_bundle import run as run
from tests.builders.shared_run import ROOT
from tests.builders.waiting import PATIENCE

# ---------------------------------------------------------------------------------------------------------- signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Create two keys without a passphrase, one with, and a receiver's list of signers that trusts the first only."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed")
    place = tmp_path_factory.mktemp("keys")
    for name, phrase in {"anna": "", "mallory": "", "guarded": "a long one"}.items():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-C", name, "-f", str(place / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    public = (place / "anna.pub").read_text(encoding="utf-8")
    (place / "signers").write_text(f'anna@example.org namespaces="finetune-bundle" {public}', encoding="utf-8")
    return {name: place / name for name in ("anna", "mallory", "guarded", "signers")}


def sign_apart(target: Path, key: Path) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of a process that signs without an SSH agent."""
    code = "import sys; from pathlib import Path; from finetune.commands.sharing import signing\n"
    code += "try: signing.sign(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    code += "except Exception as error: sys.exit(str(error))"
    environment = {key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}
    return [sys.executable, "-c", code, str(target), str(key)], environment | {"PYTHONPATH": str(ROOT / "src")}


def test_a_signature_proves_the_author(
    copy: Path, tmp_path: Path, keys: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The receiver knows the signing key; the archive's bytes are the same with or without a signature."""
    target = tmp_path / "x.tar.gz"
    bundle.run(copy, keys["anna"], target)
    check(target, keys["signers"])
    assert "signed by anna@example.org" in capsys.readouterr().out
    check(target, keys["signers"], "anna@example.org")
    check(target)
    assert "signed, but the signature was not checked" in capsys.readouterr().out


def test_invalid_signatures_are_refused(copy: Path, made: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """Refused: an unknown key, other bytes, another purpose, another person, no signature."""
    target = Path(shutil.copy(made, tmp_path / "x.tar.gz"))
    with pytest.raises(DataError, match=r"x\.tar\.gz\.sig: is missing, so x\.tar\.gz can't be verified"):
        check(target, keys["signers"])
    signing.sign(target, keys["mallory"])
    with pytest.raises(DataError, match=r"was not signed by anyone that .* allows"):
        check(target, keys["signers"])
    signing.sign(target, keys["anna"])
    with pytest.raises(DataError, match=r"does not match what bob@example\.org signed"):
        check(target, keys["signers"], "bob@example.org")
    target.write_bytes(target.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"does not match what anna@example\.org signed, or was signed with a key"):
        check(target, keys["signers"])
    command = ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", str(keys["anna"]), str(target)]
    signing.signature_of(target).unlink()
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(DataError):
        check(target, keys["signers"])
    signing.signature_of(target).write_text("nonsense", encoding="utf-8")
    with pytest.raises(DataError):
        check(target, keys["signers"])


def test_an_old_signature_is_removed_with_its_bundle(copy: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """Bundling again without a key removes the old signature, which would no longer match."""
    target = tmp_path / "x.tar.gz"
    bundle.run(copy, keys["anna"], target)
    bundle.run(copy, None, target)
    assert not signing.signature_of(target).exists()


def test_a_passphrase_without_a_terminal_is_an_error(made: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """In CI nobody could type the passphrase, so it is an error at once."""
    target = Path(shutil.copy(made, tmp_path / "x.tar.gz"))
    command, environment = sign_apart(target, keys["guarded"])
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "timeout": PATIENCE}
    done = subprocess.run(command, env=environment, text=True, check=False, **quiet)
    assert "a key with a passphrase needs a terminal or ssh-agent" in done.stderr
    assert not signing.signature_of(target).exists()


def test_a_passphrase_can_be_typed_on_a_terminal(made: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    """ssh-keygen asks on the terminal itself; a pseudo-terminal answers in this test."""
    import pty
    import select

    target = Path(shutil.copy(made, tmp_path / "x.tar.gz"))
    command, environment = sign_apart(target, keys["guarded"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, environment)
    shown = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            read = os.read(terminal, 4096)
        except OSError:
            break
        if not read:
            break
        shown += read
        if b"passphrase" in shown and b"a long one" not in shown:
            os.write(terminal, b"a long one\n")
            shown += b"a long one"
    _, ended = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(ended) == 0, shown
    assert signing.signature_of(target).is_file()


def test_missing_keys_and_tools_are_reported_before_packing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing keys and tools are reported before packing."""
    with pytest.raises(ConfigError, match="nokey: no such key; pass an OpenSSH private key"):
        bundle.run(copy, tmp_path / "nokey", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"ssh-keygen is not on PATH; install OpenSSH"):
        bundle.run(copy, tmp_path / "nokey", None)
    assert not (copy / "out/bundle").exists()
