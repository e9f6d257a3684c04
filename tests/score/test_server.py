"""The client of a chat server, tested with a local server."""

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import ConfigError, MachineError
from finetune.records.examples import Message
from finetune.score.replies import read_reply, read_stream, to_wire
from finetune.score.server import ServerError, chat_url
from tests.builders.chat_server import Respond, always, client, completion, serving

HI = [Message("user", "Hi")]
KEY = "sk-secret-0123456789"


def test_a_request_and_its_answer(monkeypatch: Any) -> None:
    """With HF_HUB_OFFLINE=1 (tests/conftest.py) a local server is still used, without a proxy."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_others")
    with serving(always(completion({"content": "Hello"}))) as (url, seen):
        reply = client(url).answer(HI, [{"type": "function"}], max_tokens=7, temperature=0.5, top_p=0.9, seed=3)
    assert (reply.text, reply.tokens, reply.finished, reply.model) == ("Hello", 2, True, "m-1")
    assert reply.first_seconds is None
    assert 0 < reply.seconds < 60
    assert seen == [
        {
            "path": "/v1/chat/completions",
            "authorization": None,
            "body": {
                "model": "m",
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 3,
                "tools": [{"type": "function"}],
            },
        }
    ]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://h:8000", "http://h:8000/v1/chat/completions"),
        ("http://h:8000/v1/", "http://h:8000/v1/chat/completions"),
        ("https://h/openai/v1", "https://h/openai/v1/chat/completions"),
        ("https://h/v1/chat/completions?x=1", "https://h/v1/chat/completions?x=1"),
    ],
)
def test_addresses_are_completed(url: str, wanted: str) -> None:
    """The address ends in /v1, as in servers' documentation; a bare host gets it added."""
    assert chat_url(url) == wanted


def test_tool_calls_are_rendered_like_references() -> None:
    """One scorer can compare both: `Message.text`, with arguments as JSON values."""
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    reply = read_reply(completion({"content": None, "tool_calls": [call]}).decode(), 0.0)
    wanted = Message("assistant", "", ({"function": {"name": "f", "arguments": {"a": 1}}},))
    assert reply.text == wanted.text == '[{"arguments": {"a": 1}, "name": "f"}]'
    assert to_wire(wanted)["tool_calls"] == [{**call, "id": "call_0"}]


def test_truncated_and_uncounted_answers_are_read() -> None:
    """Missing figures are None; an unpaired surrogate, which no file can contain, is replaced."""
    cut = read_reply(completion({"content": "a\ud800"}, finish_reason="length", usage=None, model=None).decode(), 0.0)
    assert (cut.text, cut.tokens, cut.finished, cut.model) == ("a?", None, False, None)
    parts = read_reply(completion({"content": [{"type": "text", "text": "a"}, {"text": "b"}, 5]}).decode(), 0.0)
    assert parts.text == "ab"


def events(*found: dict[str, Any] | str) -> list[bytes]:
    """Return server-sent events."""
    return [f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode() for one in found]


