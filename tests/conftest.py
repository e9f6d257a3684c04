"""Shared fixtures: the run's params, configs with keys changed, and examples and predictions created in memory."""

import os
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from finetune.config.loading import read_yaml
from finetune.config.params import Config, parse_config
from finetune.records.examples import Answer, Example, Message, Prediction

ROOT = Path(__file__).resolve().parents[1]

for who in ("AUTHOR", "COMMITTER"):  # experiments are commits, regardless of this machine's git settings
    os.environ |= {f"GIT_{who}_NAME": "Test", f"GIT_{who}_EMAIL": "test@localhost"}
# In a background job, a shell lets Ctrl-C be ignored, and nohup the end of the session; child processes would inherit
# this, and tests of interruptions would wait forever.
for ignored, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, action)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads a model; a missing one fails at once

# The same cases every time and on every machine, however slow, so that failures are reproducible.
settings.register_profile("finetune", derandomize=True, deadline=None, database=None)
settings.load_profile("finetune")


@pytest.fixture(scope="session")
def shipped_params() -> dict[str, Any]:
    """Return params.yaml, read once; `params` is a copy that tests may change."""
    content: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    return content


@pytest.fixture
def params(shipped_params: dict[str, Any]) -> dict[str, Any]:
    """Return params.yaml as plain objects that tests may change."""
    return deepcopy(shipped_params)


@pytest.fixture(scope="session")
def config(shipped_params: dict[str, Any]) -> Config:
    """Return params.yaml as a Config (frozen, so one for all tests)."""
    return parse_config(shipped_params, "params.yaml")


@pytest.fixture(scope="session")
def change(shipped_params: dict[str, Any]) -> Callable[..., Config]:
    """`change(**{"train.warmup_steps": 50, "data.sources.0.path": "rows.jsonl"})`: return the Config with keys changed.

    It has session scope, like `example` and `prediction`, so that hypothesis can use them."""

    def changed(**keys: Any) -> Config:
        content = deepcopy(shipped_params)
        for dotted, value in keys.items():
            *parents, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
            at: Any = content
            for part in parents:
                at = at[part]
            assert last in at if isinstance(at, dict) else last < len(at), f"{dotted} is not a key of params.yaml"
            at[last] = value
        return parse_config(content, "params.yaml")

    return changed


@pytest.fixture(scope="session")
def example() -> Callable[..., Example]:
    """`example("task", "answer", agent="namer")`: return one record; another prompt or answer gives another id."""

    def make(
        task: str = "message: invalid mode",
        answer: str = "ValueError",
        *,
        agent: str = "namer",
        source: str = "rows",
        line: int = 1,
        system: str | None = "Name the exception.",
    ) -> Example:
        messages = [Message("system", system)] if system else []
        messages += [Message("user", task), Message("assistant", answer)]
        return Example(f"{agent}/{source}/{line}/{task}/{answer}", source, line, agent, tuple(messages))

    return make


@pytest.fixture(scope="session")
def prediction() -> Callable[..., Prediction]:
    """`prediction(candidate=True, baseline=False)`: return both sides' answers to one example, right or wrong as given.

    A text instead of a bool is the answer itself; it is right if it equals the reference. The scores are those of the
    scorers in params.yaml, an exact match and a classification."""

    def make(
        candidate: bool | str = True,
        baseline: bool | str = False,
        *,
        id: str = "one",
        agent: str = "namer",
        source: str = "rows",
        cluster: str | None = None,
        prompt: str = "message: invalid mode",
        reference: str = "ValueError",
        nats: float | None = 1.0,
    ) -> Prediction:
        def answer(given: bool | str) -> Answer:
            text = given if isinstance(given, str) else reference if given else "wrong"
            score = float(text == reference)
            return Answer(
                text,
                tokens=3,
                finished=True,
                reference_nll=nats,
                scores={"exact_match": score, "exceptions.accuracy": score},
                labels={"exceptions": text},
            )

        return Prediction(
            id=id,
            agent=agent,
            source=source,
            cluster=id if cluster is None else cluster,
            prompt=prompt,
            reference=reference,
            reference_tokens=3,
            baseline=answer(baseline),
            candidate=answer(candidate),
        )

    return make
