"""Reachability: whether an HTTP server answers, within seconds."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from http.client import HTTPException

HUB_TIMEOUT = 3.0
"""Seconds within which the hub must answer, including the time to resolve its name."""


def answers(address: str) -> bool:
    """Return whether an HTTP server answers within ``HUB_TIMEOUT``."""
    results: list[bool] = []
    # The request runs in a thread because no timeout limits the time to resolve a name.
    thread = threading.Thread(target=lambda: results.append(_ask(address)), daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    return any(results)


def _ask(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # such as "no such model" or "token required": the download reports which
    except urllib.error.URLError as error:
        # The server does answer; huggingface_hub may trust its certificate although urllib does not.
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError, HTTPException):  # HTTPException: such as a proxy whose port is not a number
        return False
