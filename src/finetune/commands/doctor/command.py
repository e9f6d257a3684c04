"""`finetune doctor`: report what this machine has, what is missing and how to get it, and which recipe it can run.

With `--quick`, no heavy libraries are imported, so memory is not predicted.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from finetune.commands.doctor.accelerators import check_accelerators
from finetune.commands.doctor.host import Check, check_computer
from finetune.commands.doctor.software import check_surroundings
from finetune.config.recipes import read_recipe
from finetune.console import say, table
from finetune.containers.runtime import has_packages
from finetune.errors import MachineError
from finetune.hardware.accelerators import find_accelerators
from finetune.plan.fit import Fit, Predictor, best_of, judge, judge_all


def run(root: Path, recipe: str | None, as_json: bool, quick: bool) -> int:
    """Print all checks. Return 0, or MachineError's exit code if the recipe cannot run on this machine."""
    config = read_recipe(recipe, root)
    quick = quick or not has_packages()
    found = find_accelerators(quick)
    checks = [
        *check_computer(config, root),
        *check_accelerators(config, found, quick),
        *check_surroundings(config, root, quick),
    ]
    predictor = None if quick else Predictor(root)
    chosen = judge(config, found, predictor)
    others = [] if predictor is None else list(judge_all(root, found, predictor))
    best = best_of(others)
    if as_json:
        report: dict[str, Any] = {
            "checks": [asdict(check) for check in checks],
            "recipe": asdict(chosen),
            "recipes": [asdict(fit) for fit in others],
            "best": best.recipe if best else None,
        }
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        table("doctor", ["check", "result", "status", "fix"], [astuple(check) for check in checks])
        base = next(check for check in checks if check.what == "base model")
        for line in closing_lines(chosen, best, others, base):
            say(line)
    return 0 if chosen.can_run else MachineError.exit_code


def closing_lines(chosen: Fit, best: Fit | None, others: list[Fit], base: Check) -> Iterator[str]:
    """Yield two or three sentences on what to do next."""
    yield chosen.sentence()
    if chosen.can_run and base.status != "ok":
        yield f"its base model has not been downloaded yet ({base.found}): {base.remedy}"
    if best is not None:
        assert best.parameters is not None
        size = f"{best.parameters:,} parameters"
        yield f"the recipe with the largest base that fits this machine: {best.recipe} ({best.base}, {size})"
    elif others:
        yield "no recipe is known to fit this machine: each needs other hardware, or its memory could not be predicted"
    else:
        yield "run finetune doctor without --quick to find the recipe that fits best"
