"""The guard of the server: every request is checked before it is read, and logged after it is answered.

It checks host and origin (``web_checks``), the path, and the token (``access``), in this order. Every answer has the
headers of security, and every error is JSON: ``{"error": sentence}``. The log has one line of JSON for each request,
without headers and without the query, so a token never reaches it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_clt.data.server.access import Access
from open_clt.data.server.refusal import Refusal
from open_clt.web_checks import SECURITY_HEADERS, content_policy, is_plain_path, refusal

logger = logging.getLogger(__name__)

_LONGEST_PATH = 300
"""Largest number of characters of a path in the log."""
_CLIENT_LEFT = 499
"""Status in the log if the client went away before it had an answer."""
_POLICY = content_policy()
_UNEXPECTED = "The server met an error that it did not expect; its log says more."


@final
class Guard:
    """An application behind its checks."""

    def __init__(self, app: ASGIApp, allowed: Collection[str], access: Access, log: Callable[[str], None]) -> None:
        """``allowed`` are the hosts that are answered beside this computer's names; ``log`` takes lines without end."""
        self.app = app
        self._allowed, self._access, self._log = tuple(allowed), access, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, let the application answer it, and log it."""
        assert scope["type"] == "http", "the server neither has a lifespan nor websockets"
        answer = _Answer(scope, send)
        started = time.perf_counter()
        try:
            self._check(scope)
            await self.app(scope, receive, answer.send)
        except Refusal as refused:
            await answer.refuse(refused)
        except Exception:  # (the server goes on; the log has the traceback)
            logger.exception("A request failed.")
            if answer.status:  # the client sees that the answer is too short
                raise
            await answer.refuse(Refusal(500, _UNEXPECTED))
        finally:
            self._log(_line(scope, answer, time.perf_counter() - started))

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        problem = refusal(scope["method"], headers.get("host", ""), headers.get("origin"), self._allowed)
        if problem:
            raise Refusal(403, problem)
        if not is_plain_path(scope["path"]):
            raise Refusal(404, "The server does not have this address.")
        self._access.check(scope["method"], scope["path"], headers.get("authorization"))


@final
class _Answer:
    """An answer on its way: it gets the headers of security, and an error becomes a sentence in JSON."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self.status = 0
        self.sent = 0
        self._is_replaced = False

    async def send(self, message: Message) -> None:
        """Send a part of the application's answer."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if message["status"] >= 400 and not headers.get("content-type", "").startswith("application/json"):
                kept = {name: headers[name] for name in ("allow", "content-range") if name in headers}
                self._is_replaced = True
                await self._start(Refusal(message["status"], _sentence(message["status"]), kept))
                return
            for name, value in {**SECURITY_HEADERS, "Content-Security-Policy": _POLICY}.items():
                headers.setdefault(name, value)
            self.status = message["status"]
        elif self._is_replaced:
            return
        self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, refused: Refusal) -> None:
        """Answer a request that is refused."""
        self._is_replaced = False
        await self._start(refused)

    async def _start(self, refused: Refusal) -> None:
        body = json.dumps({"error": refused.sentence}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
        raw: list[Any] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        replaced, self._is_replaced = self._is_replaced, False
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body if self._scope["method"] != "HEAD" else b""})
        self._is_replaced = replaced


def _sentence(status: int) -> str:
    match status:
        case 404:
            return "The server does not have this address."
        case 416:
            return "The file does not have the bytes of this range."
        case 400:
            return "The header Range is not of the form bytes=BEGIN-END."
        case 500:
            return _UNEXPECTED
        case _:
            return f"The request is refused: {HTTPStatus(status).phrase}."


def _line(scope: Scope, answer: _Answer, seconds: float) -> str:
    client = scope.get("client")
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],
        "status": answer.status or _CLIENT_LEFT,
        "bytes": answer.sent,
        "ms": round(1000 * seconds, 1),
    }
    return json.dumps(entry)
