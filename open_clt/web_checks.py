"""Checks of requests to a server on this computer, and the address that it takes, for every server of OpenCLT.

A server listens on the loopback interface, so other computers cannot reach it. Pages of other sites, which the same
browser shows, still can: by the address, or by a name of their own that they let point to the loopback address. So a
request is answered only if its ``Host`` is this computer's or one that the user allows, and a request that changes
something only if the page that sends it came from the same host.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from open_clt.errors import ConfigError

TOKEN_VARIABLE = "OPEN_CLT_TOKEN"
"""Environment variable that holds the token that clients send to a server of datasets."""
TOKEN = re.compile(rb"[!-~]+")
"""A token: letters, digits and signs of ASCII without spaces."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer: other sites can neither show a page in a frame nor read its files."""


def token_of_environment() -> str | None:
    """The token that a client sends, or None without one; an illegal one raises ConfigError, which does not show it."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if token and not TOKEN.fullmatch(token.encode(errors="replace")):
        raise ConfigError(f"The environment variable {TOKEN_VARIABLE} does not hold a token: signs of ASCII only.")
    return token or None


def content_policy(script_hashes: Iterable[str] = ()) -> str:
    """The Content-Security-Policy of pages: everything comes from their own server, and no other site frames them.

    ``script_hashes`` are those of the scripts inside a page. Styles may stand in the page, because figures set them;
    pictures may also be data that a script has made.
    """
    parts = {
        "default-src": "'none'",
        "script-src": " ".join(("'self'", *script_hashes)),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def is_plain_path(path: str) -> bool:
    """Whether a decoded path names a place below the root in the one plain way: no ``..`` and no empty parts."""
    parts = path.removeprefix("/").removesuffix("/").split("/")
    return path == "/" or all(part not in ("", ".", "..") and "\\" not in part and min(part) >= " " for part in parts)


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this computer, and cannot mean another one."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name or address in a ``Host`` header or an origin, without its port and in lower case; "" if it has none."""
    try:
        return (urlsplit(header if "//" in header else f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def is_allowed(host: str, allowed: Iterable[str]) -> bool:
    """Whether a server answers requests for a host: this computer's names, and those that the user allows."""
    return is_loopback(host) or host in {name.lower().strip("[]") for name in allowed}


def refusal(method: str, host: str, origin: str | None, allowed: Iterable[str]) -> str:
    """Why a request is refused, as a sentence; "" if it is allowed.

    ``host`` and ``origin`` are headers. A request that changes something comes from a page of the same host and port,
    or from a program, which sends no origin.
    """
    if not is_allowed(host_of(host), allowed):
        return "This server does not answer requests for other hosts; start it with --allow-host NAME to allow one."
    if method in SAFE_METHODS or origin is None:
        return ""
    try:
        is_own = urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # such as an address that lacks a bracket
        is_own = False
    return "" if is_own else "This server does not take requests from pages of other sites."


def is_address(url: str) -> bool:
    """Whether a text is an address on the web, without a name or a key in it."""
    try:
        parts = urlsplit(url)
        more = parts.username or parts.query or parts.fragment
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not more and (parts.port or 1) > 0
    except ValueError:
        return False


def take_address(host: str, port: int) -> socket.socket:
    """Take an address, where requests wait until ``listen`` answers them; port 0 takes a free one.

    Raises ConfigError if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not host:
            raise OSError("it is empty")  # the system would listen on all addresses
        taken = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(f"Port {port} of {host} cannot be used ({reason}); choose another --port.") from error
        raise ConfigError(
            f"The server cannot listen on the host {host!r} ({reason}); --host is an address of this computer."
        ) from error
    # Connections inherit this. Without it, an answer in two parts waits 40 ms for the client to confirm the first.
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return taken
