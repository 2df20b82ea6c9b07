"""Serving datasets: the server listens until a signal ends it, and finishes the answers that it has begun."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import final

import uvicorn
from starlette.types import ASGIApp

from open_clt.interrupts import NAMES

_LONGEST_END = 30
"""Seconds for which a server that ends finishes answers."""
_IDLE = 75
"""Seconds for which a connection without a request stays open."""


@final
class Server(uvicorn.Server):
    """A server whose signals end it as they end every command: the first after the answers, the next at once."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Note signals while the server runs, and raise the first one again after its end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        received: list[int] = []

        def end(number: int, frame: FrameType | None) -> None:
            self.force_exit = bool(received)
            self.should_exit = True
            received.append(number)

        handled = [number for number in NAMES if signal.getsignal(number) is not signal.SIG_IGN]
        former = {number: signal.signal(number, end) for number in handled}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        for number in received[:1]:
            signal.raise_signal(number)


def serve(app: ASGIApp, taken: socket.socket) -> None:
    """Answer requests at an address that ``web_checks.take_address`` has taken, until a signal ends the server."""
    _server(app).run([taken])


@contextmanager
def in_background(app: ASGIApp, taken: socket.socket) -> Generator[None]:
    """Answer requests in a thread during the block."""
    server = _server(app)
    thread = threading.Thread(target=server.run, args=([taken],), name="server of datasets", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _server(app: ASGIApp) -> Server:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a stranger who does not speak HTTP is not in the log
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_LONGEST_END,
    )
    return Server(config)


def url_of(taken: socket.socket) -> str:
    """The address of a server's page."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
