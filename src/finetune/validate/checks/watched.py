"""Check that DVC tracks every file that params.yaml names; otherwise an outdated result would pass as a new one.

Data are tracked below `data.directory`, functions and schemas below `scorers/`, base models and templates below
`models/`.
"""

from collections.abc import Iterator
from pathlib import Path

from finetune.config.evaluate import ModelSpec
from finetune.config.model import ModelConfig
from finetune.config.validate import ValidateParams
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

FOLDER = "models"  # a dependency of every stage that loads a base model
NOT_WATCHED = ("__pycache__", ".git", ".hg", ".dvc")

CODES |= {
    "file-unwatched": Code("error", "verdict", "DVC does not track changes of this file: stale results would be kept."),
}


def check_watched(params: ValidateParams, root: Path) -> list[Finding]:
    """Return a finding for each base or template that DVC does not track; none outside a DVC repository."""
    if not (root / "dvc.yaml").is_file():
        return []
    remedy = f"move or copy it into {FOLDER}/, or accept the finding if it never changes"
    return [
        Finding("file-unwatched", f"params.yaml: {key}", why, remedy)
        for key, name in named_files(params)
        if (root / name).exists() and (why := find_reason(name, root))
    ]


def named_files(params: ValidateParams) -> Iterator[tuple[str, str]]:
    """Yield the keys that may name a file or folder, with their values."""
    models: list[tuple[str, ModelConfig]] = [("model", params.model)]
    if isinstance(params.evaluate.baseline, ModelSpec):
        models.append(("evaluate.baseline.model", params.evaluate.baseline.model))
    for key, model in models:
        yield f"{key}.base", model.base
        if model.chat_template is not None:
            yield f"{key}.chat_template", model.chat_template


def find_reason(name: str, root: Path) -> str | None:
    """Return why DVC would not notice a change of a file or folder; None if it would."""
    path, folder = root / name, (root / FOLDER).resolve()
    real = path.resolve()
    if not real.is_relative_to(folder) or (root / FOLDER).is_symlink():
        return f"DVC tracks {FOLDER}/ only, so a change of this file would go unnoticed"
    if any(part in NOT_WATCHED for part in real.relative_to(folder).parts):
        return f"DVC ignores folders named {', '.join(NOT_WATCHED)}"
    if real != (root.resolve() / name) or any(inside.is_symlink() for inside in path.rglob("*")):
        return "DVC does not track the target of a link"
    return None
