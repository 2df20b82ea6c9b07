"""Streaming metrics equal those of all tokens at once; statistics standardise."""

from __future__ import annotations

import pytest
import torch

from open_clt.models.metrics import MetricsAccumulator
from open_clt.models.sparse import SparseFeatures
from open_clt.models.standardisation import Standardisation, StatisticsEstimator


def test_fvu_l0_and_dead_share_of_batches_equal_those_of_the_whole() -> None:
    torch.manual_seed(0)
    targets, noise = torch.randn(50, 2, 4) * 3 + 5, torch.randn(50, 2, 4)
    codes = torch.rand(50, 2, 6) * (torch.rand(50, 2, 6) < 0.3)
    codes[:, 1, 2:] = 0
    metrics = MetricsAccumulator(2, 6, 4)
    for part in torch.arange(50).split(7):
        layers = [SparseFeatures.from_dense(codes[part, layer]) for layer in range(2)]
        metrics.update(layers, (targets + noise)[part], targets[part])
    result = metrics.result()
    variance = (targets - targets.mean(0)).square().sum((0, 2))
    assert result.fvu_per_layer == pytest.approx((noise.square().sum((0, 2)) / variance).tolist(), rel=1e-4)
    assert result.l0_per_layer == pytest.approx((codes > 0).sum((0, 2)).div(50).tolist())
    assert result.dead_share == pytest.approx(4 / 12)
    assert result.worst_fvu == max(result.fvu_per_layer)


def test_standardised_activations_are_centred_with_mean_squared_norm_d() -> None:
    raw = torch.randn(400, 3, 5) * torch.tensor([0.1, 1.0, 30.0])[:, None] + 7
    estimator = StatisticsEstimator(3, 5)
    for part in raw.split(90):
        estimator.update(part)
    standardisation = Standardisation(3, 5)
    standardisation.set(estimator.statistics(), estimator.statistics())
    standard = standardisation.inputs(raw)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.square().sum(2).mean(0), torch.full((3,), 5.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(standardisation.targets(raw), standard)


def test_no_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="No token"):
        MetricsAccumulator(1, 1, 1).result()
    with pytest.raises(ValueError, match="No token"):
        StatisticsEstimator(1, 1).statistics()
