"""Serving: the explorer listens on an address of this computer until a signal ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import final

from werkzeug.serving import BaseWSGIServer, make_server

from open_clt.errors import ConfigError
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.server.app import make_app

PORT = 8041
"""Default port, which is also that of circuit-tracer's viewer."""


@final
@dataclass(frozen=True)
class Served:
    """A server that listens, and its explorer."""

    server: BaseWSGIServer
    explorer: Explorer

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
            self.explorer.close()

    def stop(self) -> None:
        """End ``run``, from another thread."""
        self.server.shutdown()


def listen(explorer: Explorer, host: str = "127.0.0.1", port: int = PORT, allowed: Collection[str] = ()) -> Served:
    """Listen on an address; port 0 takes a free one. Raises ConfigError if the address cannot be used."""
    app = make_app(explorer, (host, *allowed))
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request would hide what matters
    try:
        return Served(make_server(host, port, app.server, threaded=True), explorer)
    except (OSError, SystemExit) as error:
        explorer.close()
        raise ConfigError(
            f"The address {host}:{port} cannot be used ({error}); another program may use it. Choose another --port."
        ) from error


def in_background(served: Served) -> Callable[[], None]:
    """Answer requests in a thread of its own; returns the function that ends it."""
    thread = threading.Thread(target=served.run, name="explorer server", daemon=True)
    thread.start()

    def stop() -> None:
        served.stop()
        thread.join()

    return stop
