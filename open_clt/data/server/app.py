"""The addresses of the server: a FastAPI application behind its guard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeAlias, final

from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from open_clt.data.server.access import Access
from open_clt.data.server.datasets import Dataset, Datasets
from open_clt.data.server.guard import Guard
from open_clt.data.server.page import page
from open_clt.data.server.refusal import Refusal
from open_clt.data.server.slices import slice_of
from open_clt.data.server.uploads import Uploads
from open_clt.data.server.writing import Name, Writing, errors
from open_clt.errors import ResourceError

logger = logging.getLogger(__name__)

File: TypeAlias = Annotated[
    str, Path(description="Name of a file: `manifest.json`, `norm_stats.json`, or a shard that the manifest names.")
]
_BINARY = "application/octet-stream"
_NO_ADDRESS = "The server does not have this address."


@final
class _File(FileResponse):
    """A file, or the range of its bytes that the request names."""

    chunk_size = 2**20
    max_ranges = 1  # of more, the whole file is sent, as HTTP allows


@final
class Reading:
    """The addresses that read."""

    def __init__(self, datasets: Datasets, access: Access, describe: Callable[[], dict[str, Any]]) -> None:
        self._datasets, self._access, self._describe = datasets, access, describe

    def router(self) -> APIRouter:
        """The addresses, for an application."""
        router = APIRouter()
        add = router.add_api_route
        add("/health", self.health, summary="Health")
        add("/", self.page, response_class=HTMLResponse, summary="This page")
        add("/datasets", self.all, summary="Datasets", responses=errors(401))
        octets: dict[int | str, Any] = {200: {"content": {_BINARY: {}}, "description": "safetensors"}}
        add(
            "/datasets/{name}/tokens",
            self.tokens,
            response_class=StreamingResponse,
            summary="Tokens",
            responses={**octets, **errors(401, 404, 413, 416, 422)},
        )
        ranges: dict[int | str, Any] = {206: {"content": {_BINARY: {}}, "description": "The bytes of the range."}}
        answers = {**octets, **ranges, **errors(400, 401, 404, 416, 422)}
        file, path = self.file, "/datasets/{name}/{file}"
        add(path, file, response_class=_File, summary="File", responses=answers)
        add(path, file, response_class=_File, methods=["HEAD"], include_in_schema=False)
        return router

    def health(self) -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    def page(self) -> HTMLResponse:
        """Show datasets and addresses in a browser."""
        datasets = self._datasets.all() if self._access.reading is None else None
        return HTMLResponse(page(datasets, self._describe()))

    def all(self) -> dict[str, list[dict[str, Any]]]:
        """List the complete datasets."""
        return {"datasets": [_entry(dataset) for dataset in self._datasets.all()]}

    def tokens(
        self,
        name: Name,
        begin: Annotated[int, Query(description="First token, in the order of the shards.")],
        end: Annotated[int, Query(description="Token after the last one.")],
    ) -> StreamingResponse:
        """Answer some tokens of a dataset as a safetensors file, whose tensors are those of a shard."""
        size, parts = slice_of(self._datasets.get(name), begin, end)
        return StreamingResponse(parts, media_type=_BINARY, headers={"Content-Length": str(size)})

    def file(self, name: Name, file: File) -> FileResponse:
        """Answer a file of a dataset, or the bytes that the header `Range` names; `ETag` is its SHA-256."""
        stored = self._datasets.file(name, file)
        kind = "application/json" if file.endswith(".json") else _BINARY
        headers = {"ETag": f'"{stored.sha256}"'}
        return _File(stored.path, media_type=kind, stat_result=stored.status, headers=headers)


def make_app(
    datasets: Datasets,
    allowed: Collection[str] = (),
    access: Access | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Guard:
    """The application that serves datasets; it answers for this computer's names and the ``allowed`` ones.

    Without tokens for writing in ``access``, it has no addresses of uploads.
    """
    access = access or Access()
    app = FastAPI(
        title="OpenCLT datasets", version="1", docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None
    )
    app.include_router(Reading(datasets, access, app.openapi).router())
    if access.writing:
        app.include_router(Writing(Uploads(datasets)).router())
    app.add_api_route("/openapi.json", lambda: JSONResponse(app.openapi()), include_in_schema=False)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(ResourceError, _full)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(RequestValidationError, _illegal)
    return Guard(app, allowed, access, log)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return JSONResponse({"error": error.sentence}, error.status, headers=dict(error.headers))


def _full(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s", error)  # the sentence names a path of the server, which clients do not see
    return JSONResponse({"error": "The disk of the server is full, or cannot be written."}, 507)


def _unknown(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = _NO_ADDRESS if error.status_code == 404 else f"{error.detail}."
    return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)


def _illegal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"The {where[:60]} is wrong: {first['msg']}."}, 422)


def _entry(dataset: Dataset) -> dict[str, Any]:
    """What the list says of a dataset."""
    manifest, harvested = dataset.manifest, dataset.manifest.harvested
    names = ("model", "n_layers", "d_model", "input_hook", "target_hook", "dtype")
    facts = {name: getattr(harvested, name) for name in names}
    size = manifest.tokens * harvested.bytes_per_token
    return {"name": dataset.name, "tokens": manifest.tokens, "shards": len(manifest.shards), "bytes": size, **facts}
