"""The numbers of a comparison equal values that are computed by hand from their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from open_clt.errors import TextError
from open_clt.replacement.comparison import (
    LogitAccumulator,
    LogitComparison,
    cosines,
    predicted_tokens,
    predicting,
    share_recovered,
)
from tests.refusals import refuses

# Predictions over three tokens at three positions; the token after the last position is not known.
ORIGINAL = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [1.0, 1.0, 1.0]]]).log()
REPLACEMENT = torch.tensor([[[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]).log()
TOKENS = torch.tensor([[0, 0, 2]])


def compare_logits(original: Tensor, replacement: Tensor, tokens: Tensor, first: int = 0) -> LogitComparison:
    """Compare logits of shape (batch, position, vocab) at once."""
    accumulator = LogitAccumulator()
    predictions = (predicting(logits, first) for logits in (original, replacement))
    accumulator.update(*predictions, predicted_tokens(tokens, first))
    return accumulator.result()


def test_numbers_equal_those_computed_by_hand() -> None:
    result = compare_logits(ORIGINAL, REPLACEMENT, TOKENS)
    assert result.cross_entropy_original == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2)
    assert result.cross_entropy_replacement == pytest.approx(-(math.log(0.25) + math.log(0.6)) / 2)
    assert result.kl_divergence == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2)
    assert result.top1_agreement == 0.5
    # Centred logits are proportional to (2, -1, -1) and (-1, 2, -1), whose cosine is -1/2.
    assert cosines(ORIGINAL, REPLACEMENT)[0, :2].tolist() == pytest.approx([-0.5, 1])


def test_first_positions_can_be_left_out() -> None:
    result = compare_logits(ORIGINAL, REPLACEMENT, TOKENS, first=1)
    assert result.kl_divergence == pytest.approx(0, abs=1e-6)
    assert result.top1_agreement == 1


def test_a_constant_added_to_all_logits_does_not_change_predictions_or_cosines() -> None:
    result = compare_logits(ORIGINAL, ORIGINAL + 3, TOKENS)
    assert result.kl_divergence == pytest.approx(0, abs=1e-6)
    assert cosines(ORIGINAL, ORIGINAL + 3)[:, :2].tolist() == [pytest.approx([1, 1])]


def test_slices_of_different_sizes_give_the_means_over_all_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    original, replacement = torch.randn(2, 5, 6, 7, generator=generator)
    tokens = torch.randint(0, 7, (5, 6), generator=generator)
    accumulator, next_tokens = LogitAccumulator(), predicted_tokens(tokens, 1)
    predictions = [predicting(logits, 1) for logits in (original, replacement)]
    for rows in torch.arange(len(next_tokens)).split(3):
        accumulator.update(*(logits[rows] for logits in predictions), next_tokens[rows])
    assert accumulator.result() == pytest.approx(compare_logits(original, replacement, tokens, first=1), rel=1e-6)


def test_numbers_keep_their_names_in_files() -> None:
    numbers = LogitComparison(1.0, 2.0, 0.5, 0.75).as_dict()
    assert numbers == {"ce_original": 1.0, "ce_replacement": 2.0, "kl": 0.5, "top1_agreement": 0.75}


def test_a_text_without_a_known_next_token_is_refused() -> None:
    with refuses(TextError, 3, 2):
        compare_logits(ORIGINAL, REPLACEMENT, TOKENS, first=2)


def test_share_recovered_compares_the_replacement_with_the_ablation() -> None:
    assert share_recovered(LogitComparison(1.0, 2.0, 0.0, 1.0), 5.0) == 0.75
    assert share_recovered(LogitComparison(1.0, 1.0, 0.0, 1.0), 1.0) is None
