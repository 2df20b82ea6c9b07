"""Metrics over batches equal those of all tokens at once, and statistics standardise activations."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from open_clt.config import BatchTopKConfig
from open_clt.transcoders.metrics import DENSITY_EDGES, LayerMetrics, MetricsAccumulator, TranscoderMetrics
from open_clt.transcoders.sparse.codes import dense
from open_clt.transcoders.standardisation import Standardisation, StatisticsEstimator
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses


def whole_batch(transcoder: Transcoder, inputs: Tensor, targets: Tensor) -> tuple[list[float], Tensor]:
    """FVU of each layer and density of each feature, computed from all tokens at once."""
    features, reconstruction = transcoder(inputs)
    error = (reconstruction - targets).square().sum((0, 2))
    fvu = error / (targets - targets.mean(0)).square().sum((0, 2))
    return fvu.tolist(), torch.stack([(dense(layer) > 0).double().mean(0) for layer in features])


@pytest.mark.parametrize("name", ["clt", "molt"])
@torch.no_grad()
def test_metrics_over_batches_equal_those_of_all_tokens_at_once(name: str) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=BatchTopKConfig(k=5)))
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(50, 3, 8, generator=generator) * 3 + 5 for _ in range(2))
    metrics = MetricsAccumulator(transcoder)
    for rows in torch.arange(50).split(7):
        metrics.update(inputs[rows], targets[rows])
    result = metrics.result()
    fvu, density = whole_batch(transcoder, inputs, targets)
    assert result.tokens == metrics.tokens == 50
    assert result.fvu_per_layer == pytest.approx(fvu, rel=1e-5)
    assert result.l0_per_layer == pytest.approx(density.sum(1).tolist())
    assert [layer.dead_share for layer in result.layers] == pytest.approx((density == 0).double().mean(1).tolist())
    assert [layer.dense_share for layer in result.layers] == pytest.approx((density > 0.1).double().mean(1).tolist())
    assert result.dead_share == pytest.approx(float((density == 0).double().mean()))
    assert 0 < result.dead_share < result.dense_share < 1, "the test can tell the two shares apart"
    assert sum(result.density_histogram) == int((density > 0).sum())
    torch.testing.assert_close(metrics.target_means().float(), targets.mean(0))


@torch.no_grad()
def test_a_transcoder_in_training_mode_is_measured_in_inference_mode_and_stays_in_training_mode() -> None:
    transcoder = random_architecture(architecture("clt", nonlinearity=BatchTopKConfig(k=5)))
    inputs, targets = torch.randn(2, 30, 3, 8, generator=torch.Generator().manual_seed(0))
    fvu, _ = whole_batch(transcoder, inputs, targets)
    metrics = MetricsAccumulator(transcoder.train())
    metrics.update(inputs, targets)
    assert metrics.result().fvu_per_layer == pytest.approx(fvu, rel=1e-5)
    assert all(module.training for module in transcoder.modules())


def test_the_dictionary_of_metrics_is_complete_and_json_can_hold_it() -> None:
    layers = (LayerMetrics(0.2, 3.0, 0.0, 0.5), LayerMetrics(0.4, 5.0, 0.5, 0.25))
    numbers = TranscoderMetrics(10, layers, (0,) * (len(DENSITY_EDGES) - 1)).as_dict()
    assert json.loads(json.dumps(numbers)) == numbers
    for name, column in zip(LayerMetrics._fields, zip(*layers, strict=True), strict=True):
        assert numbers[f"{name}_per_layer"] == list(column)
        assert numbers[name] == pytest.approx(sum(column) / 2)
    assert (numbers["tokens"], numbers["worst_fvu"], numbers["worst_layer"], numbers["l0_total"]) == (10, 0.4, 1, 8.0)


def test_standardised_activations_are_centred_with_mean_squared_norm_d_model() -> None:
    raw = torch.randn(400, 3, 5) * torch.tensor([0.1, 1.0, 30.0])[:, None] + 7
    estimator = StatisticsEstimator(3, 5)
    for batch in raw.split(90):
        estimator.update(batch)
    standardisation = Standardisation(3, 5)
    standardisation.set(estimator.statistics(), estimator.statistics())
    standard = standardisation.inputs(raw)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.square().sum(2).mean(0), torch.full((3,), 5.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(standardisation.targets(raw), standard)


def test_metrics_and_statistics_without_tokens_are_refused() -> None:
    with refuses(ValueError):
        MetricsAccumulator(random_architecture(architecture("clt"))).result()
    with refuses(ValueError):
        StatisticsEstimator(1, 1).statistics()
