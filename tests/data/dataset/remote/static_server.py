"""A server of static files on loopback, in this process or in another one, that answers Range requests.

    with serving(folder) as server:
        read(f"{server.address}dataset", 16)

``server.answer`` changes an answer: it gets the path and the headers that would be sent, and returns what is sent.
``python tests/data/dataset/remote/static_server.py FOLDER PORT`` serves until it is killed, and prints its port.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Answer:
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    content: bytes


@dataclass
class StaticServer:
    """The folder that is served, and what was asked for."""

    folder: Path
    port: int = 0
    change: Callable[[str, Answer], Answer] = field(default=lambda path, answer: answer)
    requests: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """The path and the value of Range of each request."""
    tokens: set[str] = field(default_factory=set[str])
    """The values of Authorization."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def asked(self, name: str) -> int:
        """How often a file was asked for."""
        return sum(path.endswith(name) for path, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    served: StaticServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is sent in two parts, and the second one would wait

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.served.requests.append((self.path, asked))
        self.served.tokens.add(self.headers.get("Authorization", ""))
        answer = self.served.change(self.path, file_answer(self.served.folder / self.path.lstrip("/"), asked))
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)
        if int(answer.headers.get("Content-Length", len(answer.content))) > len(answer.content):
            self.close_connection = True  # as if the server was killed in the middle of an answer


def file_answer(path: Path, asked: str) -> Answer:
    """A file, or the part of it that a header Range asks for."""
    if not path.is_file():
        return Answer(404, {}, b"")
    content = path.read_bytes()
    span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
    if span is None:
        return Answer(200, {}, content)
    begin, end = int(span[1]), min(int(span[2]) + 1, len(content))
    if begin >= end:
        return Answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
    return Answer(206, {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}, content[begin:end])


def make_server(served: StaticServer) -> ThreadingHTTPServer:
    """The server of a folder, which takes the port that is given, or any free one."""
    server = ThreadingHTTPServer(("127.0.0.1", served.port), type("Handler", (_Handler,), {"served": served}))
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # a reader that hangs up is not an error
    served.port = server.server_port
    return server


@contextmanager
def serving(folder: Path) -> Generator[StaticServer]:
    """Serve a folder in this process."""
    served = StaticServer(folder)
    server = make_server(served)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # seconds until a stop is seen
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    process = StaticServer(Path(sys.argv[1]), int(sys.argv[2]))
    endless = make_server(process)
    print(process.port, flush=True)
    endless.serve_forever()
