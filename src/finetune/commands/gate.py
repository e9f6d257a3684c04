"""`finetune gate` and `finetune report`: the verdict that stands, told again and as an exit code."""

from finetune.config.params import Config
from finetune.console import say
from finetune.decide.evidence import require_current
from finetune.paths import Paths
from finetune.pipeline.outputs import require_outputs
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport

EXIT_CODES = {"deploy": 0, "deploy-unproven": 10, "iterate": 10, "abort": 20}


def show_decision(paths: Paths, config: Config | None) -> int:
    """Print the verdict and where to read more; gives its exit code. DataError where there is no decision.

    With the run's config, as the gate has it, the decision must be on what lies here: on this adapter, this test set
    and these criteria, and every output must be what was written: DVC puts damaged objects of its cache in place and
    calls them up to date. A verdict of yesterday ships nothing, and neither does a damaged file.
    """
    decision = read_report(paths.reports / "decision.json", DecisionReport)
    if config is not None:
        require_current(decision, paths, config.decide)
        if (paths.root / "dvc.lock").exists():
            require_outputs(paths.root)
    say(f"{decision.verdict}: {decision.sentence}")
    for reason in decision.reasons:
        say(f"  {reason}")
    say(f"open {paths.reports / 'report.html'}")
    return EXIT_CODES[decision.verdict]
