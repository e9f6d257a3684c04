"""A side behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama), queried in the same way as its users do."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from finetune.config.evaluate import EvaluateParams, ServerSpec
from finetune.evaluate.answers import Timed, UnansweredError
from finetune.records.examples import Answer, Example
from finetune.score.server import AT_ONCE, ChatServer, ServerError


@dataclass(frozen=True)
class RemoteSide:
    """One side's server, which receives the messages and applies the chat template itself."""

    described: dict[str, Any]
    origin: dict[str, Any]
    server: ChatServer
    settings: dict[str, Any]

    def length(self, example: Example) -> int:
        """Return the length of the prompt in characters, for batches of similar length."""
        return sum(len(message.text) for message in example.prompt)

    def answer(self, examples: Sequence[Example], seed: int) -> list[Answer]:
        """Return the answers to one batch. A rejected prompt is a failed answer; an unreachable server ends the run."""
        with ThreadPoolExecutor(min(AT_ONCE, len(examples))) as pool:
            return list(pool.map(lambda example: self._answer(example, seed), examples))

    def _answer(self, example: Example, seed: int) -> Answer:
        try:
            reply = self.server.answer(example.prompt, example.tools, **self._asked(seed))
        except ServerError as error:
            if not error.reached or error.status in (401, 403, 404):
                raise  # other prompts would fail as well
            return Answer("", None, None, failed=str(error))
        return Answer(reply.text, reply.tokens, reply.finished)

    def time(self, example: Example) -> Timed:
        """Time a single streamed answer. Raise UnansweredError if there is none."""
        started = time.perf_counter()
        try:
            reply = self.server.answer(example.prompt, example.tools, stream=True, **self._asked(self.settings["seed"]))
        except ServerError as error:
            if not error.reached:
                raise
            raise UnansweredError(str(error)) from None
        return Timed(time.perf_counter() - started, reply.first_seconds, reply.tokens, reply.text)

    def _asked(self, seed: int) -> dict[str, Any]:
        sampled = self.settings["do_sample"]
        return {
            "max_tokens": self.settings["max_new_tokens"],
            "temperature": self.settings["temperature"] if sampled else 0.0,
            "top_p": self.settings["top_p"] if sampled else None,
            "seed": seed,
        }


def open_remote(form: ServerSpec, params: EvaluateParams, place: str) -> RemoteSide:
    """Build a side behind a server; `place` is its key in params.yaml. Raise ConfigError if its API key is missing."""
    server = ChatServer(form.url, form.model, form.api_key_variable, form.timeout_seconds, place)
    sampling = params.evaluate.sampling
    how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p} if sampling else {}
    settings = {"do_sample": False, **how, "num_beams": 1, "max_new_tokens": params.evaluate.max_new_tokens}
    described = {"form": "server", "name": form.model, "url": server.shown, "recorded": False}
    origin = {"url": form.url, "model": form.model}
    return RemoteSide(described, origin, server, {**settings, "seed": params.seed})
