"""Whether the Hub would give this machine the base's weights: asked before a run, which would stop at the download."""

from importlib.util import find_spec
from pathlib import Path

from finetune.config.model import ModelConfig
from finetune.errors import Problem
from finetune.model.base import HUB_NAME, hub_answers
from finetune.model.cache import find_missing_weights, snapshot


def find_access_problem(model: ModelConfig, root: Path) -> Problem | None:
    """Return why the Hub refuses the base's weights; None if they are here, or it gives them, or does not answer."""
    if (root / model.base).is_dir() or model.revision is None or not HUB_NAME.fullmatch(model.base):
        return None
    if snapshot(model).is_dir() and find_missing_weights(snapshot(model)) is None:
        return None
    if find_spec("huggingface_hub") is None or not hub_answers():  # a host whose stages run in containers lacks it
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().auth_check(model.base)
    except GatedRepoError:
        message = f"{model.base} is gated, and the Hub does not give it to this machine"
        remedy = f"accept its licence at https://huggingface.co/{model.base}, then set HF_TOKEN"
        return Problem("base-gated", "params.yaml: model.base", message, remedy)
    except RepositoryNotFoundError:
        message = f"{model.base} is not on the Hub, or is private"
        return Problem("base-gated", "params.yaml: model.base", message, "fix the name, or set HF_TOKEN")
    except Exception:  # the Hub is busy, or the connection broke (the library's own classes): the download reports it
        return None
    return None
