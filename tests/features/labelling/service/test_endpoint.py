"""Every failure of an endpoint is one sentence that names it; keys are sent to it and stand nowhere else."""

from __future__ import annotations

import pytest

from open_clt.errors import ConfigError, ServiceError
from open_clt.features.labelling.service import endpoint as endpoint_module
from open_clt.features.labelling.service.endpoint import Endpoint
from tests.features.labelling.service.stand_in import Raw, answering
from tests.refusals import refuses

CHAT = [{"role": "user", "content": "Hello"}]
KEY = "sk-secret-123"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(endpoint_module, "wait", waited.append)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return waited


def test_the_answer_and_the_request_have_the_protocols_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with answering(lambda messages: f"{messages[0]['content']} back “猫”") as service:
        endpoint = Endpoint(url=service.url + "/", model="small", key_variable="MY_KEY")
        assert endpoint.answer(CHAT) == "Hello back “猫”"
    assert service.paths == ["/v1/chat/completions"]
    assert service.keys == [f"Bearer {KEY}"]
    assert service.requests[0]["model"] == "small"
    assert service.requests[0]["messages"] == CHAT
    assert KEY not in repr(endpoint)


def test_no_key_is_sent_without_the_variable() -> None:
    with answering(lambda _: "yes") as service:
        Endpoint(url=service.url, model="small").answer(CHAT)
    assert service.keys == [None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(status: int, pauses: list[float]) -> None:
    answers = iter(
        [Raw(status, headers=(("Retry-After", "7"),)), Raw(status, headers=(("Retry-After", "soon"),)), "yes"]
    )
    with answering(lambda _: next(answers)) as service:
        assert Endpoint(url=service.url, model="small").answer(CHAT) == "yes"
    assert len(pauses) == 2
    assert pauses[0] == 7


@pytest.mark.parametrize(
    ("answer", "named", "tries"),
    [
        (Raw(429), ["429"], 3),
        (Raw(429, headers=(("Retry-After", "1e9"),)), ["429"], 3),
        (Raw(401), ["401", "OPENAI_API_KEY", "not set"], 1),
        (Raw(404), ["404", "small"], 1),
        (Raw(302, headers=(("Location", "http://127.0.0.1:9/"),)), ["302"], 1),
        (Raw(body=b"<html>"), [], 3),
        (Raw(body=b'{"choices": []}'), [], 3),
        (Raw(body=b'{"choices": [{"message": {"content": null}}]}'), [], 3),
        (Raw(body=b"[" * 100_000), [], 3),
        (Raw(seconds=2), [], 3),
    ],
    ids=str,
)
def test_failures_are_one_sentence(answer: Raw, named: list[str], tries: int, pauses: list[float]) -> None:
    with answering(lambda _: answer) as service:
        endpoint = Endpoint(url=service.url, model="small", timeout=0.3, tries=3)
        with refuses(ServiceError, service.url, *named):
            endpoint.answer(CHAT)
    assert len(service.requests) == tries
    assert all(pause <= 60 for pause in pauses)


def test_a_refused_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refusing = answering(lambda _: Raw(403, body=KEY.encode()))
    with refusing as service, refuses(ServiceError, "OPENAI_API_KEY") as raised:
        Endpoint(url=service.url, model="small").answer(CHAT)
    assert KEY not in str(raised.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", ["zwei\nZeilen", "钥匙"])
def test_a_key_that_cannot_be_sent_names_its_variable(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with answering(lambda _: "yes") as service, refuses(ServiceError, "OPENAI_API_KEY") as raised:
        Endpoint(url=service.url, model="small").answer(CHAT)
    assert key not in str(raised.value)


def test_no_server_at_all_is_one_sentence() -> None:
    with answering(lambda _: "yes") as service:
        pass
    with refuses(ServiceError, service.url):
        Endpoint(url=service.url, model="small", tries=2).answer(CHAT)


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "127.0.0.1:8000", "http://me:secret@host/v1", "http://[1/v1", "http://h/v1?key=1"]
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Endpoint(url=url, model="small")


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"tries": 0}])
def test_settings_that_would_never_ask_are_refused(settings: dict[str, float]) -> None:
    with refuses(ConfigError, *settings):
        Endpoint(url="http://127.0.0.1/v1", model="small", **settings)  # pyright: ignore[reportArgumentType]
