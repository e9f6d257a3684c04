"""`make gate` and `make report`: the verdict that stands, told again and as an exit code."""

from finetune.artifacts import read_json
from finetune.console import say
from finetune.paths import Paths

EXIT_CODES = {"deploy": 0, "deploy-unproven": 10, "iterate": 10, "abort": 20}


def show_decision(paths: Paths) -> int:
    """Print the verdict and where to read more; gives its exit code. DataError where there is no decision."""
    decision = read_json(paths.reports / "decision.json")
    say(f"{decision['verdict']}: {decision['sentence']}")
    for reason in decision["reasons"]:
        say(f"  {reason}")
    say(f"open {paths.reports / 'report.html'}")
    return EXIT_CODES[decision["verdict"]]
