"""Access: the bearer tokens that a server asks for, and who may read and write with them.

Tokens stand in files, one on each line, so that neither the command line nor the list of processes shows them.
Writing always needs a token, and is off without a file of tokens. Reading needs one if there is a file for it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.data.server.refusal import Refusal
from open_clt.errors import ConfigError
from open_clt.web_checks import SAFE_METHODS, TOKEN, token_of_environment

SHORTEST_TOKEN = 16
"""Smallest number of characters of a token."""
_CHALLENGE: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="open-clt"'}
_OPEN = ("/", "/health", "/openapi.json")
"""Addresses that show no data, which need no token."""


@final
class Access:
    """The tokens of a server."""

    def __init__(self, writing: Iterable[bytes] = (), reading: Iterable[bytes] | None = None) -> None:
        """Tokens of ``writing`` allow to write and to read; without any, writing is off.

        Tokens of ``reading`` allow to read; if there are none at all (None), reading needs no token.
        """
        self.writing = tuple(writing)
        self.reading = None if reading is None else tuple(reading)

    def check(self, method: str, path: str, header: str | None) -> None:
        """Refuse a request whose header ``Authorization`` does not allow its method."""
        is_reading = method in SAFE_METHODS
        if is_reading and (self.reading is None or path in _OPEN):
            return
        if not is_reading and not self.writing:
            raise Refusal(403, "This server only reads; start it with --token-file FILE to allow uploads.")
        if header is None:
            raise Refusal(401, "This request needs a token: the header Authorization: Bearer TOKEN.", _CHALLENGE)
        kind, _, token = header.partition(" ")
        given = token.strip().encode(errors="replace") if kind.lower() == "bearer" else b""
        may_write = _is_one_of(given, self.writing)
        may_read = _is_one_of(given, self.reading or ())
        if not (may_write or may_read):
            raise Refusal(401, "The server does not know this token; check OPEN_CLT_TOKEN or --token-file.", _CHALLENGE)
        if not is_reading and not may_write:
            raise Refusal(403, "This token allows to read only; uploads need a token of the server's --token-file.")

    def __repr__(self) -> str:
        """The numbers of tokens, never a token."""
        return f"Access({len(self.writing)} tokens for writing, {len(self.reading or ())} for reading)"


def _is_one_of(given: bytes, tokens: Iterable[bytes]) -> bool:
    """Whether a token is known; the time that this takes says nothing about the tokens."""
    return bool(sum([hmac.compare_digest(given, token) for token in tokens]))


def own_token(path: Path | None) -> str | None:
    """The token that a client sends: the first one of a file or, without a file, that of ``OPEN_CLT_TOKEN``.

    Raises ConfigError, which does not show the token, if it is not legal.
    """
    return token_of_environment() if path is None else read_tokens(path)[0].decode()


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """The tokens of a file, one on each line; raises ConfigError, which never shows one, if a line is not a token."""
    lines = files.read_bytes(path, "text", limit=files.LARGEST_SETTINGS).splitlines()
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens:
        raise ConfigError(f"{path} is empty; write a token of at least {SHORTEST_TOKEN} characters into it.")
    for token in tokens:
        if len(token) < SHORTEST_TOKEN or not TOKEN.fullmatch(token):
            raise ConfigError(
                f"A line of {path} is not a token: {SHORTEST_TOKEN} or more letters, digits and signs of ASCII without "
                "spaces, such as `openssl rand -hex 32` makes them."
            )
    return tokens
