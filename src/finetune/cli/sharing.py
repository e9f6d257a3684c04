"""Containers and sharing: image, push, pull, bundle, check-bundle."""

from pathlib import Path
from typing import Literal

import click

from finetune.cli.command import PARAMS, as_report, command, json_option


@command(example="image cpu")
@click.argument("environment", type=click.Choice(["cpu", "cuda"]), help="The environment to build.")
def image(environment: Literal["cpu", "cuda"]) -> None:
    """Build the container image that stages run in.

    With docker, podman or buildah, whichever is installed.
    """
    from finetune.config.params import load_config
    from finetune.containers import runtime
    from finetune.containers.images import run

    run(Path(), environment, runtime.runtime_of(load_config(PARAMS)))


@command(example="push")
def push() -> None:
    """Check the run and upload it to DVC's remote."""
    from finetune.commands.sharing.remote import push

    push(Path())


@command(example="pull")
def pull() -> None:
    """Download and check the run of this commit."""
    from finetune.commands.sharing.remote import pull

    pull(Path())


@command(example="bundle --sign ~/.ssh/id_ed25519")
@click.option("--sign", type=click.Path(path_type=Path), metavar="KEY", help="An SSH key to sign it with.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder or file to write (default: out/bundle).")
def bundle(sign: Path | None, output: Path | None) -> None:
    """Archive the run, with a bill of materials."""
    from finetune.commands.sharing.bundle import run

    run(Path(), sign, output)


@command("check-bundle", example="check-bundle out/bundle/finetune-tiny-703ff1683083.tar.gz --signers allowed_signers")
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE", help="The archive.")
@click.option("--signers", type=click.Path(path_type=Path), help="The signers you trust, in ssh-keygen's format.")
@click.option("--identity", help="The required signer (default: any trusted signer).")
@json_option
def check_bundle(path: Path, signers: Path | None, identity: str | None, as_json: bool) -> None:
    """Verify a bundle's integrity, contents and signature."""
    from finetune.commands.sharing.check_bundle import run

    as_report(as_json, lambda: run(path, signers, identity))
