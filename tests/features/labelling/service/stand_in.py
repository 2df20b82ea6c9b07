"""A stand-in for an OpenAI-compatible endpoint: a server on loopback that answers chats as a test says.

with answering(lambda messages: "[EXPLANATION]: cats") as service:
    Endpoint(url=service.url, model="any")
service.requests    the bodies that were sent, and service.keys the keys
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Raw(NamedTuple):
    """An answer that is not a completion."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    """Time to wait before the answer."""


Answer = Callable[[list[dict[str, str]]], "str | Raw"]


@dataclass
class Service:
    """The address of the stand-in, and what was asked of it."""

    answer: Answer
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str | None] = field(default_factory=list["str | None"])
    paths: list[str] = field(default_factory=list[str])


@contextmanager
def answering(answer: Answer) -> Iterator[Service]:
    """Serve an endpoint whose answers a function makes from the messages of a chat."""
    service = Service(answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.service.paths.append(self.path)
        self.service.requests.append(content)
        self.service.keys.append(self.headers.get("Authorization"))
        answer = self.service.answer(content["messages"])
        if isinstance(answer, str):
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
            answer = Raw(body=body)
        time.sleep(answer.seconds)
        try:
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
        except OSError:  # the client no longer waits
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass
