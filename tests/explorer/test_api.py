"""The addresses of the explorer's data: jobs, mistakes, and requests that are refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
from flask.testing import FlaskClient

from open_clt.explorer.explorer import Explorer
from open_clt.explorer.server.app import PAGES, make_app
from open_clt.explorer.session.actions import History, history_json
from open_clt.explorer.session.session import Session
from tests.explorer.conftest import PROMPT, done


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> FlaskClient:
    return make_app(explorer).server.test_client()


def _start(client: FlaskClient, explorer: Explorer, kind: str, body: dict[str, Any]) -> Any:
    answer = client.post(f"/api/start/{kind}", json=body)
    assert answer.status_code == 200, answer.json
    job = explorer.worker.job(answer.json["job"])
    assert job is not None
    done(job)
    return client.get(f"/api/job/{job.number}").json["result"]


def test_a_prompt_is_traced_and_shown(client: FlaskClient, explorer: Explorer) -> None:
    key = _start(client, explorer, "trace", {"prompt": PROMPT})["graph"]
    acted = client.post(
        "/api/act", json={"history": history_json(History()), "actions": [{"kind": "show", "graph": key}]}
    ).json
    view = _start(client, explorer, "view", {"session": acted["present"]})
    assert view["prompt"] == PROMPT
    assert _start(client, explorer, "circuit", {"session": acted["present"]}) is None


@pytest.mark.parametrize("path", ["/", *(f"/{name}" for name in PAGES), "/features/2/417"])
def test_every_page_has_an_address(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert b"OpenCLT" in answer.data
    assert b"http://" not in answer.data.replace(b"http://www.w3.org", b"")
    assert b"https://" not in answer.data


@pytest.mark.parametrize("path", ["/files/../serve.py", "/files/%2e%2e/serve.py", "/files/report.js", "/api/nothing"])
def test_other_files_are_not_there(client: FlaskClient, path: str) -> None:
    assert b"def " not in client.get(path).data


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("evil.example", None, 403),
        ("localhost", "http://evil.example", 403),
        ("localhost", "http://localhost", 200),
        ("localhost", None, 200),
    ],
)
def test_requests_of_other_sites_are_refused(client: FlaskClient, host: str, origin: str | None, status: int) -> None:
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    body = {"history": history_json(History()), "actions": []}
    answer = client.post("/api/act", json=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["X-Frame-Options"] == "DENY"


_MISTAKES: list[tuple[str, Any]] = [
    ("/api/start/trace", {}),
    ("/api/start/trace", {"prompt": 3}),
    ("/api/start/trace", {"prompt": ""}),
    ("/api/start/trace", []),
    ("/api/start/view", {"session": {}}),
    ("/api/start/view", {"session": {"graph": "unknown"}}),
    ("/api/start/heads", {"graph": "unknown", "source": "a", "target": "b"}),
    ("/api/start/export", {"session": {"graph": "unknown"}, "kind": "png"}),
    ("/api/act", {"history": {}, "actions": 3}),
    ("/api/act", {"history": {"present": {"percent": 0}}, "actions": []}),
    ("/api/act", {"history": history_json(History()), "actions": [{"kind": "pin"}]}),
    ("/api/act", {"history": history_json(History()), "actions": ["pin"]}),
]


@pytest.mark.parametrize(("address", "body"), _MISTAKES)
def test_a_mistake_is_one_sentence(client: FlaskClient, address: str, body: Any) -> None:
    answer = client.post(address, json=body)
    assert answer.status_code == 200
    assert answer.json["error"].endswith(".")
    assert "\n" not in answer.json["error"]


def test_what_is_not_json_is_a_mistake_too(client: FlaskClient) -> None:
    assert client.get("/api/file/nothing").status_code == 404
    for answer in (
        client.post("/api/act", data=b"{"),
        client.post("/api/start/nothing", json={}),
        client.get("/api/job/99999"),
        client.get("/api/feature/L9/9"),
        client.post("/api/open/a.json", data=io.BytesIO(b"nothing")),
    ):
        assert answer.json["error"].endswith(".")


def test_a_session_of_a_page_is_checked(client: FlaskClient, explorer: Explorer) -> None:
    history = History(present=Session(graph="start"))
    answer = client.post("/api/act", json={"history": history_json(history), "actions": [{"kind": "undo"}]})
    assert answer.json == history_json(history)
