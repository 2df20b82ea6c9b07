"""The client of uploads: it sends a dataset to a server, and goes on where an upload has stopped.

The server says which bytes it has, so the same call goes on after either side was stopped, at any moment. A server that
does not answer, or that is busy, is asked again, after longer and longer pauses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep as wait
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final
from urllib.parse import urlsplit

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.data.dataset.manifest import MANIFEST, read_manifest
from open_clt.data.dataset.statistics import STATISTICS
from open_clt.data.server.uploads import NAME_RULE, is_name
from open_clt.errors import CheckpointError, ConfigError, MissingExtraError, ServiceError, short_value
from open_clt.web_checks import TOKEN_VARIABLE, is_address, is_loopback

if TYPE_CHECKING:
    import httpx

OnBytes: TypeAlias = Callable[[int], None]
"""Function of the number of bytes of a dataset that the server has."""

PIECE = 2**24
"""Number of bytes that are sent at once."""
TRIES = 9
"""Number of times that a request is sent without success before the client gives up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
_PATIENCE, _CONNECTING = 600.0, 20.0
"""Seconds to wait for an answer, before which the server may compute the SHA-256 of a large file; and to connect."""
_TRIED_AGAIN = (408, 429, 499, 500, 502, 503, 504)
_DATASETS = "/datasets/"


@final
@dataclass(frozen=True, kw_only=True)
class Target:
    """A place on a server for a dataset."""

    server: str
    """Address of the server, without a slash at the end."""
    name: str
    """Name of the dataset there."""

    @property
    def url(self) -> str:
        """The address of the dataset, once it is complete."""
        return f"{self.server}{_DATASETS}{self.name}"


def target_of(url: str, directory: Path, name: str | None = None) -> Target:
    """The place that an address names: that of a server, or ``.../datasets/NAME`` on it.

    Without a name, it is that of the directory. Raises ConfigError if the address or the name is not legal.
    """
    if not is_address(url):
        raise ConfigError(f"{short_value(url)} is not the address of a server; write one such as http://lab:8042.")
    server, _, stated = url.rstrip("/").partition(_DATASETS)
    if stated and name and stated != name:
        raise ConfigError(f"The address names the dataset {stated!r}, but the name is {name!r}; give only one of them.")
    target = Target(server=server, name=name or stated or directory.absolute().name)
    if not is_name(target.name):
        raise ConfigError(f"{short_value(target.name)} cannot be the name of a dataset on a server. {NAME_RULE}")
    return target


@checked_arguments
def check_upload(target: Target, token: str | None = None) -> None:
    """Ask a server whether it would take an upload; raises the errors of ``upload`` if it would not."""
    with _connected(target, token) as connection:
        connection.send("PUT", b"", fine=(422,))  # the server finds only that this is not a manifest


