"""A chat model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, or one on the network.

    POST {url}/chat/completions {"model": "…", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, …}

It uses HTTP directly instead of huggingface_hub's InferenceClient, which rejects every address, even localhost, under
HF_HUB_OFFLINE=1, and sends the user's Hugging Face token to a server for which no key is given. Keys and addresses
never appear in an error, a report or a log; an error names the key of params.yaml.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from finetune.errors import ConfigError, MachineError
from finetune.records.examples import Message, Tool
from finetune.score.replies import Reply, read_reply, read_stream, server_message, to_wire

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
TRIES = 4
AT_ONCE = 8  # requests: enough for a server to batch without overloading it
LONGEST_WAIT = 30.0  # seconds before a busy server is queried again
LARGEST_REPLY = 64 * 10**6  # bytes; far above any answer of max_tokens


class ServerError(MachineError):
    """A server gave no answer: it is unreachable, too slow, refuses, or does not follow the protocol.

    `status` is the HTTP status of a refusal; `reached` is False if the server is unreachable, also for other prompts.
    """

    def __init__(
        self,
        place: str,
        message: str,
        remedy: str,
        status: int | None = None,
        wait: float | None = None,
        *,
        reached: bool = True,
    ) -> None:
        super().__init__(place, message, remedy)
        self.status, self.wait, self.reached = status, wait, reached


class ChatServer:
    """A server and its model. `place` is the key of params.yaml for errors; ConfigError if its API key is missing.

    May be used from several threads at once.
    """

    def __init__(self, url: str, model: str, api_key_variable: str | None, timeout_seconds: float, place: str) -> None:
        import httpx2

        self.model, self.timeout, self.place = model, timeout_seconds, place
        if "@" in urlsplit(url).netloc:
            remedy = "remove it, and set api_key_variable to the environment variable that has the key"
            what = "contains a user or password, which would appear in reports and logs"
            raise ConfigError(f"params.yaml: {place}.url", what, remedy)
        self.url = chat_url(url)
        self.shown = without_secrets(self.url)
        self._key = read_key(api_key_variable, place)
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=timeout_seconds,
            follow_redirects=False,  # it would send the key to an unknown address
            trust_env=urlsplit(self.url).hostname not in LOCAL_HOSTS,  # no proxy leads to this machine
        )

    def answer(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
        stream: bool = False,
    ) -> Reply:
        """Return the answer to a conversation; if streamed, with the time of the first token. Raise ServerError on
        failure.

        Requests to a busy server (429, 503) are repeated a few times after a delay; other failures are not retried.
        """
        options = {"temperature": temperature, "top_p": top_p, "seed": seed, "tools": list(tools) or None}
        body = {
            "model": self.model,
            "messages": [to_wire(message) for message in messages],
            "max_tokens": max_tokens,
            **{name: value for name, value in options.items() if value is not None},
            **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
        }
        for attempt in range(1, TRIES + 1):
            try:
                return self._ask(body)
            except ServerError as error:
                if error.status not in (429, 503) or attempt == TRIES:
                    raise
                time.sleep(min(LONGEST_WAIT, 2.0**attempt if error.wait is None else error.wait))
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, body: dict[str, Any]) -> Reply:
        import httpx2

        started = time.perf_counter()
        try:
            content = json.dumps(body).encode()  # ASCII, so that lone surrogates cause no errors
            headers = {"Content-Type": "application/json"}
            with self._client.stream("POST", self.url, content=content, headers=headers) as response:
                lines = self._lines(response, started)
                if response.status_code != 200:
                    raise self._refused(response, "\n".join(lines))
                if "stream" in body and "json" not in response.headers.get("Content-Type", ""):
                    return read_stream(lines, started)
                return read_reply("\n".join(lines), started)
        except httpx2.TimeoutException:
            raise self._error(*too_slow(self.timeout)) from None
        except httpx2.HTTPError as error:
            what = f"can't be reached ({str(error) or type(error).__name__})"
            raise self._error(what, "start the server, or fix the url", reached=False) from None
        except (httpx2.InvalidURL, UnicodeError):
            raise self._error("is not a usable address", "fix the url", reached=False) from None
        except ValueError as error:
            raise self._error(f"did not return a chat completion: {error}", "is it OpenAI-compatible?") from None

    def _lines(self, response: Any, started: float) -> Iterator[str]:
        """Yield the lines of a response as they arrive, up to the time limit or the maximum size."""
        size, kept = 0, []
        for chunk in response.iter_bytes():
            size += len(chunk)
            if time.perf_counter() - started > self.timeout:
                raise self._error(*too_slow(self.timeout))
            if size > LARGEST_REPLY:
                raise ValueError(f"larger than {LARGEST_REPLY:,} bytes")
            kept.append(chunk)
            if b"\n" in chunk:
                *lines, rest = b"".join(kept).split(b"\n")
                kept = [rest]
                yield from (line.decode(errors="replace") for line in lines)
        yield b"".join(kept).decode(errors="replace")

    def _refused(self, response: Any, content: str) -> ServerError:
        status, wait = response.status_code, response.headers.get("Retry-After", "")
        fix = FIXES.get(status, "check the server log" if status >= 500 else "fix what its message reports")
        told = server_message(content)
        what = f"answered {status}{f' ({told})' if told else ''}"
        return self._error(what, fix, status, float(wait) if wait.isdecimal() and len(wait) < 9 else None)

    def _error(
        self, what: str, fix: str, status: int | None = None, wait: float | None = None, *, reached: bool = True
    ) -> ServerError:
        message = f"the server {what}"
        if self._key:
            message = message.replace(self._key, "***")
        return ServerError(f"params.yaml: {self.place}", message, fix, status, wait, reached=reached)


FIXES = {
    401: "the server does not accept the key in the environment variable of api_key_variable",
    403: "the server does not accept the key in the environment variable of api_key_variable",
    404: "fix url (it usually ends in /v1) or model",
    429: "the server is still busy after several attempts: wait, or request a higher rate limit",
    503: "the server is still not ready after several attempts: wait until its model is loaded",
}


def too_slow(seconds: float) -> tuple[str, str]:
    """Return the problem and the remedy."""
    return f"did not answer within {seconds:g} s", "raise timeout_seconds, or reduce the load on the server"


def chat_url(url: str) -> str:
    """Return the address of a server's chat completions; for a bare host, under /v1."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/") or "/v1"
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urlunsplit(parts._replace(path=path))


def without_secrets(url: str) -> str:
    """Return the address without what may be secret: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_key(variable: str | None, place: str) -> str | None:
    """Read the key in an environment variable. Raise ConfigError, without the value, if it is invalid."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    where = f"params.yaml: {place}.api_key_variable"
    if not key:
        remedy = "export it before the run, or set api_key_variable: null for a server without a key"
        raise ConfigError(where, f"the environment variable {variable} is not set", remedy)
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(where, f"{variable} contains a character that is not valid in a key", "export it again")
    return key
