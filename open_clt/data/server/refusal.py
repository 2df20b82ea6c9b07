"""Refusals: requests that the server does not grant, with the status of HTTP and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final


@final
class Refusal(Exception):
    """A request is refused with a status and a sentence, which never names a path of the server."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}
