"""Checks of requests: which hosts and pages a server on this computer answers."""

from __future__ import annotations

import pytest

from open_clt.web_checks import host_of, is_loopback, refusal


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_names_of_this_computer_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "0"]
)
def test_other_names_are_not_this_computer(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:8041", "localhost"),
        ("[::1]:8041", "::1"),
        ("Evil.Example", "evil.example"),
        ("http://a.example:1", "a.example"),
        ("", ""),
        ("[", ""),
        ("user@localhost", "localhost"),
    ],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host


def test_a_request_for_this_computer_is_answered() -> None:
    assert refusal("GET", "localhost:8041", None, ()) == ""
    assert refusal("POST", "127.0.0.1:8041", "http://127.0.0.1:8041", ()) == ""
    assert refusal("POST", "127.0.0.1:8041", None, ()) == ""


def test_a_host_that_the_user_allows_is_answered() -> None:
    assert refusal("GET", "lab.example", None, ["LAB.example"]) == ""


@pytest.mark.parametrize(
    ("method", "host", "origin"),
    [
        ("GET", "evil.example", None),
        ("GET", "", None),
        ("POST", "localhost:8041", "http://evil.example"),
        ("POST", "localhost:8041", "http://localhost:9000"),
        ("POST", "localhost:8041", "null"),
        ("DELETE", "localhost:8041", "http://evil.example"),
    ],
)
def test_other_hosts_and_pages_of_other_sites_are_refused(method: str, host: str, origin: str | None) -> None:
    assert refusal(method, host, origin, ())
