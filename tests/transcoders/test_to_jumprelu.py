"""Conversion to JumpReLU keeps the number of active features and nearly keeps the reconstruction."""

from __future__ import annotations

import pytest
import torch

from open_clt.config import (
    BatchTopKConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    ThresholdConfig,
    TopKConfig,
)
from open_clt.errors import ConfigError
from open_clt.transcoders.nonlinearities import JumpReLU
from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.to_jumprelu import (
    L0_TOLERANCE,
    THRESHOLD_QUANTILES,
    Conversion,
    convert_to_jumprelu,
    selected_counts,
)
from tests.random_transcoders import architecture, random_architecture
from tests.refusals import refuses

RANKED: list[NonlinearityConfig] = [
    TopKConfig(k=5),
    TopKConfig(k=5, across_layers=True),
    BatchTopKConfig(k=5),
    BatchTopKConfig(k=5, across_layers=True),
]


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(4000, 3, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["clt", "matryoshka sae", "molt"])
@pytest.mark.parametrize("nonlinearity", RANKED, ids=str)
def test_conversion_keeps_the_l0_of_the_selection_by_rank(
    name: str, nonlinearity: NonlinearityConfig, inputs: torch.Tensor
) -> None:
    transcoder = random_architecture(architecture(name, nonlinearity=nonlinearity))
    targets = transcoder(inputs).reconstruction + torch.randn_like(inputs)
    before = {key: tensor.clone() for key, tensor in transcoder.state_dict().items()}
    conversion = convert_to_jumprelu(transcoder, inputs, targets)
    assert isinstance(conversion.transcoder.config.nonlinearity, JumpReLUConfig)
    assert sum(conversion.aim_per_layer) / 3 == pytest.approx(5, rel=0.01)
    assert conversion.l0_error < L0_TOLERANCE
    assert conversion.after.fvu < conversion.before.fvu + 0.2
    fresh = torch.randn(4000, 3, 8, generator=torch.Generator().manual_seed(1))
    counts = torch.stack([active_counts(layer) for layer in conversion.transcoder.encode(fresh)])
    assert counts.sum() / (3 * 4000) == pytest.approx(5, rel=0.05)
    assert all(torch.equal(tensor, before[key]) for key, tensor in transcoder.state_dict().items())
    assert f"{conversion.l0_error:.2%}" in conversion.summary()


def test_each_feature_fires_about_as_often_as_before(inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture("clt"))
    converted = convert_to_jumprelu(transcoder, inputs, inputs).transcoder
    fresh = torch.randn(4000, 3, 8, generator=torch.Generator().manual_seed(1))
    before = selected_counts(transcoder, fresh).float()
    after = torch.stack([active_counts(layer) for layer in converted.encode(fresh)]).float()
    assert (before - after).abs().mean() < 0.1 * before.mean()


def _thresholds(conversion: Conversion) -> torch.Tensor:
    nonlinearity = conversion.transcoder.nonlinearity
    assert isinstance(nonlinearity, JumpReLU)
    return nonlinearity.log_threshold.exp()


def test_the_thresholds_are_stated_for_each_layer(inputs: torch.Tensor) -> None:
    conversion = convert_to_jumprelu(random_architecture(architecture("clt")), inputs, inputs)
    thresholds = _thresholds(conversion)
    shares = torch.tensor(THRESHOLD_QUANTILES)
    for layer, stated in zip(thresholds, conversion.thresholds, strict=True):
        expected = torch.quantile(layer, shares, interpolation="nearest")
        torch.testing.assert_close(torch.tensor(stated.quantiles), expected, rtol=1e-4, atol=0)
        assert 0.8 < stated.factor < 1.25
    lines = conversion.threshold_table().splitlines()[-3:]
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert f"{conversion.thresholds[2].quantiles[3]:.3g}" in lines[2].split()


def test_a_scale_factor_replaces_the_factors_that_keep_the_l0(inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture("clt"))
    plain = convert_to_jumprelu(transcoder, inputs, inputs)
    for factor in (1.0, 2.0):
        scaled = convert_to_jumprelu(transcoder, inputs, inputs, thresholds=ThresholdConfig(scale_factor=factor))
        assert [layer.factor for layer in scaled.thresholds] == [factor] * 3
        factors = torch.tensor([factor / layer.factor for layer in plain.thresholds])[:, None]
        torch.testing.assert_close(_thresholds(scaled), _thresholds(plain) * factors)
    assert sum(scaled.after.l0_per_layer) < 0.7 * sum(plain.after.l0_per_layer)
    assert "NOT within" in scaled.summary()


def test_features_that_are_never_active_get_the_default_threshold(inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture("clt"))
    with torch.no_grad():
        transcoder.b_enc[1, :3] = -100  # no token selects these three features
    plain = convert_to_jumprelu(transcoder, inputs, inputs)
    given = convert_to_jumprelu(transcoder, inputs, inputs, thresholds=ThresholdConfig(default_threshold=0.25))
    for layer, (default, own) in enumerate(zip(_thresholds(given), _thresholds(plain), strict=True)):
        never_active = selected_counts(transcoder, inputs[:2000])[layer] == 0
        assert int(never_active.sum()) == plain.thresholds[layer].never_active == given.thresholds[layer].never_active
        torch.testing.assert_close(default[never_active], torch.full_like(own[never_active], 0.25))
        scaled = given.thresholds[layer].factor / plain.thresholds[layer].factor
        torch.testing.assert_close(default[~never_active], own[~never_active] * scaled)
    assert plain.thresholds[1].never_active >= 3


def test_a_default_threshold_that_is_often_passed_keeps_the_l0(inputs: torch.Tensor) -> None:
    """Features whose pre-activation is rarely among the largest are never selected, but pass a low threshold."""
    transcoder = random_architecture(architecture("clt", nonlinearity=TopKConfig(k=5)))
    with torch.no_grad():
        transcoder.b_enc[0, 0] = -0.9 * float(transcoder.preactivations_of(inputs[:, 0], 0, torch.arange(1)).max())
    settings = ThresholdConfig(default_threshold=1e-3)
    conversion = convert_to_jumprelu(transcoder, inputs, inputs, thresholds=settings)
    assert conversion.thresholds[0].never_active >= 1
    assert conversion.l0_error < L0_TOLERANCE


@pytest.mark.parametrize("name", ["scale_factor", "default_threshold"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_illegal_settings_of_thresholds_are_named(name: str, value: float) -> None:
    with refuses(ConfigError, name):
        ThresholdConfig(**{name: value})


def test_a_converted_transcoder_can_be_folded_and_have_unit_decoders(inputs: torch.Tensor) -> None:
    transcoder = random_architecture(architecture("clt"))
    converted = convert_to_jumprelu(transcoder, inputs, inputs).transcoder
    unit = converted.folded().with_unit_decoders()
    expected = converted(inputs[:50]).reconstruction
    torch.testing.assert_close(unit(inputs[:50]).reconstruction, expected, atol=1e-3, rtol=1e-3)


def test_other_nonlinearities_and_too_few_tokens_are_refused(inputs: torch.Tensor) -> None:
    with refuses(ConfigError, "relu", "topk", "batchtopk"):
        convert_to_jumprelu(random_architecture(architecture("clt", nonlinearity=ReLUConfig())), inputs, inputs)
    with refuses(ConfigError, 1):
        convert_to_jumprelu(random_architecture(architecture("clt")), inputs[:1], inputs[:1])
