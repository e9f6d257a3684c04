"""`finetune check [RECIPE]`: check whether a run can start on this machine, before anything is written.

Reads params.yaml and the recipe and looks up the device. Evaluates all recipes only to recommend one that fits.
"""

from pathlib import Path

from finetune.config.evaluate import RecordedSpec
from finetune.config.params import Config
from finetune.config.recipes import read_recipe
from finetune.config.scorers import Classification
from finetune.console import say
from finetune.errors import ConfigError, MachineError
from finetune.evaluate.recorded import check_recorded
from finetune.hardware.preflight import find_device_problem
from finetune.model.access import find_access_problem


def check(root: Path, recipe: str | None) -> None:
    """Check that params.yaml, or the params.yaml that a recipe would produce, can run on this machine.

    Raises ConfigError for mistakes and for a gated base without access, and MachineError if the device is missing.
    """
    config = read_recipe(recipe, root)
    check_evaluation(config, root)
    missing = find_device_problem(config.environment, config.train)
    if missing:
        say(f"recipe {config.recipe} can't run on this machine; searching for a recipe that can")
        raise refusal(root, recipe, config, missing.message)
    refused = find_access_problem(config.model, root)
    if refused:
        raise ConfigError.of([refused])


def check_evaluation(config: Config, root: Path) -> None:
    """Check the files that evaluate reads besides the test set, before a run of several hours depends on them.

    Raises ConfigError or DataError if one is missing or malformed.
    """
    from finetune.score.scorers import build_scorers

    evaluation = config.evaluate
    read = {name: scorer for name, scorer in evaluation.scorers.items() if not isinstance(scorer, Classification)}
    build_scorers(read, {}, [], root)
    if isinstance(evaluation.baseline, RecordedSpec):
        check_recorded(evaluation.baseline, root)


def refusal(root: Path, recipe: str | None, config: Config, missing: str) -> MachineError:
    """Build the error that reports what is missing and which recipe works on this machine instead."""
    where = f"recipes/{recipe}.yaml" if recipe else "params.yaml"
    rehearsal = f"./finetune rehearse {recipe}" if recipe else "./finetune rehearse"
    best = find_best(root)
    fitting = (
        f"make train-{best}, the largest base that fits this machine"
        if best
        else "another recipe (./finetune recipes lists them)"
    )
    return MachineError(
        f"{where}: environment: {config.environment}",
        f"{missing}; nothing was started or changed",
        f"on this machine you can run {rehearsal} (every stage on a shrunken base), or {fitting}",
        code="device-missing",
    )


def find_best(root: Path) -> str | None:
    """Return the recipe that `finetune doctor` would recommend, without its other checks. Takes a few seconds."""
    from finetune.hardware.accelerators import find_accelerators
    from finetune.plan.fit import Predictor, best_of, judge_all

    best = best_of(list(judge_all(root, find_accelerators(quick=False), Predictor(root))))
    return best.recipe if best else None
