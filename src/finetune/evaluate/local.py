"""A side that runs in this process: a model with its tokenizer, and the adapter that is active while it answers."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from finetune.config.evaluate import EvaluateParams
from finetune.config.model import Environment, ModelConfig
from finetune.errors import BaseModelError
from finetune.evaluate.answers import Timed, UnansweredError
from finetune.evaluate.generate import (
    FirstToken,
    Generated,
    generate,
    generate_or_halve,
    generation_settings,
    reference_nll,
)
from finetune.hardware.devices import synchronize
from finetune.hardware.failures import is_out_of_memory
from finetune.model.tokens import Tokenized, tokenize, tokenize_prompt
from finetune.records.examples import Answer, Example, Message

CANDIDATE, EARLIER = "default", "earlier"  # PEFT's names of the adapters on one base model


@dataclass(frozen=True)
class LocalSide:
    """One side's model; `described` is its entry in the report, `adapter` the one to activate (None: none).

    `origin` is everything else that its answers depend on: the model's number format, and the template.
    """

    described: dict[str, Any]
    origin: dict[str, Any]
    model: Any
    tokenizer: Any
    settings: dict[str, Any]
    environment: Environment
    adapter: str | None = None

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Yield the model with only this side's adapter active."""
        if not hasattr(self.model, "peft_config"):
            yield self.model
        elif self.adapter is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(self.adapter)
            yield self.model

    def length(self, example: Example) -> int:
        """Return the length of the prompt, for batches of similar length."""
        prompt = self.prompt(example)
        return len(prompt) if isinstance(prompt, list) else 0

    def prompt(self, example: Example) -> list[int] | str:
        """Return the prompt's ids, or why this side cannot answer it."""
        try:
            ids = tokenize_prompt(self.tokenizer, example.prompt, example.tools)
        except BaseModelError as error:
            return error.problem.message
        room = getattr(self.model.config, "max_position_embeddings", None)
        needed = len(ids) + self.settings["max_new_tokens"]
        return (
            f"{needed} tokens including the answer, but the model has {room} positions"
            if room and needed > room
            else ids
        )

    def answer(self, examples: Sequence[Example], seed: int) -> list[Answer]:
        """Return the answers to one batch, with the nats of their references."""
        prompts = [self.prompt(example) for example in examples]
        able = [at for at, prompt in enumerate(prompts) if isinstance(prompt, list)]
        with self.active() as model:
            found = generate_or_halve(model, [prompts[at] for at in able], self.settings, seed) if able else []  # type: ignore[misc]
            answers = {at: self._to_answer(item) for at, item in zip(able, found, strict=True)}
            answered = [at for at in able if answers[at].failed is None]
            references = [self._reference(examples[at]) for at in answered]
            nats = reference_nll(model, references, self.settings["pad_token_id"], max(len(answered), 1))
        for at, value in zip(answered, nats, strict=True):
            answers[at] = replace(answers[at], reference_nll=value)
        failed = {at: Answer("", None, None, failed=why) for at, why in enumerate(prompts) if isinstance(why, str)}
        return [{**answers, **failed}[at] for at in range(len(examples))]

    def _reference(self, example: Example) -> Tokenized:
        """Return the complete conversation; without supervised tokens if the template does not render it."""
        try:
            return tokenize(self.tokenizer, example.messages, example.tools)
        except BaseModelError:
            return Tokenized([], [])

    def _to_answer(self, found: Generated | str) -> Answer:
        if isinstance(found, str):
            return Answer("", None, None, failed=found)
        return Answer(self.tokenizer.decode(found.tokens, skip_special_tokens=True), len(found.tokens), found.finished)

    def likeliest(self, example: Example, labels: Sequence[str], batch_size: int) -> str | None:
        """Return the most likely label as a complete answer with end token; None if there is no valid prompt."""
        if isinstance(self.prompt(example), str):
            return None
        talks = [(*example.prompt, Message("assistant", label)) for label in labels]
        rows = [self._reference(replace(example, messages=talk)) for talk in talks]
        with self.active() as model:
            found = reference_nll(model, rows, self.settings["pad_token_id"], batch_size)
        nats = [value for value in found if value is not None]
        return labels[nats.index(min(nats))] if len(nats) == len(labels) else None

    def time(self, example: Example) -> Timed:
        """Time a single answer, synchronizing the device before and after. Raise UnansweredError if there is none."""
        prompt = self.prompt(example)
        if isinstance(prompt, str):
            raise UnansweredError(prompt)
        with self.active() as model:
            noted = FirstToken()
            synchronize(self.environment)
            started = time.perf_counter()
            try:
                (answer,) = generate(model, [prompt], self.settings, noted)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise UnansweredError(f"out of memory for a prompt of {len(prompt)} tokens") from None
                raise
            synchronize(self.environment)
            seconds = time.perf_counter() - started
        first = None if noted.at is None else noted.at - started
        text = self.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        return Timed(seconds, first, len(answer.tokens) + answer.finished, text)


def open_local(
    described: dict[str, Any],
    model: Any,
    tokenizer: Any,
    params: EvaluateParams,
    adapter: str | None = None,
    held: ModelConfig | None = None,
) -> LocalSide:
    """Build a side of this process with the settings that both sides share; `held` is a model other than the base."""
    settings = generation_settings(model, tokenizer, params.evaluate.max_new_tokens, params.evaluate.sampling)
    template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
    origin = {"model": (held or params.model).model_dump(mode="json"), "template_sha256": template}
    return LocalSide(described, origin, model, tokenizer, settings, params.environment, adapter)
