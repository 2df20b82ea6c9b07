"""The sparse training step is the dense one: the same losses and gradients, step after step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    LearningConfig,
    NonlinearityConfig,
    TanhSparsityConfig,
    TopKConfig,
)
from open_clt.training.step import losses
from open_clt.training.step.optimization import adam
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.sparse.codes import SparseFeatures
from tests.reference.dense_step import forward_densely

JUMP = JumpReLUConfig(initial_threshold=0.8, bandwidth=0.1)
NONLINEARITIES = [TopKConfig(k=6), JUMP]


def make_transcoder(nonlinearity: NonlinearityConfig) -> CrossLayerTranscoder:
    config = CrossLayerConfig(n_layers=3, n_features=96, d_model=32, nonlinearity=nonlinearity)
    return CrossLayerTranscoder(config, seed=1)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Targets are a fixed function of inputs: there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(32, 32, generator=generator) / 32**0.5
    inputs = [torch.randn(64, 3, 32, generator=generator) for _ in range(count)]
    return [(batch, torch.tanh(batch @ mixing)) for batch in inputs]


def loss_of(transcoder: CrossLayerTranscoder, inputs: Tensor, targets: Tensor, *, densely: bool) -> Tensor:
    if densely:
        features, reconstruction = forward_densely(transcoder, inputs)
        norms = torch.stack([table.flatten(1).norm(dim=1) for table in transcoder.W_dec])
        loss = (targets - reconstruction).square().sum((1, 2)).mean()
    else:
        features, errors, norms = transcoder.errors(inputs, targets, norms=True)
        assert norms is not None
        loss = losses.reconstruction_loss(errors[0])
    return loss + 0.01 * losses.sparsity_loss(features, norms, TanhSparsityConfig(coefficient=0.01))


def curve(transcoder: CrossLayerTranscoder, *, densely: bool) -> list[float]:
    optimizer = adam(transcoder.parameters(), LearningConfig(learning_rate=3e-3))
    found: list[float] = []
    for inputs, targets in batches(50):
        optimizer.zero_grad()
        value = loss_of(transcoder, inputs, targets, densely=densely)
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=["topk", "jumprelu"])
def test_one_step_has_the_loss_and_the_gradients_of_the_dense_one(nonlinearity: NonlinearityConfig) -> None:
    transcoder = make_transcoder(nonlinearity).double()
    inputs, targets = (part.double() for part in batches(1)[0])
    assert all(isinstance(layer, SparseFeatures) for layer in transcoder(inputs).features)
    found, expected = (loss_of(transcoder, inputs, targets, densely=densely) for densely in (False, True))
    torch.testing.assert_close(found, expected)
    parameters = dict(transcoder.named_parameters())
    ours, dense = (torch.autograd.grad(loss, list(parameters.values())) for loss in (found, expected))
    for name, one, other in zip(parameters, ours, dense, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("across_layers", [False, True])
def test_what_is_selected_is_written_densely_where_it_is_much(across_layers: bool) -> None:
    many = BatchTopKConfig(k=40, across_layers=across_layers)
    transcoder = make_transcoder(many).double()
    inputs, targets = (part.double() for part in batches(1)[0])
    features, (errors,), _ = transcoder.errors(inputs, targets)
    assert not any(isinstance(layer, SparseFeatures) for layer in features)
    few = [SparseFeatures.from_dense(layer) for layer in features if isinstance(layer, torch.Tensor)]
    expected = targets - transcoder.decode(few, inputs)
    torch.testing.assert_close(errors, expected)
    assert 0.9 < sum(layer.density for layer in few) / (3 * 40 / 96) <= 1
    found, other = (torch.autograd.grad(e.square().sum(), list(transcoder.W_dec)) for e in (errors, expected))
    for one, two in zip(found, other, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=["topk", "jumprelu"])
def test_loss_curves_of_the_sparse_and_the_dense_step_agree(nonlinearity: NonlinearityConfig) -> None:
    transcoder = make_transcoder(nonlinearity)
    dense = curve(copy.deepcopy(transcoder), densely=True)
    sparse = curve(transcoder, densely=False)
    assert sparse[-1] < 0.9 * sparse[0]
    torch.testing.assert_close(torch.tensor(sparse), torch.tensor(dense), rtol=1e-4, atol=0)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=["topk", "jumprelu"])
def test_in_mixed_precision_only_the_encoder_is_rounded(nonlinearity: NonlinearityConfig) -> None:
    transcoder = make_transcoder(nonlinearity)
    inputs, targets = batches(1)[0]
    exact = loss_of(transcoder, inputs, targets, densely=False)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_of(transcoder, inputs, targets, densely=False)
    rounded.backward()
    torch.testing.assert_close(rounded, exact, rtol=5e-3, atol=0)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in transcoder.parameters())
