"""The sparse training step equals the dense one: it has the same losses and gradients in every step."""

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
    """Batches of inputs, and of targets that are a fixed function of the inputs and can be learned."""
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


def loss_curve(transcoder: CrossLayerTranscoder, *, densely: bool) -> list[float]:
    optimizer = adam(transcoder.parameters(), LearningConfig(learning_rate=3e-3))
    curve: list[float] = []
    for inputs, targets in batches(50):
        optimizer.zero_grad()
        loss = loss_of(transcoder, inputs, targets, densely=densely)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=["topk", "jumprelu"])
def test_one_step_has_the_loss_and_the_gradients_of_the_dense_one(nonlinearity: NonlinearityConfig) -> None:
    transcoder = make_transcoder(nonlinearity).double()
    inputs, targets = (tensor.double() for tensor in batches(1)[0])
    assert all(isinstance(layer, SparseFeatures) for layer in transcoder(inputs).features)
    sparse_loss, dense_loss = (loss_of(transcoder, inputs, targets, densely=densely) for densely in (False, True))
    torch.testing.assert_close(sparse_loss, dense_loss)
    parameters = dict(transcoder.named_parameters())
    sparse_gradients, dense_gradients = (
        torch.autograd.grad(loss, list(parameters.values())) for loss in (sparse_loss, dense_loss)
    )
    for name, sparse, dense in zip(parameters, sparse_gradients, dense_gradients, strict=True):
        torch.testing.assert_close(sparse, dense, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("across_layers", [False, True])
def test_selected_features_are_written_densely_if_they_are_many(across_layers: bool) -> None:
    transcoder = make_transcoder(BatchTopKConfig(k=40, across_layers=across_layers)).double()
    inputs, targets = (tensor.double() for tensor in batches(1)[0])
    features, (errors,), _ = transcoder.errors(inputs, targets)
    assert not any(isinstance(layer, SparseFeatures) for layer in features)
    sparse = [SparseFeatures.from_dense(layer) for layer in features if isinstance(layer, torch.Tensor)]
    expected = targets - transcoder.decode(sparse, inputs)
    torch.testing.assert_close(errors, expected)
    assert 0.9 < sum(layer.density for layer in sparse) / (3 * 40 / 96) <= 1
    actual_gradients, expected_gradients = (
        torch.autograd.grad(error.square().sum(), list(transcoder.W_dec)) for error in (errors, expected)
    )
    torch.testing.assert_close(actual_gradients, expected_gradients)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=["topk", "jumprelu"])
def test_loss_curves_of_the_sparse_and_the_dense_step_agree(nonlinearity: NonlinearityConfig) -> None:
    transcoder = make_transcoder(nonlinearity)
    dense = loss_curve(copy.deepcopy(transcoder), densely=True)
    sparse = loss_curve(transcoder, densely=False)
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
