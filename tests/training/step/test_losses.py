"""Losses follow their equations: each is compared with a plain loop over tokens, layers and features."""

from __future__ import annotations

import math

import pytest
import torch

from open_clt.config import L1SparsityConfig, SparsityConfig, TanhSparsityConfig
from open_clt.training.step import losses
from open_clt.transcoders.sparse.codes import SparseFeatures

TOKENS, LAYERS, FEATURES, D_MODEL = 5, 3, 7, 4
TANH, L1 = TanhSparsityConfig(coefficient=1.0, steepness=4.0), L1SparsityConfig(coefficient=1.0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def features(generator: torch.Generator) -> torch.Tensor:
    """Features of which some are active with a negative value."""
    values = torch.randn(TOKENS, LAYERS, FEATURES, generator=generator)
    return values * (values > -0.5)


@pytest.fixture
def norms(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(LAYERS, FEATURES, generator=generator)


def test_reconstruction_is_the_squared_error_per_token(generator: torch.Generator) -> None:
    errors = torch.randn(TOKENS, LAYERS, D_MODEL, generator=generator)
    total = 0.0
    for token in errors:
        for layer in token:
            for value in layer:
                total += value.item() ** 2
    assert losses.reconstruction_loss(errors).item() == pytest.approx(total / TOKENS, rel=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_sparsity_is_the_sum_of_tanh_over_features(features: torch.Tensor, norms: torch.Tensor, sparse: bool) -> None:
    total = 0.0
    for token in features:
        for layer in range(LAYERS):
            for feature in range(FEATURES):
                total += math.tanh(4.0 * norms[layer, feature].item() * abs(token[layer, feature].item()))
    layers = [SparseFeatures.from_dense(layer) if sparse else layer for layer in features.unbind(1)]
    assert losses.sparsity_loss(layers, norms, TANH).item() == pytest.approx(total / TOKENS, rel=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_l1_is_the_sum_of_what_features_write(features: torch.Tensor, norms: torch.Tensor, sparse: bool) -> None:
    total = 0.0
    for token in features:
        for layer in range(LAYERS):
            for feature in range(FEATURES):
                total += norms[layer, feature].item() * abs(token[layer, feature].item())
    layers = [SparseFeatures.from_dense(layer) if sparse else layer for layer in features.unbind(1)]
    assert losses.sparsity_loss(layers, norms, L1).item() == pytest.approx(total / TOKENS, rel=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_distance_prices_what_a_feature_writes_to_each_later_layer(
    features: torch.Tensor, generator: torch.Generator, sparse: bool
) -> None:
    tables = [torch.randn(FEATURES, LAYERS - layer, D_MODEL, generator=generator) for layer in range(LAYERS)]
    total = 0.0
    for token in features:
        for source in range(LAYERS):
            for feature in range(FEATURES):
                for distance, decoder in enumerate(tables[source][feature]):
                    total += distance * decoder.square().sum().sqrt().item() * abs(token[source, feature].item())
    layers = [SparseFeatures.from_dense(layer) if sparse else layer for layer in features.unbind(1)]
    assert losses.distance_loss(layers, tables).item() == pytest.approx(total / TOKENS, rel=1e-5)


def test_the_matryoshka_loss_is_the_sum_over_prefixes(generator: torch.Generator) -> None:
    errors = torch.randn(3, TOKENS, LAYERS, D_MODEL, generator=generator)
    total = sum(value.item() ** 2 for value in errors.flatten())
    assert losses.matryoshka_loss(list(errors)).item() == pytest.approx(total / TOKENS, rel=1e-5)


@pytest.mark.parametrize("penalty", [TANH, L1], ids=lambda penalty: penalty.kind)
def test_a_batch_twice_as_large_has_the_same_loss(
    features: torch.Tensor, norms: torch.Tensor, penalty: SparsityConfig
) -> None:
    once = losses.sparsity_loss(list(features.unbind(1)), norms, penalty)
    twice = losses.sparsity_loss(list(features.repeat(2, 1, 1).unbind(1)), norms, penalty)
    torch.testing.assert_close(once, twice)
    errors = features[..., :D_MODEL]
    torch.testing.assert_close(losses.reconstruction_loss(errors), losses.reconstruction_loss(errors.repeat(2, 1, 1)))


def test_preactivation_loss_counts_what_is_below_the_threshold(generator: torch.Generator) -> None:
    pre = torch.randn(TOKENS, FEATURES, generator=generator)
    thresholds, norms = torch.rand(2, FEATURES, generator=generator)
    total = 0.0
    for token in pre:
        for feature in range(FEATURES):
            total += max(thresholds[feature].item() - token[feature].item(), 0.0) * norms[feature].item()
    assert losses.preactivation_loss(pre, thresholds, norms).item() == pytest.approx(total / TOKENS, rel=1e-5)


def test_auxk_uses_the_most_active_dead_features_and_no_others(generator: torch.Generator) -> None:
    pre = torch.randn(TOKENS, 4, generator=generator)
    dead = torch.tensor([1, 2, 4, 6])
    top = losses.top_dead_features(pre, dead, k=2, n_features=FEATURES).dense()
    for token in range(TOKENS):
        best = sorted(range(4), key=lambda index: -pre[token, index].item())[:2]
        expected = torch.zeros(FEATURES)
        for index in best:
            expected[dead[index]] = pre[token, index]
        torch.testing.assert_close(top[token], expected)


def test_auxiliary_loss_pulls_on_dead_features_only(generator: torch.Generator) -> None:
    errors = torch.randn(TOKENS, LAYERS, D_MODEL, generator=generator, requires_grad=True)
    written = torch.randn(TOKENS, LAYERS, D_MODEL, generator=generator, requires_grad=True)
    losses.auxiliary_loss(errors, written).backward()
    assert errors.grad is None
    torch.testing.assert_close(written.grad, 2 * (written - errors).detach() / TOKENS)
