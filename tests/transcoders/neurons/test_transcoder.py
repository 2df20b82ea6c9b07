"""Neurons as a transcoder: values, outputs and frozen linear functions of gated and ungated MLPs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from open_clt.config import NeuronConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.neurons.layer import NeuronLayer, OutputNorm
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from tests.refusals import refuses

WIDTH, NEURONS = 6, 9
CASES: dict[str, dict[str, Any]] = {
    "ungated": {},
    "gated": {"gated": True},
    "factor": {"factor": 0.5},
    "norm": {"gated": True, "norm": True},
}


def layer(
    generator: torch.Generator,
    *,
    gated: bool = False,
    norm: bool = False,
    factor: float = 1.0,
    activation: Callable[[Tensor], Tensor] = functional.gelu,
) -> NeuronLayer:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return NeuronLayer(
        W_in=draw(NEURONS, WIDTH),
        b_in=draw(NEURONS),
        W_gate=draw(NEURONS, WIDTH) if gated else None,
        b_gate=draw(NEURONS) if gated else None,
        W_out=draw(NEURONS, WIDTH),
        b_out=draw(WIDTH),
        activation=activation,
        factor=factor,
        norm=OutputNorm(draw(WIDTH), draw(WIDTH), 1e-5, centred=True) if norm else None,
    )


def transcoder(**settings: Any) -> NeuronTranscoder:
    generator = torch.Generator().manual_seed(0)
    config = NeuronConfig(n_layers=2, n_features=NEURONS, d_model=WIDTH, gated=settings.get("gated", False))
    return NeuronTranscoder(config, [layer(generator, **settings) for _ in range(2)]).eval()


def mlp(of: NeuronLayer, inputs: Tensor) -> Tensor:
    """The output of an MLP, as it is usually written."""
    up = functional.linear(inputs, of.W_in, of.b_in)
    gate = up if of.W_gate is None else functional.linear(inputs, of.W_gate, of.b_gate)
    values = functional.gelu(gate) if of.W_gate is None else functional.gelu(gate) * up
    output = functional.linear(values, of.W_out.T, of.b_out) * of.factor
    if of.norm is None:
        return output
    return functional.layer_norm(output, (WIDTH,), of.norm.weight, of.norm.bias, of.norm.eps)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES)
def test_the_reconstruction_is_the_output_of_the_mlp(case: str) -> None:
    neurons, inputs = transcoder(**CASES[case]), torch.randn(5, 2, WIDTH)
    expected = torch.stack([mlp(of, inputs[:, index]) for index, of in enumerate(neurons.layers)], dim=1)
    torch.testing.assert_close(neurons(inputs).reconstruction, expected)
    assert neurons.errors(inputs, expected).errors[0].norm() < 1e-5 * expected.norm()
    vectors = [
        neurons.vectors(inputs[:, 1], 1, 1, features=torch.arange(NEURONS), positions=torch.full((NEURONS,), token))
        for token in range(5)
    ]
    values = neurons.encode_layer(inputs[:, 1], 1).dense()
    by_neuron = torch.einsum("bf,bfd->bd", values, torch.stack(vectors)) + neurons.offset(inputs[:, 1], 1)
    torch.testing.assert_close(by_neuron, expected[:, 1])


@pytest.mark.parametrize("case", CASES)
def test_frozen_neurons_are_linear_and_equal_their_values_less_the_share_of_the_bias(case: str) -> None:
    neurons, chosen = transcoder(**CASES[case]), torch.arange(NEURONS)
    of, inputs = neurons.layers[0], torch.randn(1, WIDTH).expand(NEURONS, WIDTH)
    parts = of.parts(inputs[:1])
    rows = neurons.target_rows(inputs, 0, chosen)
    of_pre, of_up = of.slopes(parts)
    assert of.b_in is not None
    total = of_pre * (parts.pre - (of.b_in if of.b_gate is None else of.b_gate))
    if of_up is not None and parts.up is not None:
        total = total + of_up * (parts.up - of.b_in)
        torch.testing.assert_close(of_pre * parts.pre + of_up * parts.up, parts.value)
    else:
        torch.testing.assert_close(of_pre * parts.pre, parts.value)
    torch.testing.assert_close((rows * inputs).sum(-1), total[0])
    after = torch.randn(1, WIDTH)
    expected = ((after - inputs[:1]) * rows).sum(-1)
    torch.testing.assert_close(neurons.linear_change(inputs[:1], after, 0, chosen)[0], expected)


@pytest.mark.parametrize(
    ("activation", "slope"), [(functional.gelu, 0.5), (functional.silu, 0.5), (torch.tanh, 1.0), (torch.square, 0.0)]
)
def test_a_gate_at_zero_is_the_slope_of_the_activation_function(
    activation: Callable[[Tensor], Tensor], slope: float
) -> None:
    of = layer(torch.Generator().manual_seed(0), activation=activation)
    assert of.b_in is not None
    inputs = torch.linalg.lstsq(of.W_in[:WIDTH], -of.b_in[:WIDTH, None]).solution.T  # some pre-activations are zero
    parts = of.parts(inputs, torch.arange(WIDTH))
    assert parts.pre.abs().max() < 1e-5
    gates, _ = of.slopes(parts)
    torch.testing.assert_close(gates, torch.full_like(gates, slope), atol=1e-4, rtol=0)


def test_neurons_are_neither_copied_nor_saved_nor_changed(tmp_path: Any) -> None:
    neurons = transcoder()
    assert copy.deepcopy(neurons) is neurons
    assert neurons.folded() is neurons
    assert not list(neurons.parameters())
    for refused in (lambda: neurons.W_enc, neurons.state_dict, neurons.with_unit_decoders):
        with refuses(ConfigError, "neurons"):
            refused()
    with refuses(ConfigError, "neurons", "saved"):
        save_transcoder(neurons, tmp_path / "neurons")
    assert not (tmp_path / "neurons").exists()
