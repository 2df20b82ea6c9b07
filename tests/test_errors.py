"""An error's message is one line of at most 300 characters that keeps what it names."""

from __future__ import annotations

import pytest

from open_clt.errors import OpenCLTError


@pytest.mark.parametrize("message", ["", "short", "two\nlines\tand a tab", "x" * 300])
def test_a_short_message_is_kept_on_one_line(message: str) -> None:
    assert str(OpenCLTError(message)) == " ".join(message.split())


@pytest.mark.parametrize("message", ["word " * 1000, "x" * 10_000, f"{'/folder' * 50}/name.json is damaged. " * 9])
def test_a_long_message_is_cut(message: str) -> None:
    assert 90 <= len(str(OpenCLTError(message))) <= 300


def test_long_paths_are_cut_before_the_sentence() -> None:
    paths = [f"/{name}/{'folder/' * 40}graph.json" for name in "ab"]
    message = str(OpenCLTError(f"{paths[0]} and {paths[1]} are two graphs of one prompt. Give the path of one graph."))
    assert message.startswith("/a/folder/")
    assert "/graph.json and /b/folder/" in message
    assert message.endswith("/graph.json are two graphs of one prompt. Give the path of one graph.")
