"""`finetune check [RECIPE]`: whether a run can start here at all, before anything is written or waited for.

Reads params.yaml and the recipe; asks for the device as cheaply as it can be known, and judges all recipes only to say
which one would fit.
"""

import ast
import platform
from importlib.util import find_spec
from pathlib import Path

from finetune.config.evaluate import RecordedSpec
from finetune.config.model import Environment
from finetune.config.params import Config
from finetune.config.recipes import read_recipe
from finetune.config.scorers import Classification
from finetune.console import say
from finetune.errors import MachineError
from finetune.evaluate.recorded import check_recorded


def check(root: Path, recipe: str | None) -> None:
    """Silence where params.yaml, or with a recipe what it would make of params.yaml, can be run here and now.

    ConfigError for mistakes; MachineError where the device is missing.
    """
    config = read_recipe(recipe, root)
    check_evaluation(config, root)
    missing = why_not_here(config)
    if missing:
        say(f"recipe {config.recipe} can't run here; looking for one that can")
        raise refusal(root, recipe, config, missing)


def check_evaluation(config: Config, root: Path) -> None:
    """ConfigError or DataError where what evaluate reads beside the test set is missing or broken: hours later it
    would be told all the same."""
    from finetune.score.scorers import build_scorers

    asked = config.evaluate
    read = {name: scorer for name, scorer in asked.scorers.items() if not isinstance(scorer, Classification)}
    build_scorers(read, {}, [], root)
    if isinstance(asked.baseline, RecordedSpec):
        check_recorded(asked.baseline, root)


def why_not_here(config: Config) -> str | None:
    """What this machine lacks of the run's device; None where it is there, in the number that one node needs."""
    missing = why_no_device(config.environment)
    if missing or config.environment == "cpu":
        return missing
    from finetune.hardware.devices import count_devices

    distributed = config.train.distributed
    asked, found = distributed.devices // distributed.nodes, count_devices(config.environment)
    return f"{asked} devices a node are asked for, {found} found" if found < asked else None


def why_no_device(environment: Environment) -> str | None:
    """What is missing, as hardware/devices.py tells it; torch, seconds to import, only where nothing else can know."""
    if environment == "cpu":
        return None
    if environment == "apple" and platform.system() != "Darwin":
        return "no Apple GPU is in this machine"
    if environment == "cuda" and is_without_cuda(torch_versions()):
        return f"torch {torch_versions()['__version__']} is a build without CUDA"
    from finetune.hardware.devices import why_unavailable

    return why_unavailable(environment)


def is_without_cuda(versions: dict[str, object]) -> bool:
    """Whether torch says that it was built for neither CUDA nor ROCm, which answers to the same name."""
    return "cuda" in versions and versions["cuda"] is None and versions.get("hip") is None


def torch_versions() -> dict[str, object]:
    """The constants of torch/version.py, read and not imported; empty where torch is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).with_name("version.py")
    found: dict[str, object] = {}
    for line in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            found[target.id] = value.value
    return found


def refusal(root: Path, recipe: str | None, config: Config, missing: str) -> MachineError:
    """What is missing, and what works here instead."""
    where = f"recipes/{recipe}.yaml" if recipe else "params.yaml"
    rehearsal = f"./finetune rehearse {recipe}" if recipe else "./finetune rehearse"
    best = find_best(root)
    fitting = (
        f"make train-{best}, the largest base that fits this machine" if best else "one that ./finetune recipes lists"
    )
    return MachineError(
        f"{where}: environment: {config.environment}",
        f"{missing}; nothing was started or changed",
        f"what works here: {rehearsal} (every stage, on a shrunken base), or {fitting}",
        code="device-missing",
    )


def find_best(root: Path) -> str | None:
    """The recipe that `finetune doctor` would name, without its other checks: some seconds."""
    from finetune.hardware.accelerators import find_accelerators
    from finetune.plan.fit import Predictor, best_of, judge_all

    best = best_of(list(judge_all(root, find_accelerators(quick=False), Predictor(root))))
    return best.recipe if best else None
