"""Checkpoints that can be trusted: keyed by the run's fingerprint, hashed when saved, verified before a resume.

They lie in `work/checkpoints/<fingerprint>`, outside DVC's outs, which `dvc repro` deletes before a stage runs.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from finetune.artifacts import MANIFEST, read_manifest, sha256_file, sha256_json, write_manifest
from finetune.config import Config
from finetune.console import say
from finetune.errors import DataError
from finetune.machine import versions

CODE = ("config.py", "model", "plan/order.py", "train")  # the package's files that determine the adapter


def fingerprint(config: Config, data_sha256: dict[str, str], base: dict[str, str]) -> str:
    """The hash of all that determines the adapter: params, data, base, library versions and this package's code."""
    package = Path(__file__).parents[1]
    sources = sorted(path for name in CODE for path in [package / name, *(package / name).rglob("*.py")])
    return sha256_json(
        {
            "params": config.model_dump(mode="json", include={"environment", "seed", "model", "adapter", "train"}),
            "data": data_sha256,
            "base": base,
            "versions": versions(),
            "code": [sha256_file(path) for path in sources if path.is_file()],
        }
    )


class SealCheckpoints(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes each checkpoint's manifest last, so that a half-written one is known by its absence."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called when the Trainer has written `checkpoint-<step>`."""
        write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}", {"step": state.global_step})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; one that does not is removed, aloud."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for path in found:
        try:
            read_manifest(path)
        except DataError as error:
            why = "it was not finished" if not (path / MANIFEST).exists() else str(error)
            say(f"warning: {path} is no good checkpoint and was removed: {why}")
            shutil.rmtree(path)
        else:
            return path
    return None
