"""Reliable checkpoints: identified by the run's fingerprint, written atomically, verified before a resume.

They are in `work/checkpoints/<fingerprint>`, outside DVC's outs, which `dvc repro` deletes before a stage runs. Each is
written into a temporary folder, synced, hashed in a manifest, and renamed.
"""

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.console import gigabytes, say
from finetune.errors import DataError, MachineError
from finetune.files.atomic import sync_directory, sync_files
from finetune.files.hashing import sha256_json, sha256_tensors
from finetune.files.manifests import MANIFEST, read_manifest, write_manifest
from finetune.files.strict_json import read_json
from finetune.model.adapter import WEIGHTS
from finetune.paths import FINISHED

PROGRESS = "progress.json"

SPARE = 16 * 2**20  # bytes besides the weights: tokenizer, curves, reports


@dataclass
class Progress:
    """State that the Trainer does not save, kept beside each checkpoint so that the curves continue as well."""

    unlogged_loss: float  # sum of the losses since the last log
    logged_step: int
    patience_used: int  # evaluations without improvement
    evaluation_pending: bool  # the run was stopped while it evaluated this step
    micro_batch: int  # rows per process and pass; a lack of memory may have reduced it below params.yaml's value


def read_progress(checkpoint: Path) -> Progress:
    """Read the progress saved with a checkpoint."""
    return Progress(**read_json(checkpoint / PROGRESS))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    limit: int  # number of checkpoints kept; the best one is always among them

    @property
    def partial(self) -> Path:
        """The folder in which the next checkpoint is written."""
        return self.folder / ".partial"

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, the newest first."""
        found = [path.name.removeprefix("checkpoint-") for path in self.folder.glob("checkpoint-*") if path.is_dir()]
        return sorted((int(step) for step in found if step.isdigit()), reverse=True)

    def begin(self, size: int) -> None:
        """Prepare for a checkpoint of about `size` bytes. Raise MachineError if the disk is too full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)
        require_space(self.folder, size, f"a checkpoint; {self.what_is_kept()}")
        self.partial.mkdir()

    def publish(self, step: int, best: int | None, content: Mapping[str, Any]) -> Path:
        """Seal and publish a checkpoint, and remove the oldest beyond the limit except the best."""
        write_manifest(self.partial, {**content, "step": step, "best_step": best})
        sync_files(self.partial)
        shutil.rmtree(self.path(step), ignore_errors=True)
        self.partial.replace(self.path(step))
        sync_directory(self.folder)
        ordered = sorted(self.steps(), key=lambda found: (found != step, found != best, -found))
        for found in ordered[self.limit :]:
            shutil.rmtree(self.path(found), ignore_errors=True)
        return self.path(step)

    def newest(self) -> Path | None:
        """Return the newest checkpoint that verifies along with its best one; others are set aside with a warning."""
        shutil.rmtree(self.partial, ignore_errors=True)
        for step in self.steps():
            best = self._verified(step)
            if best is not None and (best in (0, step) or self._verified(best) is not None):
                return self.path(step)
            if best is not None:
                self._set_aside(step, f"its best checkpoint, step {best}, is not usable")
        return None

    def _verified(self, step: int) -> int | None:
        """Return the best step (0: none yet) of an intact checkpoint, else None; a bad one is renamed."""
        path = self.path(step)
        try:
            best = read_manifest(path).get("best_step") or 0
            if isinstance(best, int):
                return best
            why = f"{MANIFEST} does not name the best step"
        except DataError as error:
            why = "it is incomplete" if not (path / MANIFEST).exists() else str(error)
        if path.exists():
            self._set_aside(step, why)
        return None

    def _set_aside(self, step: int, why: str) -> None:
        path = self.path(step)
        aside = path.with_name(f"bad-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.replace(aside)
        say(f"warning: {path} is not a usable checkpoint and was renamed to {aside.name}: {why}")

    def finish(self) -> None:
        """Mark the run as published. Its checkpoints are kept until evaluate begins, when DVC has the outputs."""
        (self.folder / FINISHED).touch()

    def what_is_kept(self) -> str:
        """Describe the state that would be kept if the run stopped now."""
        steps = self.steps()
        return f"the checkpoint of step {steps[0]} is kept" if steps else "no checkpoint has been written yet"


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise MachineError unless the disk of a folder has `size` bytes and a margin free."""
    free, needed = shutil.disk_usage(folder).free, size + SPARE
    if free < needed:
        raise MachineError(
            folder,
            f"{gigabytes(free)} are free, but {gigabytes(needed)} are needed for {what}",
            "free disk space (unfinished runs with other params are in the same folder), then run it again",
        )


def clear_others(folder: Path, mine: str) -> None:
    """Remove checkpoints of published runs, and print the size of those of unfinished ones."""
    others = [path for path in folder.glob("*") if path.is_dir() and path.name != mine]
    for path in others:
        if (path / FINISHED).exists():
            shutil.rmtree(path, ignore_errors=True)
    left = [path for path in others if path.exists()]
    size = sum(file.stat().st_size for path in left for file in path.rglob("*") if file.is_file())
    if left:
        say(
            f"note: {folder} contains {gigabytes(size)} from {len(left)} unfinished runs with other params, "
            "data or code"
        )


def wait_for_files(paths: Sequence[Path], seconds: float = 60.0) -> None:
    """Wait until files of other processes are visible here too: a shared disk may show them with a delay."""
    end = time.monotonic() + seconds
    while missing := [path.name for path in paths if not path.exists()]:
        if time.monotonic() > end:
            raise MachineError(
                f"{paths[0].parent}", f"{', '.join(missing)} of other processes are not visible", "is the disk shared?"
            )
        time.sleep(0.2)


def hash_state(step: int, folder: Path, optimizer: Any) -> dict[str, Any]:
    """Return the canonical hashes of adapter and optimizer at a step, which `finetune verify` compares."""
    return {
        "step": step,
        "adapter_sha256": sha256_tensors(folder / WEIGHTS),
        "optimizer_sha256": sha256_json(_plain(optimizer.state_dict())),
    }


def _plain(value: Any) -> Any:
    """Convert a value to JSON, with tensors as dtype, shape and hash."""
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
