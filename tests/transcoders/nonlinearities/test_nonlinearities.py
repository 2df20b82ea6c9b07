"""Nonlinearities equal their definitions, and straight-through gradients equal their formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    FixedJumpReLUConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.errors import ConfigError
from open_clt.transcoders.nonlinearities import (
    BatchTopK,
    FixedJumpReLU,
    JumpReLU,
    Nonlinearity,
    TopK,
    annealed_k,
    largest,
    make_nonlinearity,
)
from open_clt.transcoders.sparse.codes import SparseFeatures
from tests.reference.dense_transcoder import topk_by_loops
from tests.refusals import refuses


def apply(config: NonlinearityConfig, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
    nonlinearity = make_nonlinearity(config, 1, pre.shape[1]).train(training)
    selected = nonlinearity.select(pre, 0)
    return selected.with_values(nonlinearity.values(selected.values, selected.features, 0)).dense()


def compete(nonlinearity: Nonlinearity, pre: torch.Tensor, norms: torch.Tensor) -> list[SparseFeatures]:
    """The features that competing layers select from pre-activations of shape (layer, batch, feature)."""
    candidates = [nonlinearity.candidates(of_layer, layer, norms[layer]) for layer, of_layer in enumerate(pre)]
    return nonlinearity.couple(candidates, norms)


def test_relu_keeps_positive_preactivations() -> None:
    pre = torch.randn(5, 8)
    assert torch.equal(apply(ReLUConfig(), pre), pre.clamp(min=0))


def test_jumprelu_keeps_preactivations_above_its_threshold_in_training_and_at_inference() -> None:
    pre = torch.randn(50, 8)
    expected = pre * (pre > 0.5)
    for training in (True, False):
        torch.testing.assert_close(apply(JumpReLUConfig(initial_threshold=0.5), pre, training=training), expected)


def test_fixed_thresholds_have_any_sign_and_only_preactivations_get_a_gradient() -> None:
    jump = FixedJumpReLU(FixedJumpReLUConfig(), 1, 3)
    jump.thresholds[0] = torch.tensor([-1.0, 0.0, 1.0])
    pre = torch.tensor([[-0.5, -0.5, 0.5], [-1.5, 0.5, 1.5]], requires_grad=True)
    selected = jump.select(pre.detach(), 0)
    assert selected.dense().tolist() == [[-0.5, 0.0, 0.0], [0.0, 0.5, 1.5]]
    dense = jump.dense(pre, 0)
    assert torch.equal(dense, selected.dense())
    dense.sum().backward()
    assert pre.grad is not None
    assert pre.grad.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    assert not list(jump.parameters())


def test_topk_equals_sorting() -> None:
    pre = torch.randn(6, 20)
    torch.testing.assert_close(apply(TopKConfig(k=4), pre), topk_by_loops(pre[:, None], 4)[:, 0])


@pytest.mark.parametrize("n_features", [20, 64, 800])
def test_the_largest_entries_found_in_groups_equal_those_found_by_sorting(n_features: int) -> None:
    values = torch.randn(7, n_features)
    top = largest(values, 4)
    assert torch.equal(values.gather(1, top.indices), top.values)
    assert torch.equal(top.values.sort(dim=1, descending=True).values, values.topk(4, dim=1).values)


def test_topk_never_activates_a_negative_preactivation() -> None:
    assert torch.equal(apply(TopKConfig(k=3), -torch.rand(4, 5)), torch.zeros(4, 5))


def test_topk_with_offsets_ranks_what_is_left_of_preactivations_and_keeps_them_whole() -> None:
    topk = TopK(TopKConfig(k=2, offsets=True), 1, 4)
    topk.offsets[0] = torch.tensor([2.0, -1.0, 0.0, 0.5])
    pre = torch.tensor([[2.5, -0.25, 1.0, 0.0], [3.5, -2.0, -0.5, 0.25]], requires_grad=True)
    selected = topk.select(pre.detach(), 0)
    values = topk.values(pre.flatten()[selected.rows * 4 + selected.features], selected.features, 0)
    dense = selected.with_values(values).dense()
    assert dense.tolist() == [[0.0, -0.25, 1.0, 0.0], [3.5, 0.0, 0.0, 0.0]]
    dense.sum().backward()
    assert pre.grad is not None
    assert pre.grad.tolist() == [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("other", ["across_layers", "keep_negative"])
def test_offsets_exclude_other_rankings(other: str) -> None:
    with refuses(ConfigError, "offsets", other):
        TopKConfig(offsets=True, **{other: True})


@pytest.mark.parametrize("to_pre", [True, False])
def test_the_straight_through_gradients_of_jumprelu_equal_the_formula(to_pre: bool) -> None:
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


def test_batchtopk_keeps_the_largest_preactivations_of_the_batch() -> None:
    pre = torch.randn(10, 30)
    features = apply(BatchTopKConfig(k=3), pre, training=True)
    smallest = pre.flatten().sort(descending=True).values[29]
    torch.testing.assert_close(features, pre * (pre >= smallest))


def test_batchtopk_across_layers_ranks_by_activation_times_decoder_norm() -> None:
    torch.manual_seed(0)
    nonlinearity = make_nonlinearity(BatchTopKConfig(k=2, across_layers=True), 3, 12).train()
    pre, norms = torch.randn(3, 5, 12), torch.rand(3, 12) + 0.1
    selected = compete(nonlinearity, pre, norms)
    scores = pre.clamp(min=0) * norms[:, None]
    smallest = scores.flatten().sort(descending=True).values[2 * 5 * 3 - 1]
    torch.testing.assert_close(torch.stack([layer.dense() for layer in selected]), pre * (scores >= smallest))


def test_at_inference_a_tokens_features_do_not_depend_on_its_batch() -> None:
    nonlinearity = BatchTopK(BatchTopKConfig(k=3), 1, 30).train()
    for _ in range(20):
        nonlinearity.select(torch.randn(40, 30), 0)
    nonlinearity.eval()
    pre = torch.randn(10, 30)
    of_batch = nonlinearity.select(pre, 0).dense()
    assert torch.equal(of_batch[3:4], nonlinearity.select(pre[3:4], 0).dense())
    assert 1.5 < (nonlinearity.select(torch.randn(400, 30), 0).dense() > 0).sum(1).float().mean() < 6


@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.99])
@pytest.mark.parametrize("across_layers", [False, True])
def test_batchtopk_thresholds_are_running_means_of_the_smallest_selected(momentum: float, across_layers: bool) -> None:
    """Each batch sets mean = momentum * mean + (1 - momentum) * its smallest score; the first sets mean = score."""
    config = BatchTopKConfig(k=2, across_layers=across_layers, threshold_momentum=momentum)
    nonlinearity = BatchTopK(config, 1, 12).train()
    generator = torch.Generator().manual_seed(0)
    norms, expected = torch.ones(1, 12), 0.0
    for batch in range(4):
        pre = torch.randn(1, 10, 12, generator=generator) * (1 + batch)
        observed = pre.flatten().sort(descending=True).values[2 * 10 - 1].item()
        expected = momentum * expected + (1 - momentum) * observed if batch else observed
        if across_layers:
            compete(nonlinearity, pre, norms)
        else:
            nonlinearity.select(pre[0], 0)
        assert nonlinearity.thresholds.flatten().tolist() == pytest.approx([expected] * 12, rel=1e-5)
    features = nonlinearity.eval().select(pre[0], 0).dense()
    torch.testing.assert_close(features, pre[0] * (pre[0] > expected))


def test_across_layers_a_small_preactivation_with_a_large_decoder_wins() -> None:
    """The largest score has the smallest pre-activation of its layer, so a ranking of pre-activations loses it."""
    nonlinearity = make_nonlinearity(BatchTopKConfig(k=1, across_layers=True), 2, 6).train()
    pre = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0, 0.1]], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]])
    norms = torch.ones(2, 6)
    norms[0, 5] = 100
    selected = compete(nonlinearity, pre, norms)
    assert selected[0].features.tolist() == [5]
    assert selected[1].features.tolist() == [5]


def test_across_layers_inference_uses_one_threshold_on_scores() -> None:
    nonlinearity = BatchTopK(BatchTopKConfig(k=2, across_layers=True), 3, 12).train()
    pre, norms = torch.randn(3, 50, 12), torch.rand(3, 12) + 0.1
    selected = compete(nonlinearity, pre, norms)
    nonlinearity.thresholds.mul_(1 - 1e-5)  # otherwise the smallest selected score equals the threshold
    nonlinearity.eval()
    for layer in range(3):
        assert torch.equal(nonlinearity.select(pre[layer], layer).features, selected[layer].features)


def test_batchtopk_with_weights_gives_each_layer_its_share() -> None:
    pre = torch.rand(100, 30, generator=torch.Generator().manual_seed(0))
    nonlinearity = BatchTopK(BatchTopKConfig(k=6, layer_weights=(4, 1, 1)), 3, 30).train()
    counts = [nonlinearity.select(pre, layer).values.numel() for layer in range(3)]
    assert counts == [1200, 300, 300]
    nonlinearity.eval()
    at_inference = [nonlinearity.select(pre, layer).values.numel() for layer in range(3)]
    assert at_inference == pytest.approx(counts, abs=2), "thresholds of one batch select what the batch selected"
    plain = BatchTopK(BatchTopKConfig(k=6), 3, 30).train()
    equal = BatchTopK(BatchTopKConfig(k=6, layer_weights=(2, 2, 2)), 3, 30).train()
    assert torch.equal(plain.select(pre, 1).values, equal.select(pre, 1).values)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layer_weights": (1.0, 0.0)}, "layer_weights"),
        ({"layer_weights": ()}, "layer_weights"),
        ({"layer_weights": (1.0, float("nan"))}, "layer_weights"),
        ({"layer_weights": (1.0, 2.0), "across_layers": True}, "across_layers"),
        ({"layer_weights": (1.0, 2.0, 3.0)}, "2 layers"),
        ({"layer_weights": (9.0, 1.0)}, "9 features"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CrossLayerConfig(n_layers=2, n_features=8, d_model=4, nonlinearity=BatchTopKConfig(k=5, **settings))


@pytest.mark.parametrize("config", [TopKConfig, BatchTopKConfig])
def test_k_moves_linearly_from_initial_k_and_reaches_its_value(
    config: type[TopKConfig] | type[BatchTopKConfig],
) -> None:
    settings = config(k=4, initial_k=20, anneal_share=0.5)
    assert [annealed_k(settings, share) for share in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)] == [20, 16, 12, 4, 4, 4]
    assert annealed_k(config(k=4), 0.0) == 4
    pre = torch.rand(10, 30)
    nonlinearity = make_nonlinearity(settings, 1, 30).train()
    nonlinearity.progress(0.25)
    assert nonlinearity.select(pre, 0).values.shape[0] == 10 * 12
    nonlinearity.progress(1.0)
    assert nonlinearity.select(pre, 0).values.shape[0] == 10 * 4


@pytest.mark.parametrize("config", [ReLUConfig(), JumpReLUConfig(initial_threshold=0.5), BatchTopKConfig(k=3)], ids=str)
def test_rescaled_thresholds_select_the_same_features(config: NonlinearityConfig) -> None:
    pre, factors = torch.randn(40, 12), torch.rand(1, 12) + 0.5
    nonlinearity = make_nonlinearity(config, 1, 12).train()
    nonlinearity.select(pre, 0)
    before = nonlinearity.eval().select(pre * 1.001, 0)
    nonlinearity.rescale(factors)
    assert torch.equal(nonlinearity.select(pre * 1.001 * factors, 0).features, before.features)
