"""An endpoint that answers chats with a language model, by OpenAI's protocol: a local server or a service.

The key of a service is read from an environment variable when a request is sent. It is never stored, shown or logged,
and a server that redirects is refused, so the key reaches the given address only.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import sleep as wait
from typing import Any, final
from urllib.parse import urlsplit

from open_clt import files
from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError, ServiceError, short_value
from open_clt.web_checks import is_address

_LONGEST_ANSWER = 4 * 2**20
_LONGEST_PAUSE = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRIED_AGAIN = (408, 429, 500, 502, 503, 504, 529)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the answer 3xx becomes an error."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Endpoint(CheckedConfig):
    """A language model behind an OpenAI-compatible endpoint."""

    url: str
    """Address without the path of the request, such as ``http://127.0.0.1:8000/v1``."""
    model: str
    """Name of the model, as the endpoint knows it."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without it, requests have no key."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    tries: int = 4
    """Number of times that a request is sent if the endpoint is busy or does not answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_address(self.url):
            raise ConfigError(
                f"The endpoint is {short_value(self.url)}; give an address such as http://127.0.0.1:8000/v1, without a "
                "name or a key in it."
            )
        if self.timeout <= 0 or self.tries < 1:
            raise ConfigError(f"timeout is {self.timeout} and tries is {self.tries}; they must be positive.")

    def answer(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int = 1000) -> str:
        """The model's answer to a chat, whose messages have the keys ``role`` and ``content``.

        Raises ServiceError if the endpoint refuses the request, or still does not answer after the last try.
        """
        body = json.dumps(
            {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        ).encode()
        failure: _TryAgain | None = None
        for attempt in range(self.tries):
            if failure is not None:
                wait(min(_LONGEST_PAUSE, failure.wait or 2.0**attempt))
            try:
                return self._content(self._send(body))
            except _TryAgain as error:
                failure = error
        assert failure is not None
        raise ServiceError(f"{failure} (tried {self.tries} times)")

    def check(self) -> None:
        """Ask for one short answer; raise ServiceError if the address, the key or the name of the model is wrong."""
        replace(self, tries=min(self.tries, 2)).answer([{"role": "user", "content": "Answer with the word ready."}])

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key.strip()}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        handlers: list[Any] = [_NoRedirect()]
        if urlsplit(self.url).hostname in _LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                return answer.read(_LONGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, has_key=bool(key)) from None  # the request, with its key, stays out of the error
        except ValueError:
            problem = f"The key in {self.key_variable} is not one line of ASCII, so it cannot be sent."
            raise ServiceError(problem) from None  # the original error shows the key
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _TryAgain(f"The endpoint {self.url} does not answer ({reason or type(error).__name__})") from error

    def _refusal(self, error: urllib.error.HTTPError, *, has_key: bool) -> ServiceError:
        """The error for an answer that is not a success."""
        with error:
            said = f"The endpoint {self.url} answers {error.code} for the model {self.model!r}"
            if error.code in _TRIED_AGAIN:
                return _TryAgain(said, _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            state = "holds a key that it refuses" if has_key else "is not set"
            return ServiceError(f"{said}; the environment variable {self.key_variable} {state}.")
        return ServiceError(f"{said}; check the address and the name of the model.")

    def _content(self, answer: bytes) -> str:
        """The text of an answer."""
        try:
            content = files.parse_json(answer)["choices"][0]["message"]["content"]
            if len(answer) > _LONGEST_ANSWER or not isinstance(content, str):
                raise TypeError
        except (*files.WRONG_VALUES, RecursionError):
            raise _TryAgain(f"The endpoint {self.url} answers something that is not a completion of a chat") from None
        return content


class _TryAgain(ServiceError):
    """A failure that may pass, and the seconds to wait if the endpoint says so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def _seconds(header: str | None) -> float | None:
    """The seconds of a header Retry-After; None for a date or nothing."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return None