def piece(content: str | None = None, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """Return one event with a piece of an answer."""
    return {"choices": [{"delta": {"content": content, **delta}, "finish_reason": reason}]}


def test_a_stream_is_read() -> None:
    """The usage follows the last token."""
    usage = {"choices": [], "usage": {"completion_tokens": 2}, "model": "m-2"}
    sent = [b": ping\n\n", *events({"choices": [{"delta": {"role": "assistant"}}]}, piece("Hel"), piece("lo"))]
    sent += events(piece(None, "length"), usage, "[DONE]")
    with serving(always(sent, Content_Type="text/event-stream")) as (url, seen):
        reply = client(url).answer(HI, max_tokens=2, stream=True)
    assert (reply.text, reply.tokens, reply.finished, reply.model) == ("Hello", 2, False, "m-2")
    assert reply.first_seconds is not None
    assert 0 < reply.first_seconds < reply.seconds
    assert seen[0]["body"]["stream_options"] == {"include_usage": True}


def test_a_stream_gives_the_time_to_the_first_token(monkeypatch: Any) -> None:
    """The role alone is not a token. In this test, one line arrives per second."""
    now = [10.0]

    def lines() -> Iterator[str]:
        sent = events({"choices": [{"delta": {"role": "assistant"}}]}, piece("Hel"), piece("lo"), "[DONE]")
        for one in (": ping", *(line.decode().strip() for line in sent)):
            now[0] += 1
            yield one

    monkeypatch.setattr("finetune.score.replies.time", SimpleNamespace(perf_counter=lambda: now[0]))
    reply = read_stream(lines(), 10.0)
    assert (reply.text, reply.first_seconds, reply.seconds) == ("Hello", 3.0, 5.0)


def test_streamed_tool_calls_are_assembled() -> None:
    """Their arguments arrive in pieces, for several calls by index."""
    deltas = [
        [{"index": 0, "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}, {"index": 1, "function": {"name": "g"}}],
        [{"index": 0, "function": {"arguments": " 1}"}}],
    ]
    lines = [one.decode().strip() for one in events(*(piece(tool_calls=delta) for delta in deltas), "[DONE]")]
    reply = read_stream(iter(lines), 0.0)
    assert json.loads(reply.text) == [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]


def test_a_server_without_streaming_is_read() -> None:
    """It answers with one JSON object, and without a time to the first token."""
    with serving(always(completion({"content": "Hello"}), Content_Type="application/json")) as (url, _):
        reply = client(url).answer(HI, max_tokens=2, stream=True)
    assert (reply.text, reply.first_seconds) == ("Hello", None)


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (
            always(b'{"error": {"message": "no\\nmodel"}}', 404),
            "answered 404 (no model); fix url (it usually ends in ",
        ),
        (always(b'{"error": "too long"}', 400), "answered 400 (too long); fix what its message reports"),
        (always(b"<h1>\x00oops</h1>", 500), "answered 500 (<h1> oops</h1>); check the server log"),
        (always(b"", 302, Location="http://127.0.0.1:1/"), "answered 302; fix what its message reports"),
        (always(b"{"), "did not return a chat completion: it is broken JSON: '{'; is it OpenAI-compatible?"),
        (
            always(b"[" * 100_000),
            f"did not return a chat completion: it is broken JSON: '{'[' * 80}'; is it OpenAI-compatible?",
        ),
        (always(b"5"), "did not return a chat completion: it is not a JSON object; is it OpenAI-compatible?"),
        (always(b'{"choices": []}'), "did not return a chat completion: it has no choices; is it OpenAI-compatible?"),
        (
            always(b'{"choices": [{}]}'),
            "did not return a chat completion: its choice has no message; is it OpenAI-compatible?",
        ),
        (
            always(b'{"error": "busy"}'),
            "did not return a chat completion: it is an error: busy; is it OpenAI-compatible?",
        ),
    ],
)
def test_errors_of_a_server_are_reported(respond: Respond, message: str) -> None:
    """The error has problem, location and remedy; its kind is a machine error, not an internal one."""
    with serving(respond) as (url, seen), pytest.raises(ServerError) as caught:
        client(url).answer(HI, max_tokens=2)
    assert isinstance(caught.value, MachineError)
    assert caught.value.reached
    assert str(caught.value).startswith(f"params.yaml: evaluate.candidate: the server {message}")
    assert len(seen) == 1  # only requests that came too early are repeated


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (events(piece("Hel")), "its stream ended early"),
        (events(piece("Hel"), {"error": {"message": "out of memory"}}), "it is an error: out of memory"),
        (events(piece("Hel"), "{"), "it is broken JSON"),
    ],
)
def test_a_broken_stream_is_an_error(sent: list[bytes], message: str) -> None:
    """A partial answer would be scored as if the model had chosen to end there."""
    respond = always(sent, Content_Type="text/event-stream")
    with serving(respond) as (url, _), pytest.raises(ServerError, match=message):
        client(url).answer(HI, max_tokens=2, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_trickling_stream_times_out(stream: bool) -> None:
    """Occasional bytes keep a connection open, but the complete answer has a time limit."""
    sent = [b"data: {}\n" if stream else b" "] * 6000
    with serving(always(sent, Content_Type="text/event-stream")) as (url, _):
        started = time.perf_counter()
        with pytest.raises(ServerError, match=r"did not answer within 0\.3 s; raise timeout_seconds"):
            client(url, timeout=0.3).answer(HI, max_tokens=2, stream=stream)
        assert time.perf_counter() - started < 60


def test_a_silent_server_times_out() -> None:
    """The server sends no byte."""

    def sleeps(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(1)
        return 200, {}, b""

    with serving(sleeps) as (url, _), pytest.raises(ServerError, match=r"did not answer within 0\.2 s"):
        client(url, timeout=0.2).answer(HI, max_tokens=2)


def test_an_unreachable_server_is_an_error() -> None:
    """Cases: connection refused, and an invalid address."""
    with serving(always(b"")) as (url, _):
        pass
    with pytest.raises(
        ServerError, match=r"can't be reached \(.*refused.*\); start the server, or fix the url"
    ) as no_one:
        client(url).answer(HI, max_tokens=2)
    assert not no_one.value.reached
    with pytest.raises(ServerError, match=r"is not a usable address|can't be reached"):
        client("http://a..b:8/v1").answer(HI, max_tokens=2)


def test_a_busy_server_gets_the_request_again(monkeypatch: Any) -> None:
    """Requests are repeated after 429 and 503, after the requested wait (within bounds), but not endlessly."""
    waits: list[float] = []
    monkeypatch.setattr("finetune.score.server.time.sleep", waits.append)
    left = [(503, {"Retry-After": "7"}, b""), (429, {"Retry-After": "99999"}, b""), (429, {}, b"")]

    def busy(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return left.pop(0) if left else (200, {}, completion({"content": "Hello"}))

    with serving(busy) as (url, seen):
        assert client(url).answer(HI, max_tokens=2).text == "Hello"
    assert (waits, len(seen)) == ([7.0, 30.0, 8.0], 4)
    with (
        serving(always(b"", 429)) as (url, seen),
        pytest.raises(ServerError, match="answered 429; the server is still busy"),
    ):
        client(url).answer(HI, max_tokens=2)
    assert len(seen) == 4


def test_the_key_is_sent_and_never_shown(monkeypatch: Any, caplog: Any) -> None:
    """This holds even if the server's own message repeats the key, and for logs."""
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    caplog.set_level("DEBUG")
    refuse = always(json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), 401)
    with serving(refuse) as (url, seen), pytest.raises(ServerError) as caught:
        client(f"{url}?version=1", variable="MY_KEY").answer(HI, max_tokens=2)
    assert seen[0]["authorization"] == f"Bearer {KEY}"
    assert "bad key ***" in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text


def test_a_password_in_the_address_is_refused() -> None:
    """It would be in params.yaml, in git and in every log of the address."""
    with pytest.raises(ConfigError, match=r"evaluate\.candidate\.url: contains a user or password") as caught:
        client("http://user:hunter2@localhost/v1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "  ", "sk-\u00e9\u2026"])
def test_an_invalid_key_is_reported_before_the_run(value: str | None, monkeypatch: Any) -> None:
    """The error has the variable's name, but never its content."""
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match=r"evaluate\.candidate\.api_key_variable: .*MY_KEY") as caught:
        client("http://localhost:1/v1", variable="MY_KEY")
    assert "sk-" not in str(caught.value)


@given(st.text(max_size=80) | st.text(alphabet='{}[]":,choices0 ', max_size=80))
def test_no_reply_causes_an_internal_error(content: str) -> None:
    """Any reply is an answer or a ValueError, which the client reports as the server's error."""
    for read in (lambda: read_reply(content, 0.0), lambda: read_stream(iter([f"data: {content}"]), 0.0)):
        try:
            read()
        except ValueError:
            continue
