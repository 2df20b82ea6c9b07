"""Conversion to JumpReLU keeps the number of active features and nearly keeps the reconstruction."""

from __future__ import annotations

import pytest
import torch

from open_clt.config import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.to_jumprelu import L0_TOLERANCE, convert_to_jumprelu, selected_counts
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
