"""The addresses of the explorer's data: JSON in, JSON out.

A job's address answers ``{"job": number}`` at once; ``/api/job/NUMBER`` then says what the job has reached, and holds
its result once it is done. A mistake is answered with ``{"error": sentence}`` and status 200, because browsers report
other states in their console as errors of the page. Every request is checked by ``web_checks.py`` first.

Functions import what they need of the explorer, because the first page is answered before it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from dash.exceptions import DashException
from flask import Blueprint, Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from open_clt.errors import ConfigError, OpenCLTError
from open_clt.explorer.server.later import GetExplorer
from open_clt.explorer.worker import unexpected
from open_clt.web_checks import SECURITY_HEADERS, is_plain_path, refusal

_PATIENCE = 0.15
"""Seconds for which an answer about a job waits for the job's end."""
LARGEST_REQUEST = 128 * 2**20
"""Largest request in bytes: a file of a graph or of a session."""
_TOO_LARGE = f"The request holds more than {LARGEST_REQUEST // 2**20} MiB, which the explorer does not take."
_NO_PAGE = "The explorer does not have a page at this address."


def guard(server: Flask, allowed: Collection[str], policy: Callable[[], str]) -> None:
    """Check every request, add the headers of security to every answer, and answer mistakes with a sentence.

    ``policy`` returns the Content-Security-Policy, which is asked for once the pages are complete.
    """
    server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST

    @server.before_request
    def check() -> tuple[Response, int] | None:  # pyright: ignore[reportUnusedFunction]
        problem = refusal(request.method, request.headers.get("Host", ""), request.headers.get("Origin"), allowed)
        if problem:
            return jsonify(error=problem), 403
        if not is_plain_path(request.path):
            return jsonify(error=_NO_PAGE), 404
        if (request.content_length or 0) > LARGEST_REQUEST:
            return jsonify(error=_TOO_LARGE), 413
        return None

    @server.errorhandler(Exception)
    def fail(error: Exception) -> tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        match error:
            case RequestEntityTooLarge():
                return jsonify(error=_TOO_LARGE), 413
            case HTTPException():
                return jsonify(error=_NO_PAGE if error.code == 404 else f"{error.name}."), error.code or 400
            case DashException():  # a request that Dash's own addresses do not know
                return jsonify(error=_NO_PAGE), 404
            case _:
                return jsonify(error=unexpected()), 500

    @server.after_request
    def add_headers(response: Response) -> Response:  # pyright: ignore[reportUnusedFunction]
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", policy())
        if request.path.startswith("/api/"):
            response.headers["Cache-Control"] = "no-store"
        return response


def add_api(server: Flask, explorer: GetExplorer) -> None:
    """Add the addresses under ``/api``."""
    api = Blueprint("api", __name__, url_prefix="/api")

    @api.post("/start/<kind>")
    def start(kind: str) -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        from open_clt.explorer.jobs import table

        return _answered(lambda: {"job": table.start(explorer(), kind, _body()).number})

    @api.get("/job/<int:number>")
    def job(number: int) -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        found = explorer().worker.job(number)
        if found is None:
            return jsonify(error="The job is not known; the program was started again.")
        found.finished.wait(_PATIENCE)  # so that a page hears of the end at once
        return jsonify({**found.status(), **({"result": found.result} if found.state == "done" else {})})

    @api.post("/cancel/<int:number>")
    def cancel(number: int) -> Response:  # pyright: ignore[reportUnusedFunction]
        explorer().worker.cancel(number)
        return jsonify({})

    @api.get("/status")
    def status() -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            return jsonify(explorer().status())
        except OpenCLTError as error:  # the explorer could not be made
            return jsonify(ready=False, failed=str(error), shape=None, start=None, jobs=[])

    @api.post("/act")
    def act() -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        from open_clt.explorer.session.actions import history_json, read_history, stepped

        def work() -> dict[str, Any]:
            body = _body()
            history = read_history(body["history"])
            for action in cast(list[dict[str, Any]], body["actions"]):
                history = stepped(history, action)
            return history_json(history)

        return _answered(work)

    _add_files(api, explorer)
    server.register_blueprint(api)


def _add_files(api: Blueprint, explorer: GetExplorer) -> None:
    """Add the addresses of files and of features."""

    @api.get("/file/<token>")
    def file(token: str) -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        made = explorer().file(token)
        if made is None:
            return jsonify(error="The file is not kept any more; export it again."), 404
        return Response(
            made.content,
            mimetype=made.kind,
            headers={
                "Content-Disposition": f'attachment; filename="{made.name}"',
                "Content-Security-Policy": "sandbox",
            },
        )

    @api.post("/open/<name>")
    def open_file(name: str) -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        from open_clt.explorer.session.session import session_json

        return _answered(lambda: {"session": session_json(explorer().opened(name, request.get_data()))})

    @api.post("/features")
    def features() -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        from open_clt.explorer.jobs.requests import session_of, texts_of

        def work() -> dict[str, Any]:
            body = _body()
            return explorer().features(texts_of(body, "query"), session_of(body))

        return _answered(work)

    @api.get("/feature/<layer>/<index>")
    def feature(layer: str, index: str) -> Response | tuple[Response, int]:  # pyright: ignore[reportUnusedFunction]
        return _answered(lambda: explorer().feature(f"{layer}/{index}"))


def _answered(work: Callable[[], Mapping[str, Any]]) -> Response | tuple[Response, int]:
    """The result of some work, or the sentence of the mistake that it found."""
    try:
        return jsonify(work())
    except OpenCLTError as error:
        return jsonify(error=str(error))
    except RequestEntityTooLarge:
        return jsonify(error=_TOO_LARGE)
    except HTTPException:  # such as a request that ends too early, which ``guard`` answers
        raise
    except (KeyError, TypeError, AttributeError):
        return jsonify(error="The request lacks a value, or has one of another kind.")
    except Exception:  # noqa: BLE001  (the server goes on; the log has the traceback)
        return jsonify(error=unexpected()), 500


def _body() -> dict[str, Any]:
    """The JSON object of a request; raises ConfigError if it has none."""
    from open_clt import files

    try:
        body = files.parse_json(request.get_data(), finite=True)
    except ValueError as error:
        raise ConfigError(f"The request is not readable JSON ({str(error)[:120]}).") from error
    if not isinstance(body, dict):
        raise ConfigError("The request does not hold a JSON object.")
    return cast(dict[str, Any], body)
