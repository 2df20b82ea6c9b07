"""The addresses of uploads: they take manifests and pieces of files, and pass them to ``uploads``.

The size of a body is known and checked before it is read, and no more than a chunk of it is in memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeAlias, final

from fastapi import APIRouter, Header, Path, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect

from open_clt import files
from open_clt.data.server.refusal import Refusal
from open_clt.data.server.uploads import LARGEST_MANIFEST, Piece, Uploads, UploadState

LARGEST_PIECE = 2**26
"""Largest number of bytes of a file in one request."""
LONGEST_SILENCE = 60.0
"""Seconds for which the server waits for the next bytes of a body."""
_CHUNK = 2**20
"""Number of bytes that are written at once."""
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
_CLIENT_LEFT = 499
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
_OCTETS: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_ERROR: dict[str, Any] = {
    "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
}
Name: TypeAlias = Annotated[str, Path(description="Name of a dataset.")]


def errors(*statuses: int) -> dict[int | str, Any]:
    """The part of the OpenAPI description that says which errors an address answers."""
    return {status: {"description": "A sentence says what is wrong.", **_ERROR} for status in statuses}


@final
class Writing:
    """The addresses that write."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def router(self) -> APIRouter:
        """The addresses, for an application."""
        router = APIRouter(responses=errors(401, 403, 404))
        add, path = router.add_api_route, "/uploads/{name}"
        refused = errors(400, 408, 409, 411, 413, 416, 422, 507)
        add(path, self.state, summary="State of an upload")
        add(path, self.begin, methods=["PUT"], responses=refused, openapi_extra=_BODY, summary="Begin an upload")
        add(path, self.discard, methods=["DELETE"], responses=errors(409), summary="Give an upload up")
        extra = {"requestBody": {"required": True, "content": _OCTETS}}
        add(f"{path}/{{file}}", self.append, methods=["PATCH"], responses=refused, openapi_extra=extra, summary="Piece")
        return router

    def state(self, name: Name) -> dict[str, Any]:
        """Answer how many bytes of each file of an upload have arrived."""
        return _content(self._uploads.state(name))

    async def begin(self, name: Name, request: Request) -> dict[str, Any]:
        """Begin an upload with the manifest in the body, or go on with it, and answer its state."""
        length = _length(request, LARGEST_MANIFEST)
        with self._uploads.claimed(name):
            body = b"".join([chunk async for chunk in _chunks(request, length)])
            return _content(await run_in_threadpool(self._uploads.begin, name, body))

    async def append(
        self,
        name: Name,
        file: Annotated[str, Path(description="Name of a file that the manifest lists, or `norm_stats.json`.")],
        request: Request,
        content_range: Annotated[
            str,
            Header(
                description="Place of the body in the file: `bytes BEGIN-LAST/SIZE`; `bytes */SIZE` if all is sent."
            ),
        ] = "",
    ) -> dict[str, Any]:
        """Append the body to what has arrived of a file; after the last file, the dataset is complete and visible."""
        piece = _piece(content_range)
        length = _length(request, LARGEST_PIECE)
        if length != piece.end - piece.begin:
            raise Refusal(400, f"The body has {length} bytes, which is not what Content-Range says.")
        with self._uploads.claimed(name):
            path = await run_in_threadpool(self._uploads.check, name, file, piece)
            async with contextmanager_in_threadpool(files.continuing(path, piece.begin)) as write:
                async for chunk in _chunks(request, length):
                    await run_in_threadpool(write, chunk)
            return _content(await run_in_threadpool(self._uploads.received, name, file, piece))

    async def discard(self, name: Name) -> dict[str, Any]:
        """Delete what has arrived of an upload; a complete dataset stays."""
        with self._uploads.claimed(name):
            await run_in_threadpool(self._uploads.discard, name)
        return {}


def _content(state: UploadState) -> dict[str, Any]:
    return {**state._asdict(), "files": [file._asdict() for file in state.files]}


def _piece(header: str) -> Piece:
    """The place that a header Content-Range states."""
    stated = _RANGE.fullmatch(header)
    if stated is None:
        raise Refusal(400, "The header Content-Range is not of the form bytes BEGIN-LAST/SIZE or bytes */SIZE.")
    size = int(stated[3])
    if stated[1] is None:
        return Piece(size, size, size)
    begin, last = int(stated[1]), int(stated[2])
    if not begin <= last < size:
        raise Refusal(416, f"The bytes {begin} to {last} are not a range of {size} bytes.")
    return Piece(begin, last + 1, size)


def _length(request: Request, limit: int) -> int:
    """The number of bytes of a body, which the request states."""
    stated = request.headers.get("content-length")
    if stated is None:
        raise Refusal(411, "The request does not state the length of its body; send the header Content-Length.")
    if not re.fullmatch(r"\d{1,18}", stated):
        raise Refusal(400, "The header Content-Length is not a number.")
    if int(stated) > limit:
        raise Refusal(413, f"The body has more than {limit:,} bytes; send less at once.")
    return int(stated)


async def _chunks(request: Request, length: int) -> AsyncIterator[bytes]:
    """Yield the bytes of a body, some at a time; refuses a body that is shorter or longer than it says."""
    buffer, taken = bytearray(), 0
    stream = aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout(LONGEST_SILENCE):
                chunk = await anext(stream, None)
            if chunk is None:
                break
            taken += len(chunk)
            if taken > length:
                raise Refusal(400, "The body is longer than its Content-Length.")
            buffer += chunk
            if len(buffer) >= _CHUNK:
                yield bytes(buffer)
                buffer.clear()
    except TimeoutError as error:
        raise Refusal(408, f"No bytes arrived for {LONGEST_SILENCE:g} seconds.") from error
    except ClientDisconnect as error:
        raise Refusal(_CLIENT_LEFT, "The client went away.") from error
    yield bytes(buffer)
    if taken < length:
        raise Refusal(400, "The body is shorter than its Content-Length.")
