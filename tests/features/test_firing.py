"""Feature activity on texts: activations and statistics equal those of the transcoder on one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from open_clt.config import CrossLayerConfig, FixedJumpReLUConfig
from open_clt.errors import TextError
from open_clt.features.firing import (
    ActivationStatistics,
    activation_statistics,
    activations_of,
    cross_layer_correlations,
    feature_activations,
    feature_importance,
    layer_activity,
    most_important,
    top_features,
)
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.nonlinearities import FixedJumpReLU
from tests.refusals import refuses
from tests.tiny_models import TEXTS

TEXT = TEXTS[0]


@pytest.fixture(scope="module")
def transcoder(tiny_gpt2: LanguageModel) -> CrossLayerTranscoder:
    """A transcoder of which every third feature may be active with a negative value."""
    transcoder = CrossLayerTranscoder(
        CrossLayerConfig(
            n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, n_features=20, nonlinearity=FixedJumpReLUConfig()
        ),
        seed=3,
    )
    assert isinstance(transcoder.nonlinearity, FixedJumpReLU)
    transcoder.nonlinearity.thresholds.fill_(1.0)[:, ::3] = -1.0
    return transcoder


@pytest.fixture(scope="module")
def statistics(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder) -> ActivationStatistics:
    return activation_statistics(tiny_gpt2, transcoder, TEXTS * 3, context_length=16, batch_size=4)


def slow_activations(model: LanguageModel, transcoder: CrossLayerTranscoder, tokens: torch.Tensor) -> torch.Tensor:
    """Activations (position, layer, feature) of a context, one token at a time; zeros at the first position."""
    inputs = model.capture(tokens[None], transcoder.config.input_hook).inputs[0]
    activations = torch.zeros(len(tokens), transcoder.config.n_layers, transcoder.config.n_features)
    for position in range(1, len(tokens)):
        for layer, features in enumerate(transcoder.encode(inputs[position][None])):
            activations[position, layer] = features.dense()[0].detach()
    return activations


def test_activations_of_a_text_equal_the_transcoders(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder
) -> None:
    activations = feature_activations(tiny_gpt2, transcoder, TEXT)
    tokens = tiny_gpt2.tokenize(TEXT)
    assert activations.tokens == tuple(tiny_gpt2.token_strings(tokens))
    expected = slow_activations(tiny_gpt2, transcoder, tokens)
    assert expected.count_nonzero() > 20
    torch.testing.assert_close(activations.dense(), expected, rtol=1e-4, atol=1e-5)
    keys = [Feature(0, 3), Feature(2, 7), Feature(0, 3)]
    of_keys = torch.stack([expected[:, layer, feature] for layer, feature in keys])
    torch.testing.assert_close(activations.of(keys), of_keys, rtol=1e-4, atol=1e-5)
    written = (expected.abs() * transcoder.decoder_norms().detach()).sum(2).T
    torch.testing.assert_close(layer_activity(activations, transcoder), written, rtol=1e-4, atol=1e-4)


def test_top_features_are_those_of_a_full_sort(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder) -> None:
    activations = feature_activations(tiny_gpt2, transcoder, TEXT)
    peaks = activations.dense().abs().amax(0)
    expected = peaks.flatten().sort(descending=True).values[:8]
    top = top_features(activations, 8)
    assert [abs(entry.activation) for entry in top] == pytest.approx(expected.tolist())
    assert len({entry.feature for entry in top}) == 8
    for entry in top:
        assert activations.dense()[entry.position, *entry.feature] == pytest.approx(entry.activation)
        assert activations.tokens[entry.position] == entry.token
    assert len(top_features(activations, 10_000)) == int((peaks > 0).sum())


def test_a_single_token_is_refused(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder) -> None:
    with refuses(TextError):
        feature_activations(tiny_gpt2, transcoder, torch.tensor([1]))


def test_statistics_in_batches_equal_those_of_all_tokens_at_once(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, statistics: ActivationStatistics
) -> None:
    contexts = statistics.contexts
    activations = torch.stack([slow_activations(tiny_gpt2, transcoder, context) for context in contexts])
    tokens = activations[:, 1:].flatten(0, 1)
    assert statistics.tokens == len(tokens)
    assert (tokens < 0).sum() > 20
    torch.testing.assert_close(statistics.density, (tokens != 0).float().mean(0))
    torch.testing.assert_close(statistics.mean, tokens.abs().mean(0), rtol=1e-4, atol=1e-5)
    norms = transcoder.decoder_norms().detach()
    torch.testing.assert_close(statistics.activity, (tokens.abs() * norms).sum(2), rtol=1e-4, atol=1e-4)


def test_activations_of_chosen_features_agree_with_the_statistics(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, statistics: ActivationStatistics
) -> None:
    keys = [Feature(2, 5), Feature(0, 0), Feature(1, 13)]
    columns = activations_of(tiny_gpt2, transcoder, statistics.contexts, keys, batch_size=3)
    assert len(columns) == statistics.tokens
    torch.testing.assert_close(columns.abs().mean(0), torch.stack([statistics.mean[key] for key in keys]))


def test_importance_is_the_share_of_a_feature_in_what_is_written(
    transcoder: CrossLayerTranscoder, statistics: ActivationStatistics
) -> None:
    importance = feature_importance(statistics, transcoder)
    assert importance.sum() == pytest.approx(1, abs=1e-5)
    per_layer = statistics.activity.mean(0) / statistics.activity.mean(0).sum()
    torch.testing.assert_close(importance.sum(1), per_layer, rtol=1e-4, atol=1e-5)
    first, second = most_important(importance, 2)
    assert importance[first] == importance.max()
    assert importance[second] <= importance[first]
    assert most_important(torch.tensor([[0.0, 0.3], [0.7, 0.0]]), 4) == [(1, 0), (0, 1)]


def test_correlations_equal_a_double_loop() -> None:
    columns = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    columns[:, 3] = -2 * columns[:, 1] + 5
    columns[:, 4] = 0.1  # a constant that is not exact in binary
    correlations = cross_layer_correlations(columns)
    values = columns.double().numpy()
    for i in range(6):
        for j in range(6):
            if 4 in (i, j):
                expected = float(i == j)
            else:
                x, y = values[:, i] - values[:, i].mean(), values[:, j] - values[:, j].mean()
                expected = np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y))
            assert correlations[i, j] == pytest.approx(expected, abs=1e-6)
    assert correlations[1, 3] == pytest.approx(-1)
