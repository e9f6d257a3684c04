"""Every kind of baseline and candidate is opened, gets the same prompts, and is paired; unknown figures stay empty."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune.config.params import Config, params_of, parse_config
from finetune.errors import ConfigError, FinetuneError
from finetune.evaluate import stage
from finetune.files.atomic import write_json
from finetune.files.hashing import sha256_file
from finetune.files.manifests import read_manifest
from finetune.files.strict_json import read_json
from finetune.records.examples import Prediction
from finetune.records.io import read_examples, read_predictions, read_timings
from finetune.train import stage as train_stage
from tests.builders.small_run import ROOT, copy_of, params, validated

pytestmark = pytest.mark.slow

BY_LIKELIHOOD = {"scorer": "classification", "of": ["last"], "by": "likelihood", "labels": list("ndehkpty")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with an adapter."""
    root = tmp_path_factory.mktemp("sides") / "work"
    config, paths = validated(root)
    train_stage.run(params_of("train", config), paths)
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run(**{"evaluate.baseline": …})`: evaluate in a copy and return evaluation, cost and predictions."""
    root = copy_of(trained, tmp_path / "run")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))

    def evaluated(*, memory: bool = False, **changes: Any) -> tuple[dict[str, Any], dict[str, Any], list[Prediction]]:
        os.chdir(root)
        content = params(**changes)
        write_json(root / "params.yaml", content)
        if not memory:
            monkeypatch.setattr("finetune.evaluate.cost.measure_memory", lambda *_: [10**8] * 3)
        paths = stage.Paths()
        stage.run(params_of("evaluate", config_of(content)), paths)
        assert not paths.evaluation.exists()  # stored partial results are removed
        reports = (read_json(paths.reports / f"{name}.json") for name in ("evaluation", "cost"))
        return *reports, read_predictions(paths.predictions)

    return evaluated


def config_of(content: dict[str, Any]) -> Config:
    """Return a config from plain objects."""
    return parse_config(content, "params.yaml")


def test_a_merged_candidate_equals_base_and_adapter(run: Any) -> None:
    """The merged model runs in 16 bit from its own files, also in fresh processes, against the base of the training."""
    evaluation, cost, predictions = run(
        memory=True, **{"evaluate.candidate": {"form": "merged", "quantization": "none"}}
    )
    assert evaluation["candidate"]["form"] == "merged"
    assert evaluation["candidate"]["name"].endswith(", merged")
    assert evaluation["baseline"]["name"] == "base"
    assert min(cost["memory"]["bytes"]) > 10**8
    plain, _, before = run()
    assert plain["groups"]["all"]["baseline"] == evaluation["groups"]["all"]["baseline"]
    loss, other = (found["groups"]["all"]["candidate"]["loss"] for found in (plain, evaluation))
    assert loss == pytest.approx(other, rel=0.02) and loss != other
    assert len(predictions) == len(before)


def test_a_merged_and_quantized_candidate_is_evaluated_as_such(run: Any) -> None:
    """Quantized merged weights were never seen in training; as they would be deployed, they are evaluated."""
    evaluation, _, _ = run(**{"evaluate.candidate": {"form": "merged", "quantization": "nf4"}})
    plain, _, _ = run()
    assert evaluation["candidate"]["quantization"] == "nf4"
    assert evaluation["groups"]["all"]["candidate"]["loss"] != plain["groups"]["all"]["candidate"]["loss"]


def test_another_model_uses_its_own_template(run: Any) -> None:
    """The same base under another name acts as another model and gives the base's answers."""
    model = params()["model"] | {"base": str(ROOT / "models/tiny-base")}
    evaluation, _, _ = run(**{"evaluate.baseline": {"form": "model", "model": model}})
    assert (evaluation["baseline"]["form"], evaluation["baseline"]["name"]) == ("model", "tiny-base")
    assert str(ROOT) not in json.dumps(evaluation)
    same, _, _ = run(**{"evaluate.baseline": {"form": "model", "model": params()["model"]}})
    base, _, _ = run()
    assert same["groups"]["all"]["baseline"] == base["groups"]["all"]["baseline"]


def test_an_adapter_of_a_revision_can_be_the_baseline(run: Any, tmp_path: Path) -> None:
    """The adapter comes from DVC's cache by its revision, on the same base; in this test it equals the candidate."""
    run()
    commands = [
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        [sys.executable, "-m", "dvc", "add", "-q", "out/adapter"],
        ["git", "add", "."],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
        ["git", "tag", "v1"],
    ]
    for command in commands:
        subprocess.run(command, check=True, cwd=tmp_path / "run", env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    evaluation, _, predictions = run(**{"evaluate.baseline": {"form": "adapter", "revision": "v1"}})
    assert evaluation["baseline"]["name"].endswith(" of v1")
    assert all(item.baseline == item.candidate for item in predictions)
    with pytest.raises(ConfigError, match="'v2' is not an experiment, branch, tag or commit of this repository"):
        run(**{"evaluate.baseline": {"form": "adapter", "revision": "v2"}})
    manifest = read_manifest(Path("out/adapter"))
    assert manifest["base"]["name"] == "base"


def test_a_recorded_baseline_has_its_recorded_latency(run: Any) -> None:
    """The recorded latency is 20 seconds per answer; likelihoods are unknown and have no figures."""
    run()
    rows = [
        {"id": item.id, "text": item.completion, "seconds": 20.0}
        for item in read_examples(Path("data/prepared/test.jsonl"))
    ]
    path = Path("recorded.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    form = {"form": "recorded", "name": "v0", "path": str(path), "sha256": sha256_file(path)}
    evaluation, cost, _ = run(**{"evaluate.baseline": form})
    whole = evaluation["groups"]["all"]
    assert evaluation["baseline"]["recorded"] and evaluation["baseline_generation"] is None
    assert whole["baseline"]["exact_match"] == 1.0
    assert whole["baseline"]["loss"] is None and whole["candidate"]["loss"] > 0
    assert cost["latency"]["baseline"]["mean_seconds"] == 20.0
    assert cost["latency"]["baseline"]["mean_tokens"] is None and cost["latency"]["same_length"] is None


def test_labels_are_chosen_by_likelihood(run: Any) -> None:
    """Each side names one of the labels for each example of the agent, and for no other example."""
    scorers = {"exact_match": {"scorer": "exact_match", "of": None}, "last": BY_LIKELIHOOD}
    evaluation, _, predictions = run(**{"evaluate.scorers": scorers})
    for item in predictions:
        assert ("last" in item.candidate.labels) == (item.agent == "last")
        assert item.candidate.labels.get("last", "n") in BY_LIKELIHOOD["labels"]
    assert evaluation["groups"]["last"]["candidate"]["last.accuracy"] is not None
    assert evaluation["groups"]["upper"]["candidate"]["last.accuracy"] is None
    assert evaluation["classes"]["last"]["labels"]


class Upper(BaseHTTPRequestHandler):
    """A chat server whose answer is the last message in capitals, streamed on request."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"].split()[0].upper()
        usage = {"completion_tokens": 2, "prompt_tokens": 1, "total_tokens": 3}
        if request.get("stream"):
            events = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}]
            events.append({"choices": [], "usage": usage})
            body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            kind = "text/event-stream"
        else:
            message = {"role": "assistant", "content": text}
            body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})
            kind = "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[dict[str, Any]]:
    """Yield the settings of a running server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Upper) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/v1"
        yield {"form": "server", "url": url, "model": "upper", "api_key_variable": None, "timeout_seconds": 10.0}
        running.shutdown()


def test_a_server_is_used_through_its_chat_endpoint(run: Any, server: dict[str, Any]) -> None:
    """Answers, tokens and times come from the server; its memory and its losses are unknown."""
    evaluation, cost, _ = run(memory=True, **{"evaluate.candidate": server})
    whole = evaluation["groups"]
    assert whole["upper"]["candidate"]["exact_match"] == 1.0
    assert whole["all"]["candidate"]["loss"] is None and whole["all"]["baseline"]["loss"] > 0
    assert cost["memory"] == {"processes": 0, "largest_bytes": None, "bytes": []}
    assert cost["latency"]["candidate"]["mean_tokens"] == 2
    assert cost["latency"]["candidate"]["mean_first_seconds"] > 0
    assert cost["latency"]["identical_answers"] == 1.0


def test_two_servers_need_no_local_model(run: Any, server: dict[str, Any]) -> None:
    """Both sides use the same server and are indistinguishable."""
    evaluation, _, predictions = run(**{"evaluate.candidate": server, "evaluate.baseline": server})
    assert all(item.baseline == item.candidate for item in predictions)
    assert len(read_timings(Path("out/latency.jsonl"))) == len(predictions)
    assert evaluation["generation"]["max_new_tokens"] == evaluation["baseline_generation"]["max_new_tokens"]


def test_an_unreachable_server_is_reported(run: Any, server: dict[str, Any]) -> None:
    """An unreachable server is an error, not a thousand wrong answers."""
    gone = server | {"url": "http://127.0.0.1:9/v1"}
    with pytest.raises(FinetuneError, match=r"evaluate.candidate: the server can't be reached"):
        run(**{"evaluate.candidate": gone})


def test_forgetting_needs_local_models(run: Any, server: dict[str, Any]) -> None:
    """The harness needs likelihoods, which a server does not return."""
    request = {"tasks": ["words"], "folder": None, "limit": None}
    with pytest.raises(ConfigError, match=r"evaluate.forgetting: needs likelihoods of texts"):
        run(**{"evaluate.candidate": server, "evaluate.forgetting": request})
