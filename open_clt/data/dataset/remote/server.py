"""A server of files: small files are fetched whole, and large ones in ranges, several at a time.

Any server works that answers requests for parts of files (HTTP Range). A failure that may pass, such as a server that
is restarted, is answered by asking again, for the bytes that are still missing, at longer and longer intervals. The
token of the environment variable ``OPEN_CLT_TOKEN`` is sent as a bearer token to the given address only: redirects are
refused.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import NamedTuple, final
from urllib.parse import quote, urlsplit

import httpx

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError, ServiceError, short_value
from open_clt.web_checks import TOKEN_VARIABLE, is_address, is_loopback, token_of_environment

PATIENCE = 60.0
"""Seconds after its last byte for which a server that does not answer is asked again."""
FIRST_PATIENCE = 3.0
"""The same for the first request, where the address may be wrong."""
RANGE = 2**23
"""Number of bytes that are asked for at once."""
_REQUESTS = 4
"""Number of requests at the same time."""
_PAUSES = (0.1, 5.0)
"""Seconds between two tries: at first, and at most."""
_TIMEOUT = httpx.Timeout(20.0, connect=5.0)
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
"""States of an answer after which the same request may succeed."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")

IsStopped = Callable[[], bool]
"""Whether the caller no longer needs a file."""
Write = Callable[[int, bytes], None]
"""Writes bytes at a position of a file."""


def never() -> bool:
    """The files are needed until they are fetched."""
    return False


class _MayPass(Exception):
    """A failure after which the same request may succeed, in words."""


class _Part(NamedTuple):
    """What a server says of the part of a file that it sends: its first byte, and the bytes of the whole file."""

    begin: int
    size: int


@final
class FileServer:
    """The files of one folder on a server."""

    def __init__(self, address: str) -> None:
        """Raises ConfigError for an address or a token that cannot be used; nothing is sent yet."""
        _check_address(address)
        self.address = address.rstrip("/") + "/"
        self._client = httpx.Client(
            headers={"Accept-Encoding": "identity", **_authorization()},
            timeout=_TIMEOUT,
            trust_env=not is_loopback(urlsplit(address).hostname or ""),  # no proxy stands before this computer
            limits=httpx.Limits(max_connections=2 * _REQUESTS),
        )
        weakref.finalize(self, self._client.close)

    def content(self, name: str, limit: int, *, patience: float | None = None, is_stopped: IsStopped = never) -> bytes:
        """Fetch a small file; raises CheckpointError if it has more than ``limit`` bytes, else as ``download``."""
        tries = _Tries(self.address, patience, is_stopped)
        while True:
            with tries.again(), self._answer(name, {}) as answer:
                content = b""
                for chunk in answer.iter_raw():
                    tries.proceed()
                    content += chunk
                    if len(content) > limit:
                        raise files.too_large(f"{self.address}{name}", limit)
                return content

    def size(self, name: str, *, is_stopped: IsStopped = never) -> int:
        """The number of bytes of a file, which is not fetched; raises the errors of ``download``."""
        tries = _Tries(self.address, None, is_stopped)
        while True:
            with tries.again(), self._answer(name, {"Range": "bytes=0-0"}) as answer:
                return self._part(name, answer).size

    def download(self, name: str, size: int, write: Write, *, is_stopped: IsStopped = never) -> None:
        """Fetch a file of ``size`` bytes.

        Raises ServiceError if the server does not answer for ``PATIENCE`` seconds or refuses the request, and
        CancelledError soon after ``is_stopped`` returns True.
        """
        failed: list[BaseException] = []
        spans = [(begin, min(begin + RANGE, size)) for begin in range(0, size, RANGE)]

        def fetch(span: tuple[int, int]) -> None:
            try:
                self._fetch(name, span, write, lambda: bool(failed) or is_stopped())
            except BaseException as error:
                failed.append(error)  # the other requests end soon
                raise

        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="download") as pool:
            try:
                wait([pool.submit(fetch, span) for span in spans])
            except BaseException as error:  # an interruption ends the requests, too
                failed.append(error)
                raise
        if failed:
            raise failed[0]

    def _fetch(self, name: str, span: tuple[int, int], write: Write, is_stopped: IsStopped) -> None:
        """Fetch a part of a file, again from where a failure ended it."""
        begin, end = span
        tries = _Tries(self.address, None, is_stopped)
        while begin < end:
            with tries.again(), self._answer(name, {"Range": f"bytes={begin}-{end - 1}"}) as answer:
                if self._part(name, answer).begin != begin:
                    raise ServiceError(f"{self.address}{name} is answered with another part of the file; {_USE_RANGES}")
                for chunk in answer.iter_raw():
                    tries.proceed()
                    if len(chunk) > end - begin:
                        raise files.too_large(f"The answer for a part of {self.address}{name}", end - begin)
                    write(begin, chunk)
                    begin += len(chunk)
                if begin < end:
                    raise _MayPass("its answer ends early")

    def _part(self, name: str, answer: httpx.Response) -> _Part:
        """The part of a file that an answer holds; raises ServiceError if the answer does not say which it is."""
        stated = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code != 206 or stated is None:
            raise ServiceError(f"{self.address}{name} is not answered in parts; {_USE_RANGES}")
        return _Part(int(stated[1]), int(stated[3]))

    @contextmanager
    def _answer(self, name: str, headers: dict[str, str]) -> Generator[httpx.Response]:
        """Ask for a file; raises ServiceError, CheckpointError or a reason to try again unless it is sent."""
        try:
            with self._client.stream("GET", self.address + quote(name), headers=headers) as answer:
                self._check(name, answer)
                yield answer
        except httpx.HTTPError as error:
            raise _MayPass(" ".join(str(error).split())[:150] or type(error).__name__) from error
        except httpx.InvalidURL as error:
            raise ConfigError(f"The address {short_value(self.address)} cannot be used ({error}).") from error

    def _check(self, name: str, answer: httpx.Response) -> None:
        """Raise an error unless an answer brings a file as it is stored."""
        status, said = answer.status_code, f"{self.address} answers {answer.status_code} for {name}"
        if status in _MAY_PASS:
            raise _MayPass(f"it answers {status}")
        if answer.is_redirect:
            location = short_value(answer.headers.get("Location", ""))
            raise ServiceError(f"{said}, which leads to {location}; give the address of the dataset itself.")
        if status in (401, 403):
            state = "holds a token that it refuses" if token_of_environment() else "is not set"
            raise ServiceError(f"{said}; the environment variable {TOKEN_VARIABLE} {state}.")
        if status in (404, 410):
            raise CheckpointError(
                f"{self.address} has no {name}; check the address, or whether the dataset is complete."
            )
        if status == 416:
            raise CheckpointError(f"{self.address}{name} is shorter than the manifest says; harvest or copy it again.")
        if status not in (200, 206):
            raise ServiceError(f"{said}; check the address.")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ServiceError(f"{self.address}{name} is sent compressed; use a server that sends files as they are.")


