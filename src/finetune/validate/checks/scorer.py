"""Check evaluate's scorers on the real test rows, so that unusable ones are reported before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from finetune.config.validate import ValidateParams
from finetune.errors import ConfigError
from finetune.records.examples import Example
from finetune.score.scorers import build_scorers
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

CODES |= {
    "scorer-unusable": Code("error", "verdict", "A scorer or forgetting test that can't score anything.", binding=True),
}


def check_scorers(
    params: ValidateParams, test: Sequence[Example], labels: Mapping[str, Sequence[str]], root: Path
) -> list[Finding]:
    """Return a finding for each scorer that cannot be built for these rows; `labels` are prepare's classes by agent."""
    if not test:
        return []
    if params.evaluate.forgetting is not None and find_spec("lm_eval") is None:
        where, what = "params.yaml: evaluate.forgetting", "the lm-evaluation-harness is not installed"
        return [Finding("scorer-unusable", where, what, "install requirements/forgetting.lock, or set it to null")]
    try:
        build_scorers(params.evaluate.scorers, labels, test, root)
    except ConfigError as error:
        unusable = [Finding.of(problem, "scorer-unusable") for problem in error.problems]
        return [replace(finding, remedy=finding.remedy or "fix it") for finding in unusable]
    return []
