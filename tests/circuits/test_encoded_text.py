"""Encoded text: its sparse tables say what slow loops over the tokens say."""

from __future__ import annotations

import pytest
import torch

from open_clt.circuits.encoded_text import REACH, EncodedText
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from tests.reference import naive_nearby_words as naive

CHOSEN = [Feature(0, 35), Feature(2, 244), Feature(4, 128), Feature(0, 610)]
WORDS = ("is", "the", "capital")


def test_nearby_words_are_those_of_slow_loops(clt: OpenCrossLayerTranscoder, short_text: EncodedText) -> None:
    model, contexts = clt.language_model, short_text.contexts
    nearby = short_text.nearby(CHOSEN)
    columns = naive.columns(model, clt.transcoder, contexts, CHOSEN)
    for word in WORDS:
        near = naive.is_near(model, contexts, word, REACH).double()
        number = nearby.words.index(word)
        assert float(nearby.chance[number]) == pytest.approx(float(near.mean()))
        for row in range(len(CHOSEN)):
            expected = naive.covariance(columns[:, row], near)
            assert float(nearby.with_words[row, number]) == pytest.approx(expected, abs=1e-6)
    for first in range(len(CHOSEN)):
        expected = naive.covariance(columns[:, first], columns[:, 0])
        assert float(nearby.covariance[first, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_area_is_the_share_of_pairs_in_the_right_order(
    clt: OpenCrossLayerTranscoder, short_text: EncodedText
) -> None:
    direction = torch.tensor([1.0, 0.5, -0.25, 2.0])
    near = naive.is_near(clt.language_model, short_text.contexts, "capital", REACH)
    values = naive.columns(clt.language_model, clt.transcoder, short_text.contexts, CHOSEN) @ direction.double()
    found, count = short_text.tells(CHOSEN, direction, "capital")
    assert count == int(near.sum()) > 0
    rounded = [round(value, 5) for value in values.tolist()]
    assert found == pytest.approx(naive.area(rounded, near.tolist()), abs=1e-3)


def test_support_is_the_mean_share_of_tokens_near_a_word(
    clt: OpenCrossLayerTranscoder, short_text: EncodedText
) -> None:
    model, contexts = clt.language_model, short_text.contexts
    anchors, words = ["is", "capital", "of"], ["is", "the", "state"]
    strings = [text.strip() for text in model.token_strings(contexts.flatten())]
    for word, measured in zip(
        words, short_text.support([" is", "capital", " of", "of", "no token"], words), strict=True
    ):
        near = naive.is_near(model, contexts, word, REACH).tolist()
        shares = [
            [is_near for is_near, string in zip(near, strings, strict=True) if string == anchor]
            for anchor in anchors
            if anchor != word
        ]
        assert all(shares), "the text has every anchor"
        expected = sum(sum(share) / len(share) for share in shares) / len(shares)
        assert 0 < expected < 1
        assert float(measured) == pytest.approx(expected)


def test_a_word_without_any_other_token_has_no_support(short_text: EncodedText) -> None:
    assert short_text.support(["is", "no token"], ["is"]).tolist() == [0.0]
    assert short_text.support([], ["is", "the"]).tolist() == [0.0, 0.0]


def test_a_word_that_the_text_lacks_is_near_no_token(short_text: EncodedText) -> None:
    assert short_text.tells(CHOSEN, torch.ones(4), "no such word") == (0.5, 0)


def test_shares_of_features_add_up_to_the_rise_of_a_regression(short_text: EncodedText) -> None:
    nearby = short_text.nearby(CHOSEN)
    change = torch.tensor([1.0, 0.0, 2.0])
    rise = nearby.rise([0, 1, 3], change)
    among = nearby.covariance[[0, 1, 3]][:, [0, 1, 3]]
    system = among + torch.diag(among.diagonal())
    weights = torch.linalg.solve(system, nearby.with_words[[0, 1, 3]])
    assert torch.allclose(rise.sum(0), change.double() @ weights, atol=1e-6)
    assert rise[1].abs().max() == 0
