"""`finetune chat "…"`: answer one prompt with the base model and the published adapter, or start a session of prompts.

Reads params.yaml, the base model, `out/adapter` and, for the system prompts of the agents, `data/prepared/test.jsonl`;
writes nothing. Each prompt is independent of the previous ones.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from finetune.config.params import Config
from finetune.console import printable, say
from finetune.errors import ConfigError
from finetune.paths import Paths
from finetune.records.examples import Message
from finetune.records.io import read_examples

NO_AGENT = "none"
SIDES: tuple[Literal["base", "candidate"], ...] = ("base", "candidate")
HELP = (
    "type one prompt per line; /agent NAME changes the system prompt, Ctrl-C stops an answer, an empty "
    "line or Ctrl-D quits"
)


@dataclass
class Session:
    """A loaded model, its generation settings and the current agent."""

    model: Any
    tokenizer: Any
    settings: dict[str, Any]
    prompts: dict[str, str | None]  # system prompts by agent
    agent: str
    longest: int  # max_length of the training, in tokens

    @property
    def system(self) -> str | None:
        """The system prompt of the current agent."""
        return self.prompts.get(self.agent)


def run(config: Config, paths: Paths, prompt: str | None, agent: str | None, max_new_tokens: int | None) -> None:
    """Answer one prompt, each line of piped input, or typed prompts. Raise ConfigError or DataError on failure."""
    prompts = system_prompts(config, paths)
    chosen = choose_agent(prompts, agent)  # reject an unknown name before loading the model
    session = open_session(config, paths, prompts, chosen, max_new_tokens or config.evaluate.max_new_tokens)
    describe(session)
    if prompt:
        answer(session, prompt)
    elif sys.stdin.isatty():
        talk(session)
    else:
        for line in sys.stdin:
            if text := line.rstrip("\r\n"):
                say(f"\n> {text}")
                answer(session, text)


def system_prompts(config: Config, paths: Paths) -> dict[str, str | None]:
    """Return the most frequent system prompt of each agent's test prompts, or else the prompts of params.yaml."""
    data, file = config.data, paths.prepared / "test.jsonl"
    seen: dict[str, Counter[str | None]] = {}
    for example in read_examples(file) if file.exists() else ():
        first = example.messages[0]
        text = first.content if first.role == "system" else None
        seen.setdefault(example.agent, Counter())[text] += 1
    result: dict[str, str | None] = {name: texts.most_common(1)[0][0] for name, texts in sorted(seen.items())}
    return {**data.system_prompts, **result} or {NO_AGENT: data.default_system_prompt}


def choose_agent(prompts: dict[str, str | None], agent: str | None) -> str:
    """Return the named agent, by default the first one. Raise ConfigError if no agent has this name."""
    if agent is None:
        return next(iter(prompts))
    if agent not in prompts and agent != NO_AGENT:
        raise ConfigError(
            "chat",
            f"no agent is named {agent!r}",
            f"known agents: {', '.join(prompts)}; {NO_AGENT} uses no system prompt",
        )
    return agent


def open_session(
    config: Config, paths: Paths, prompts: dict[str, str | None], agent: str, max_new_tokens: int
) -> Session:
    """Load base model and adapter, and run each once, so that the first answer is timed like the others."""
    from finetune.hardware.devices import require_device, set_device_environment
    from finetune.model.published import check_adapter

    check_adapter(config, paths)
    set_device_environment(config.environment, 1, deterministic=False)
    device = require_device(config.environment)

    from finetune.evaluate.generate import generation_settings
    from finetune.model.adapter import load_adapter
    from finetune.model.base import load_base
    from finetune.model.tokens import load_tokenizer

    tokenizer = load_tokenizer(config.model, paths.adapter)
    model = load_adapter(load_base(config.model, device), paths.adapter)
    settings = generation_settings(model, tokenizer, max_new_tokens)
    session = Session(model, tokenizer, settings, prompts, agent, config.train.max_length)
    for side in SIDES:
        generate_one(session, side, prompt_ids(session, "warm up"), {**settings, "max_new_tokens": 1})
    return session


def describe(session: Session) -> None:
    """Print the current agent and the other available ones."""
    others = [name for name in session.prompts if name != session.agent]
    note = f"; others: {', '.join(others)} (--agent NAME, or /agent NAME)" if others else ""
    say(f"agent {session.agent}, system prompt: {session.system or 'none'}{note}")


def talk(session: Session) -> None:
    """Answer typed prompts until an empty line or the end of the input."""
    import readline  # noqa: F401, gives input() its line editing

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else it would act like Ctrl-C, which does not end the session
    say(HELP)
    for line in typed():
        command, _, name = line.partition(" ")
        if command == "/agent":
            try:
                session.agent = choose_agent(session.prompts, name.strip() or None)
                describe(session)
            except ConfigError as error:
                say(str(error))
            continue
        try:
            answer(session, line)
        except KeyboardInterrupt:
            say("\nstopped")


def typed() -> Iterator[str]:
    """Yield typed lines up to an empty one. Ctrl-C discards an unfinished line."""
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if not line:
            return
        yield line


def answer(session: Session, prompt: str) -> None:
    """Print both answers to one prompt, the base model's first, with their length and time."""
    ids = prompt_ids(session, prompt)
    limit = session.settings["max_new_tokens"]
    if len(ids) + limit > session.longest:
        say(f"the prompt has {len(ids)} tokens: with the answer it may exceed the {session.longest} tokens trained on")
    for side in SIDES:
        streamer = stream(session) if sys.stdout.isatty() else None
        if streamer:
            say(f"{side}:")
        started = time.perf_counter()
        result = generate_one(session, side, ids, session.settings, streamer)
        seconds = time.perf_counter() - started
        length = len(result.tokens)
        end = "" if result.finished else f", cut off at {limit} (--max-new-tokens)"
        note = f"{length} token{'' if length == 1 else 's'}, {seconds:.2f} s{end}"
        if streamer:
            say(f"  ({note})")
        else:
            text = session.tokenizer.decode(result.tokens, skip_special_tokens=True)
            say(f"{side} ({note}):\n{indented(text)}")


def indented(text: str) -> str:
    """Make an answer safe to print: without control characters, with tabs as spaces, and indented."""
    lines = printable(text.expandtabs(4)).splitlines() or ["(nothing)"]
    return "\n".join(f"  {line}" for line in lines)


def prompt_ids(session: Session, prompt: str) -> list[int]:
    """Apply the chat template to the agent's system prompt and the prompt."""
    from finetune.model.tokens import tokenize_prompt

    system = [Message("system", session.system)] if session.system else []
    return tokenize_prompt(session.tokenizer, [*system, Message("user", prompt)])


def generate_one(
    session: Session, side: Literal["base", "candidate"], ids: list[int], settings: dict[str, Any], streamer: Any = None
) -> Any:
    """Generate the answer of one side with greedy decoding."""
    from finetune.evaluate.generate import generate

    options = {"streamer": streamer} if streamer else {}
    if side == "candidate":
        return generate(session.model, [ids], settings, **options)[0]
    with session.model.disable_adapter():
        return generate(session.model, [ids], settings, **options)[0]


def stream(session: Session) -> Any:
    """Return a streamer that prints an answer during generation, sanitizing each piece."""
    from transformers import TextStreamer

    class Harmless(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            sys.stdout.write(printable(text.expandtabs(4)) + ("\n" if stream_end else ""))
            sys.stdout.flush()

    return Harmless(session.tokenizer, skip_prompt=True, skip_special_tokens=True)
