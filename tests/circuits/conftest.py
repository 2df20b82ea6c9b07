"""The embedded model with its transcoder, and a short text that both have read."""

from __future__ import annotations

import pytest

from open_clt.circuits.encoded_text import EncodedText
from open_clt.embedded.held_out import HeldOutText
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder


@pytest.fixture(scope="session")
def clt() -> OpenCrossLayerTranscoder:
    return OpenCrossLayerTranscoder.from_pretrained("embedded")


@pytest.fixture(scope="session")
def short_text(clt: OpenCrossLayerTranscoder) -> EncodedText:
    contexts = HeldOutText(max_tokens=800).contexts(clt.language_model)
    return EncodedText(clt.language_model, clt.transcoder, contexts)


@pytest.fixture(scope="session")
def long_text(clt: OpenCrossLayerTranscoder) -> EncodedText:
    contexts = HeldOutText(max_tokens=160_000).contexts(clt.language_model)
    return EncodedText(clt.language_model, clt.transcoder, contexts)
