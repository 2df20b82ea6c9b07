"""Fixtures of all tests of commands: language models are loaded once, and the user's cache is not used."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from open_clt import open_cross_layer_transcoder as facade
from open_clt.language import language_model

_load_once = cache(language_model.load_language_model)


@pytest.fixture(autouse=True)
def models_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: Any, device: str = "cpu", dtype: str = "float32") -> language_model.LanguageModel:
        return _load_once(str(name), device, dtype)

    monkeypatch.setattr(language_model, "load_language_model", load)
    monkeypatch.setattr(facade, "load_language_model", load)


@pytest.fixture(autouse=True)
def cache_is_empty(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_CLT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, also if the suite runs in the background, where it is ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)
