"""A gated base is reported before a run, and nothing else that the Hub may say or not say stops one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from finetune.commands.check import check
from finetune.commands.doctor.software import check_base
from finetune.config.params import Config
from finetune.errors import ConfigError
from finetune.model import access
from finetune.model.access import find_access_problem
from tests.builders.small_run import ROOT

Hub = Callable[[Exception | None], list[str]]
LICENCE = "accept its licence at https://huggingface.co/org/name, then set HF_TOKEN"


def error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """Return an error as huggingface_hub raises it."""
    return kind("refused", response=httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co")))


GATED = error(GatedRepoError, 403)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Return a function that sets the Hub's answer about access, and gives the list of names asked for."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(access, "hub_answers", lambda: True)

    def answer(with_error: Exception | None) -> list[str]:
        requests: list[str] = []

        def auth_check(self: HfApi, repo_id: str) -> None:
            requests.append(repo_id)
            if with_error is not None:
                raise with_error

        monkeypatch.setattr(HfApi, "auth_check", auth_check)
        return requests

    return answer


@pytest.fixture
def pinned(change: Callable[..., Config]) -> Config:
    """Return params with a base of the Hub."""
    return change(**{"model.base": "org/name", "model.revision": "a" * 40})


def test_doctor_and_check_report_a_gated_base(hub: Hub, pinned: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy has the licence's page; check raises before a run starts."""
    assert hub(GATED) == []
    found = check_base(pinned.model, ROOT)
    assert (found.status, found.remedy) == ("missing", LICENCE)
    assert "org/name is gated" in found.found
    monkeypatch.setattr("finetune.commands.check.read_recipe", lambda recipe, root: pinned)
    with pytest.raises(ConfigError, match="org/name is gated, and the Hub does not give it to this machine; accept"):
        check(ROOT, None)


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (None, None),
        (GATED, LICENCE),
        (error(RepositoryNotFoundError, 404), "fix the name, or set HF_TOKEN"),
        (error(HfHubHTTPError, 503), None),
        (httpx2.ConnectError("no route"), None),
    ],
)
def test_only_a_refusal_is_a_problem(hub: Hub, pinned: Config, answer: Exception | None, remedy: str | None) -> None:
    """A busy Hub or a broken connection does not stop a run whose download may still succeed."""
    requests = hub(answer)
    problem = find_access_problem(pinned.model, ROOT)
    assert requests == ["org/name"]
    assert (problem.remedy if problem else None) == remedy


def test_the_hub_is_not_asked_without_need(
    hub: Hub, pinned: Config, config: Config, change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local base, an unpinned one, a path and an offline machine send no request."""
    requests = hub(GATED)
    assert find_access_problem(config.model, ROOT) is None
    assert find_access_problem(change(**{"model.base": "org/name"}).model, ROOT) is None
    path = change(**{"model.base": "models/of/mine", "model.revision": "a" * 40})
    assert find_access_problem(path.model, ROOT) is None
    monkeypatch.setattr(access, "hub_answers", lambda: False)
    assert find_access_problem(pinned.model, ROOT) is None
    assert requests == []
