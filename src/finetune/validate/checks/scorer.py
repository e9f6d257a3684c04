"""Checks of evaluate's scorers on the real test rows: what could score nothing is told before the training."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from finetune.config.validate import ValidateParams
from finetune.errors import ConfigError
from finetune.records.examples import Example
from finetune.score.scorers import build_scorers
from finetune.validate.findings import Finding

PLACE = "params.yaml: "


def check_scorers(
    params: ValidateParams, test: Sequence[Example], labels: Mapping[str, Sequence[str]], root: Path
) -> list[Finding]:
    """One finding a scorer that can't be built for these rows; `labels` are the classes by agent, by prepare."""
    if not test:
        return []
    if params.evaluate.forgetting is not None and find_spec("lm_eval") is None:
        where, what = f"{PLACE}evaluate.forgetting", "the lm-evaluation-harness is not installed here"
        return [Finding("scorer-unusable", where, what, "install requirements/forgetting.lock, or set it to null")]
    try:
        build_scorers(params.evaluate.scorers, labels, test, root)
    except ConfigError as error:
        return [_finding(line) for line in str(error).splitlines()]
    return []


def _finding(line: str) -> Finding:
    """`params.yaml: evaluate.scorers.x.pattern: what is wrong; what to do` in its parts."""
    where, _, rest = line.removeprefix(PLACE).partition(": ")
    what, _, fix = rest.rpartition("; ")
    return Finding("scorer-unusable", f"{PLACE}{where}", what or rest, fix if what else "correct it")
