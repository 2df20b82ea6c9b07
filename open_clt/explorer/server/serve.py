"""Serving: the explorer listens on an address of this computer until a signal ends it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from werkzeug.serving import BaseWSGIServer, make_server

from open_clt.errors import ConfigError
from open_clt.explorer.server.app import make_app
from open_clt.explorer.server.later import LaterExplorer
from open_clt.web_checks import take_address

if TYPE_CHECKING:
    from open_clt.explorer.explorer import Explorer

PORT = 8041
"""Default port, which is also that of circuit-tracer's viewer."""
_LONGEST_WAIT = 1.0
"""Seconds that a server which ends waits for a thread; a thread that imports a library does not end sooner."""


@final
@dataclass(frozen=True)
class Served:
    """A server that listens, and its explorer."""

    server: BaseWSGIServer
    explorer: Explorer | LaterExplorer

    @property
    def url(self) -> str:
        """Address of the first page."""
        host = self.server.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server.port}/"

    def run(self) -> None:
        """Answer requests until ``stop`` or a signal ends it."""
        try:
            self.server.serve_forever()
        finally:
            self.server.server_close()
            self.explorer.close(_LONGEST_WAIT)

    def stop(self) -> None:
        """End ``run``, from another thread."""
        self.server.shutdown()


def listen(
    explorer: Explorer | LaterExplorer,
    host: str = "127.0.0.1",
    port: int = PORT,
    allowed: Collection[str] = (),
    *,
    taken: socket.socket | None = None,
) -> Served:
    """Listen on an address, which ``take_address`` may have taken; raises its errors."""
    app = make_app(explorer, (host, *allowed))
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request would hide what matters
    try:
        with taken or take_address(host, port) as address:  # the server has a copy of its own
            return Served(make_server(host, port, app.server, threaded=True, fd=address.fileno()), explorer)
    except ConfigError:
        explorer.close()
        raise


def in_background(served: Served) -> Callable[[], None]:
    """Answer requests in a thread of its own; returns the function that ends it."""
    thread = threading.Thread(target=served.run, name="explorer server", daemon=True)
    thread.start()

    def stop() -> None:
        served.stop()
        thread.join()

    return stop
