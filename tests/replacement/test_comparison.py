"""The numbers of a comparison are those of their definitions, on predictions small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from open_clt.errors import TextError
from open_clt.replacement.comparison import compare_logits, share_recovered

# Two positions whose next token is known, three tokens; the last position predicts what nobody knows.
ORIGINAL = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [1.0, 1.0, 1.0]]]).log()
REPLACEMENT = torch.tensor([[[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]).log()
TOKENS = torch.tensor([[0, 0, 2]])


def test_numbers_are_those_worked_out_by_hand() -> None:
    result = compare_logits(ORIGINAL, REPLACEMENT, TOKENS)
    assert result.cross_entropy_original == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2)
    assert result.cross_entropy_replacement == pytest.approx(-(math.log(0.25) + math.log(0.6)) / 2)
    assert result.kl_divergence == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2)
    assert result.top1_agreement == 0.5
    assert result.mean_squared_error == pytest.approx(2 * math.log(2) ** 2 / 6)
    # centred, (2, -1, -1) and (-1, 2, -1) have the cosine -1/2
    assert result.cosine == pytest.approx((-0.5 + 1) / 2)


def test_first_positions_can_be_left_out() -> None:
    result = compare_logits(ORIGINAL, REPLACEMENT, TOKENS, first=1)
    assert result.kl_divergence == pytest.approx(0, abs=1e-6)
    assert result.top1_agreement == 1


def test_a_constant_added_to_logits_changes_no_prediction_and_no_cosine() -> None:
    result = compare_logits(ORIGINAL, ORIGINAL + 3, TOKENS)
    assert result.kl_divergence == pytest.approx(0, abs=1e-6)
    assert result.cosine == pytest.approx(1)
    assert result.mean_squared_error == pytest.approx(9, abs=1e-5)


def test_a_text_without_a_known_next_token_is_refused() -> None:
    with pytest.raises(TextError, match="too short"):
        compare_logits(ORIGINAL, REPLACEMENT, TOKENS, first=2)


def test_share_recovered() -> None:
    assert share_recovered(1.0, 2.0, 5.0) == 0.75
    assert share_recovered(1.0, 1.0, 1.0) is None
