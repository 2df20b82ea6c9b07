"""Each nonlinearity against its definition; straight-through gradients against their formula."""

from __future__ import annotations

import pytest
import torch

from open_clt.config import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from open_clt.models.nonlinearities import BatchTopK, JumpReLU, make_nonlinearity
from tests.reference.dense_transcoder import topk_by_loops


def apply(config: NonlinearityConfig, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
    nonlinearity = make_nonlinearity(config, 1, pre.shape[1]).train(training)
    selected = nonlinearity.select(pre, 0)
    return selected.with_values(nonlinearity.values(selected.values, selected.features, 0)).dense()


def test_relu_keeps_what_is_positive() -> None:
    pre = torch.randn(5, 8)
    assert torch.equal(apply(ReLUConfig(), pre), pre.clamp(min=0))


def test_jumprelu_keeps_what_exceeds_its_threshold_training_or_not() -> None:
    pre = torch.randn(50, 8)
    expected = pre * (pre > 0.5)
    for training in (True, False):
        torch.testing.assert_close(apply(JumpReLUConfig(initial_threshold=0.5), pre, training=training), expected)


def test_topk_equals_sorting() -> None:
    pre = torch.randn(6, 20)
    torch.testing.assert_close(apply(TopKConfig(k=4), pre), topk_by_loops(pre[:, None], 4)[:, 0])


def test_topk_never_activates_a_negative_preactivation() -> None:
    assert torch.equal(apply(TopKConfig(k=3), -torch.rand(4, 5)), torch.zeros(4, 5))


@pytest.mark.parametrize("to_pre", [True, False])
def test_the_straight_through_gradients_of_jumprelu_are_the_formula(to_pre: bool) -> None:
    width, theta = 0.4, 0.5
    config = JumpReLUConfig(initial_threshold=theta, bandwidth=width, gradient_to_preactivation=to_pre)
    jump = JumpReLU(config, 1, 5)
    pre = torch.tensor([0.1, 0.4, 0.6, 0.9, -1.0], requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (jump.values(pre, torch.arange(5), 0) * upstream).sum().backward()
    kernel = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])  # |pre - theta| < width / 2
    gate = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
    to_theta = -upstream * theta / width * kernel
    torch.testing.assert_close(pre.grad, upstream * gate - (to_theta if to_pre else 0))
    assert jump.log_threshold.grad is not None
    torch.testing.assert_close(jump.log_threshold.grad[0], to_theta * theta)  # d theta / d log theta = theta


def test_batchtopk_keeps_the_largest_of_the_batch() -> None:
    pre = torch.randn(10, 30)
    kept = apply(BatchTopKConfig(k=3), pre, training=True)
    smallest = pre.flatten().sort(descending=True).values[29]
    torch.testing.assert_close(kept, pre * (pre >= smallest))


def test_batchtopk_across_layers_ranks_by_activation_times_decoder_norm() -> None:
    torch.manual_seed(0)
    nonlinearity = make_nonlinearity(BatchTopKConfig(k=2, across_layers=True), 3, 12).train()
    pre, norms = torch.randn(3, 5, 12), torch.rand(3, 12) + 0.1
    selected = nonlinearity.couple([nonlinearity.select(pre[layer], layer) for layer in range(3)], norms)
    scores = pre.clamp(min=0) * norms[:, None]
    smallest = scores.flatten().sort(descending=True).values[2 * 5 * 3 - 1]
    torch.testing.assert_close(torch.stack([s.dense() for s in selected]), pre * (scores >= smallest))


def test_at_inference_a_tokens_features_do_not_depend_on_its_batch() -> None:
    nonlinearity = BatchTopK(BatchTopKConfig(k=3), 1, 30).train()
    for _ in range(20):
        nonlinearity.select(torch.randn(40, 30), 0)
    nonlinearity.eval()
    pre = torch.randn(10, 30)
    whole = nonlinearity.select(pre, 0).dense()
    assert torch.equal(whole[3:4], nonlinearity.select(pre[3:4], 0).dense())
    assert 1.5 < (nonlinearity.select(torch.randn(400, 30), 0).dense() > 0).sum(1).float().mean() < 6
