"""An explorer that is made in a thread: the first page does not wait for it, requests for data do."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

from open_clt.errors import ConfigError
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.server.app import make_app
from open_clt.explorer.server.later import LaterExplorer, getter
from tests.refusals import refuses


def test_the_first_page_does_not_wait_for_the_explorer_and_its_status_does() -> None:
    is_wanted = threading.Event()
    closed: list[float | None] = []
    made: Any = SimpleNamespace(status=lambda: {"ready": True}, close=closed.append)

    def make() -> Explorer:
        assert is_wanted.wait(60)
        return cast(Explorer, made)

    later = LaterExplorer(make)
    client = make_app(later).server.test_client()
    assert client.get("/").status_code == 200
    is_wanted.set()
    assert client.get("/api/status").get_json() == {"ready": True}
    later.close(1.0)
    assert closed == [1.0]


def test_an_explorer_that_cannot_be_made_is_a_sentence() -> None:
    def make() -> Explorer:
        raise ConfigError("The cache cannot be written.")

    later = LaterExplorer(make)
    with refuses(ConfigError, "cache"):
        later()
    client = make_app(later).server.test_client()
    assert client.get("/api/status").get_json()["failed"] == "The cache cannot be written."
    assert client.get("/api/feature/0/0").get_json() == {"error": "The cache cannot be written."}
    later.close()


def test_an_explorer_that_is_there_is_returned() -> None:
    made: Any = SimpleNamespace()
    assert getter(made)() is made


def test_the_server_imports_no_large_library() -> None:
    code = "import sys, open_clt.explorer.server.serve; print(*{'torch', 'matplotlib', 'scipy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
