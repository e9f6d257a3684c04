"""A local chat server with configurable answers, and a client of it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finetune.score.server import ChatServer

Respond = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes | list[bytes]]]


@contextmanager
def serving(respond: Respond) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a server that answers by `respond` (status, headers, body or pieces); yield its URL and its requests."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "authorization": self.headers.get("Authorization"), "body": body})
            status, headers, content = respond(body)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in content if isinstance(content, list) else [content]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    if isinstance(content, list):
                        time.sleep(0.05)
            except OSError:
                pass  # the client has disconnected

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def completion(message: dict[str, Any], **fields: Any) -> bytes:
    """Return a chat completion with one message."""
    choice = {"message": message, "finish_reason": fields.pop("finish_reason", "stop")}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 2}, "model": "m-1", **fields}).encode()


def always(content: bytes | list[bytes], status: int = 200, **headers: str) -> Respond:
    """Return the same answer to every request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: (status, named, content)


def client(url: str, timeout: float = 60.0, variable: str | None = None) -> ChatServer:
    """Return a client of the server at `url`."""
    return ChatServer(url, "m", variable, timeout, "evaluate.candidate")
