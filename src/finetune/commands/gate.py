"""`finetune gate` and `finetune report`: print the current verdict and return it as an exit code."""

from finetune.config.params import Config
from finetune.console import say
from finetune.decide.evidence import require_current
from finetune.paths import Paths
from finetune.pipeline.outputs import require_outputs
from finetune.reports.base import read_report
from finetune.reports.decision import DecisionReport

EXIT_CODES = {"deploy": 0, "deploy-unproven": 10, "iterate": 10, "abort": 20}


def show_decision(paths: Paths, config: Config | None) -> int:
    """Print the verdict and the path of the report; return its exit code. Raise DataError if there is no decision.

    With the run's config, as in the gate, the decision must match the current adapter, test set and criteria, and every
    output must be byte-identical to what was written: DVC restores damaged objects from its cache and reports them as
    up to date. An outdated verdict or a damaged file must not be deployed.
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
