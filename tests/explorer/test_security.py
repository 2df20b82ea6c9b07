"""Security of the explorer: what a stranger's request, page or file can do, without a model.

``SECURITY.md`` says what the explorer promises.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from flask.testing import FlaskClient

from open_clt.errors import ConfigError
from open_clt.explorer import explorer as explorer_module
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.exports import slug_of
from open_clt.explorer.jobs.table import JOBS
from open_clt.explorer.models import Models, Source
from open_clt.explorer.server import api
from open_clt.explorer.server.app import PAGES, make_app
from open_clt.explorer.session.actions import History, history_json
from open_clt.explorer.session.session import Group, Session, Steer, session_json
from open_clt.explorer.session.session_file import SavedSession, session_content
from tests.faults.artefacts import trace_of

REQUESTS = 500


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """An explorer with a small graph, whose models cannot be loaded."""

    def fail(_: Source) -> Models:
        raise ConfigError("The models are missing.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer_module, "load_models", fail)
        made = Explorer(Source(), cache=tmp_path_factory.mktemp("cache"))
        made.traces.hold(replace(trace_of(3), key="start"))
        yield made
        made.close()


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> FlaskClient:
    return make_app(explorer).server.test_client()


def is_sentence(text: object) -> bool:
    return isinstance(text, str) and text.endswith(".") and "\n" not in text and len(text) <= 300


def test_pages_take_everything_from_their_own_server(client: FlaskClient) -> None:
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    allowed = {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    sources = {source for value in policy.values() for source in value.split()}
    assert all(source in allowed or source.startswith("'sha256-") for source in sources)
    scripts = re.findall(
        r"<script(?![^>]*(?:src=|json))[^>]*>(.*?)</script>", re.sub("<!--.*?-->", "", answer.text, flags=re.S), re.S
    )
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert hashes
    assert all(f"'sha256-{digest}'" in policy["script-src"] for digest in hashes)


ADDRESSES = ["/", "/graph", "/files/graph.js", "/_dash-layout", "/_dash-dependencies", "/api/status", "/nothing"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_answer_has_the_headers_of_security(client: FlaskClient, address: str) -> None:
    answer = client.get(address)
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("address", [*ADDRESSES, "/_favicon.ico", "/_dash-component-suites/dash/deps/react.js"])
def test_no_address_answers_for_another_host(client: FlaskClient, address: str) -> None:
    for host in ("evil.example", "localhost.evil.example", "0.0.0.0", "", "127.0.0.1.nip.io:8041"):
        assert client.get(address, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("address", ["/_dash-update-component", "/api/act", "/api/start/trace", "/api/open/a.json"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9000", "http://127.0.0.1", ""])
def test_no_address_takes_requests_of_other_pages(client: FlaskClient, address: str, origin: str) -> None:
    assert client.post(address, json={}, headers={"Origin": origin}).status_code == 403


def test_the_server_is_not_in_debug_mode(explorer: Explorer) -> None:
    app = make_app(explorer)
    assert not app.server.debug
    assert not app.server.testing
    answer = app.server.test_client().post("/_dash-update-component", json={})
    assert "Traceback" not in answer.text
    assert is_sentence(answer.json["error"])


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/..",
        "/%2e%2e/etc/passwd",
        "/%2e%2e%2fetc/passwd",
        "/files/../server/serve.py",
        "/files/%2e%2e/server/serve.py",
        "/files/..%5cserve.py",
        "/files/%00",
        "/files//etc/passwd",
        "/features/../../etc/passwd",
        "/_dash-component-suites/../dash.py",
        "/_dash-component-suites/dash/../dash.py",
        "/assets/../explorer.py",
        "/etc/passwd",
        "/explorer.py",
        "/api/file/..%2f..%2fetc%2fpasswd",
    ],
)
def test_paths_never_lead_to_other_files(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert is_sentence(answer.json["error"])


def test_only_pages_have_addresses(client: FlaskClient) -> None:
    assert {name for name in PAGES if client.get(f"/{name}").status_code != 200} == set()
    assert client.get("/nothing").status_code == 404


def test_a_prompt_cannot_write_headers() -> None:
    trace = trace_of(1)
    for prompt in ('a"\r\nSet-Cookie: x=1\r\n\r\n<script>', "../../../etc/passwd", "\u202etxt.exe", "", "日本語"):
        name = slug_of(replace(trace, graph=replace(trace.graph, info=replace(trace.graph.info, prompt=prompt))))
        assert re.fullmatch("[a-z0-9-]+", name)


def test_a_request_that_is_too_large_is_one_sentence(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("/api/open/a.json", "/api/act", "/api/start/trace", "/_dash-update-component"):
        answer = client.post(address, environ_overrides={"CONTENT_LENGTH": str(api.LARGEST_REQUEST + 1)})
        assert answer.status_code == 413
        assert "128 MiB" in answer.json["error"]
    monkeypatch.setitem(client.application.config, "MAX_CONTENT_LENGTH", 10)  # as for a request without a length
    assert "MiB" in client.post("/api/open/a.json", data=b"x" * 100).json["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b', "actions": []}',
        b'{"history": {"present": {"percent": %s}}, "actions": []}' % (b"9" * 10_000),
        b'{"history": {"present": {"percent": %d}}, "actions": []}' % 10**30,
        b'{"history": {"present": {"percent": NaN}}, "actions": []}',
        b'{"history": {"present": {"steers": [{"name": "a", "members": [], "scale": 1e999}]}}, "actions": []}',
        b"\xff\xfe",
        b"",
    ],
    ids=lambda body: str(body[:12]),
)
def test_json_that_no_page_sends_is_one_sentence(client: FlaskClient, body: bytes) -> None:
    for address in ("/api/act", "/api/start/view", "/api/features", "/api/open/a.json"):
        answer = client.post(address, data=body)
        assert answer.status_code == 200
        assert is_sentence(answer.json["error"])


@pytest.mark.parametrize("text", ["\x1b[31m" * 40, "\x00" * 200, "a\nb", "\u202e", "\ud800", "x" * 201])
def test_labels_and_names_are_one_line_of_text(client: FlaskClient, text: str) -> None:
    nodes = ["0:1:5", "0:2:5"]
    for action in (
        {"kind": "label", "feature": "L0/5", "text": f"a{text}a"},
        {"kind": "group", "name": f"a{text}a", "members": nodes},
    ):
        answer = client.post("/api/act", json={"history": history_json(History()), "actions": [action]})
        assert is_sentence(answer.json["error"])
    content = session_content(SavedSession(Session(), trace_of(1), ""))
    for choice in ({"labels": {"L0/5": text}}, {"groups": [{"name": text, "members": nodes}]}):
        changed = {**content, "session": {**content["session"], **choice}}
        answer = client.post("/api/open/a.json", data=json.dumps(changed))
        assert is_sentence(answer.json["error"])


def test_a_file_that_is_opened_cannot_choose_where_its_graph_is_kept(explorer: Explorer, tmp_path: Path) -> None:
    target = tmp_path / "stolen"
    for key in (str(target), "../" * 20 + str(target)[1:], "start"):
        trace = replace(trace_of(1), key=key)
        content = session_content(SavedSession(Session(graph=key), trace, ""))
        opened = explorer.opened("a.json", json.dumps(content).encode())
        assert opened.graph.startswith("file")
        assert explorer.trace_of(opened.graph).graph.info.prompt == trace.graph.info.prompt
    assert not target.exists()
    assert explorer.trace_of("start").graph.info.prompt != trace_of(1).graph.info.prompt


_JUNK: list[Any] = [
    None, True, -1, 0, 3.5, 2**62, 2**70, 1e300, "", "x", "\x00", "\ud800", "L0/5", "0:1:5", "9:9:9", "start", "../..",
    "<b>", "😀" * 300, [], {}, [[]], [None], {"a": 1}, ["0:1:5"] * 300, {"L0/5": 3}, [{"kind": "undo"}], "9" * 5000,
]  # fmt: skip


def _bodies() -> dict[str, Any]:
    """A request of every kind that is in order, by its address."""
    nodes = ("0:1:5", "0:2:5")
    session = session_json(
        Session(
            graph="start",
            pins=nodes,
            groups=(Group(name="g", members=nodes),),
            labels={"L0/5": "Texas"},
            steers=(Steer(name="s", members=nodes, scale=2.0),),
        )
    )
    actions = [{"kind": "pin", "node": "1:2:3"}, {"kind": "rename", "name": "g", "new_name": "h"}, {"kind": "undo"}]
    whole = {
        "session": session, "prompt": "The", "graph": "start", "source": "0:1:5", "target": "0:2:5", "kind": "json",
        "frozen": "direct", "tokens": 3, "text": "The", "feature": "L0/5",
        "first": "start", "second": "start", "percent": 80, "across": True, "name": "norms", "kept": True,
    }  # fmt: skip
    query = {"q": "x", "layer": "1", "least": "0", "most": "1", "sort": "max", "down": "1", "page": "2", "here": "1"}
    bodies: dict[str, Any] = {f"/api/start/{kind}": whole for kind in (*JOBS, "nothing")}
    bodies["/api/act"] = {"history": history_json(History(present=Session(graph="start"))), "actions": actions}
    bodies["/api/features"] = {"query": query, "session": session}
    bodies["/api/open/a.json"] = session_content(SavedSession(Session(), trace_of(1), ""))
    return bodies


def _changed(value: Any, random: Random) -> Any:
    """A value of which one part, somewhere inside, is something else, is missing, or is there twice."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        match random.randrange(8):
            case 0:
                return {name: each for name, each in value.items() if name != key}
            case 1:
                return {**value, random.choice(("x", "", "kind", "graph")): random.choice(_JUNK)}
            case _:
                return {**value, key: _changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        index = random.randrange(len(value))
        return [*value[:index], _changed(value[index], random), *value[index:]]
    return random.choice(_JUNK)


@pytest.mark.slow
def test_random_requests_are_answered_with_values_or_sentences(
    client: FlaskClient, explorer: Explorer, caplog: pytest.LogCaptureFixture
) -> None:
    bodies, refused = _bodies(), 0
    for seed in range(REQUESTS):
        random = Random(seed)
        address = random.choice(sorted(bodies))
        body = bodies[address]
        for _ in range(random.randrange(1, 4)):
            body = _changed(body, random)
        answer = client.post(address, data=json.dumps(body))
        assert answer.status_code == 200, f"seed {seed}, {address}: {answer.text}"
        if "error" in answer.json:
            refused += 1
            assert is_sentence(answer.json["error"]), f"seed {seed}, {address}: {answer.json}"
        elif "job" in answer.json:
            job = explorer.worker.job(answer.json["job"])
            assert job is not None
            assert job.finished.wait(60)
            assert not job.error or is_sentence(job.error), f"seed {seed}, {address}: {job.error}"
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
    assert REQUESTS // 4 < refused < REQUESTS


def test_a_request_that_ends_too_early_is_a_mistake_of_its_sender(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    for address in ("/api/act", "/api/start/view", "/api/open/a.json"):
        answer = client.post(address, data=b'{"a": 1', environ_overrides={"CONTENT_LENGTH": "100"})
        assert answer.status_code == 400
        assert is_sentence(answer.json["error"])
    assert not [record for record in caplog.records if record.exc_info]


_MARKUP = (
    "$\\frac{$",
    "$x_1$",
    "<svg onload=alert(1)>",
    "&amp;",
    "%s %d {0}",
    "\\input{x}",
    "\u202eabc"[1:] + "x" * 190,
)


@pytest.mark.parametrize("kind", ["svg", "html", "json", "session"])
def test_labels_are_text_in_every_export(client: FlaskClient, explorer: Explorer, kind: str) -> None:
    for text in _MARKUP:
        session = session_json(Session(graph="start", labels={"L0/5": text}, pins=("0:1:5",)))
        answer = client.post("/api/start/export", json={"session": session, "kind": kind})
        job = explorer.worker.job(answer.json["job"])
        assert job is not None
        assert job.finished.wait(60)
        assert job.state == "done", f"{text}: {job.error}"
        content = client.get(f"/api/file/{job.result['file']}")
        assert b"<svg onload" not in content.data or kind in ("json", "session")
        assert re.fullmatch(r'attachment; filename="[a-z0-9.-]+"', content.headers["Content-Disposition"])
        assert content.headers["Content-Security-Policy"] == "sandbox"
        assert content.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("address", ["/api/job/{}", "/api/file/{}", "/api/feature/{}/0", "/api/feature/L0/{}"])
def test_random_addresses_are_answered_with_sentences(client: FlaskClient, address: str) -> None:
    for value in ("0", "-1", "9" * 5000, "%00", "x", "%ff", "😀", "1e9", "0x1", " "):
        answer = client.get(address.format(value))
        assert answer.status_code in (200, 404)
        assert is_sentence(answer.json["error"])