@checked_arguments
def upload(
    directory: str | Path,
    target: Target,
    *,
    token: str | None = None,
    discard: bool = False,
    on_bytes: OnBytes = lambda number: None,
) -> None:
    """Upload a dataset to a server, or go on with an upload.

    ``discard`` first deletes what an unfinished upload of another dataset of this name has left there.

    Raises CheckpointError if the dataset is not complete or a file is damaged, ServiceError if the server refuses the
    upload or does not answer, and MissingExtraError if httpx is not installed.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    content = files.read_bytes(directory / MANIFEST)
    digests = {shard.file: shard.sha256 for shard in manifest.shards} | {STATISTICS: manifest.statistics_sha256}
    with _connected(target, token) as connection:
        if discard:
            connection.send("DELETE", b"", fine=(404,))
        state = connection.send("PUT", content)
        while not state["complete"]:
            received = {str(entry["file"]): int(entry["received"]) for entry in state["files"]}
            for entry in state["files"]:
                if not entry["done"]:
                    path = files.inside(directory, entry["file"])
                    connection.send_file(path, digests[path.name], received, on_bytes)
            state = connection.send("PUT", content)


@contextmanager
def _connected(target: Target, token: str | None) -> Generator[_Connection]:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError("Uploads need httpx; install it with `pip install open-clt[server]`.") from error
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    is_here = is_loopback(urlsplit(target.server).hostname or "")
    timeout = httpx.Timeout(_PATIENCE, connect=_CONNECTING)
    with httpx.Client(headers=headers, timeout=timeout, trust_env=not is_here) as client:
        yield _Connection(client, target, has_token=token is not None)


class _TryAgain(ServiceError):
    """A failure that may pass."""


class _WrongHash(ServiceError):
    """The server has received a file that is not the one of the manifest, and has deleted it."""


@final
class _Failures:
    """The failures of a request since the last success, which is sent again after longer and longer pauses."""

    def __init__(self) -> None:
        self._number = 0

    def add(self, error: ServiceError) -> None:
        """Wait before the next try; after the last try, raise the error."""
        self._number += 1
        if self._number == TRIES:
            raise ServiceError(f"{error} (tried {TRIES} times; the same command goes on)") from error
        wait(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._number - 1)))


@final
class _Connection:
    """Requests for one upload."""

    def __init__(self, client: httpx.Client, target: Target, *, has_token: bool) -> None:
        self._client, self._target, self._has_token = client, target, has_token

    def send(self, method: str, body: bytes, *, fine: tuple[int, ...] = ()) -> dict[str, Any]:
        """Send a request for the upload, again where that helps, and return the answer.

        An answer with a status of ``fine`` is not an error.
        """
        failures = _Failures()
        while True:
            try:
                return self._once(method, body, fine=fine)
            except _TryAgain as error:
                failures.add(error)

    def send_file(self, path: Path, sha256: str, received: dict[str, int], on_bytes: OnBytes) -> None:
        """Send the bytes of a file that the server lacks; ``received`` says how many bytes of each file it has."""
        name, failures, done = path.name, _Failures(), False
        while not done:
            on_bytes(sum(received.values()))
            try:
                done, received[name] = self._send_piece(path, received[name])
                failures = _Failures()
            except _TryAgain as error:
                failures.add(error)
                done, received[name] = _entry(self.send("GET", b""), name)
            except _WrongHash as error:
                if files.file_sha256(path) != sha256:
                    raise CheckpointError(
                        f"{path} does not have the SHA-256 that the manifest states; harvest it again."
                    ) from error
                failures.add(error)
                received[name] = 0
        on_bytes(sum(received.values()))

    def _send_piece(self, path: Path, begin: int) -> tuple[bool, int]:
        """Send a piece of a file; return whether the server has the whole file, and how many bytes of it."""
        size, piece = _piece(path, begin)
        place = f"{begin}-{begin + len(piece) - 1}" if piece else "*"
        return _entry(self._once("PATCH", piece, file=path.name, place=f"bytes {place}/{size}"), path.name)

    def _once(
        self, method: str, body: bytes, *, file: str = "", place: str = "", fine: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Send a request once; raises _TryAgain if another try may help."""
        import httpx

        server = self._target.server
        url = f"{server}/uploads/{self._target.name}{f'/{file}' if file else ''}"
        try:
            answer = self._client.request(method, url, content=body, headers={"Content-Range": place} if place else {})
        except httpx.TransportError as error:
            raise _TryAgain(f"The server {server} does not answer ({error or type(error).__name__})") from None
        content = _json(answer.content)
        if answer.is_success and not (method == "DELETE" or {"complete", "files"} <= content.keys()):
            raise ServiceError(f"{server} is not a server of datasets; check the address.")
        if answer.is_success or answer.status_code in fine:
            return content
        said = f"The server {server} answers {answer.status_code}: {content.get('error', answer.reason_phrase)}"
        is_behind = file and answer.status_code in (404, 409)  # another client has gone on with the upload
        if is_behind or answer.status_code in _TRIED_AGAIN or "retry-after" in answer.headers:
            raise _TryAgain(said)
        if file and answer.status_code == 422:
            raise _WrongHash(said)
        if answer.status_code == 401:
            state = "another token" if self._has_token else "a token"
            raise ServiceError(f"{said} Give {state} with --token-file or the environment variable {TOKEN_VARIABLE}.")
        raise ServiceError(said)


def _piece(path: Path, begin: int) -> tuple[int, bytes]:
    """The size of a file, and the next bytes to send."""
    with files.opened(path, unpack=False) as file:
        size = file.seek(0, os.SEEK_END)
        if begin > size:
            raise CheckpointError(f"{path} has {size} bytes, but the server has {begin} already; harvest it again.")
        file.seek(begin)
        return size, file.read(PIECE)


def _entry(answer: dict[str, Any], name: str) -> tuple[bool, int]:
    """Whether the server has the whole file of this name, and how many bytes of it."""
    for entry in answer["files"]:
        if entry["file"] == name:
            return bool(entry["done"]), int(entry["received"])
    return bool(answer["complete"]), 0


def _json(content: bytes) -> dict[str, Any]:
    """The JSON object of an answer; an empty one if it is something else."""
    try:
        values = files.parse_json(content)
    except ValueError:
        return {}
    return cast(dict[str, Any], values) if isinstance(values, dict) else {}