_USE_RANGES = "use a server that answers requests for parts of files (HTTP Range), or copy the dataset."


@final
class _Tries:
    """The tries of one request: how long the server has not answered, and how long to wait before the next try."""

    def __init__(self, address: str, patience: float | None = None, is_stopped: IsStopped = never) -> None:
        self._address = address
        self._patience = PATIENCE if patience is None else patience
        self._is_stopped = is_stopped
        self._last_byte, self._pause = time.monotonic(), _PAUSES[0]

    def proceed(self) -> None:
        """Note that bytes have come; raises CancelledError if they are no longer needed."""
        self._last_byte, self._pause = time.monotonic(), _PAUSES[0]
        if self._is_stopped():
            raise CancelledError

    @contextmanager
    def again(self) -> Generator[None]:
        """Wait after a failure in the block that may pass; raises ServiceError if the server is silent for too long."""
        if self._is_stopped():
            raise CancelledError
        try:
            yield
        except _MayPass as reason:
            silent = time.monotonic() - self._last_byte
            if silent + self._pause > self._patience:
                raise ServiceError(
                    f"{self._address} does not answer ({reason}; asked again for {silent:.0f} s); check the address and"
                    " that the server runs, then run the same command again."
                ) from reason
            for _ in _slices(self._pause):
                if self._is_stopped():
                    raise CancelledError from reason
            self._pause = min(2 * self._pause, _PAUSES[1])


def _slices(seconds: float) -> Iterator[None]:
    """Wait, and yield several times a second meanwhile."""
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        yield
        time.sleep(min(rest, 0.1))


def _check_address(address: str) -> None:
    """Raise ConfigError unless an address names a folder on a server, without a name, a password or a query."""
    if not is_address(address) or not address.isprintable() or " " in address:
        raise ConfigError(
            f"The address of the dataset is {short_value(re.sub('//.*@', '//...@', address))}; give one such as "
            "http://127.0.0.1:8000/datasets/NAME, without a password or a query. A token is read from "
            f"{TOKEN_VARIABLE}."
        )


def _authorization() -> dict[str, str]:
    """The header that brings the token, if there is one."""
    token = token_of_environment()
    return {"Authorization": f"Bearer {token}"} if token else {}
