"""A cross-layer transcoder equals its equations, and folding and reach do not change its outputs otherwise."""

from __future__ import annotations

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
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.outputs import TranscoderOutput
from open_clt.transcoders.sparse.codes import LayerFeatures, SparseFeatures, dense
from open_clt.transcoders.sparse.products import Product, multiplied
from open_clt.transcoders.transcoder import errors_of_forward
from tests.random_transcoders import randomised
from tests.reference.dense_transcoder import decode_by_loops, preactivations_by_loops, topk_by_loops
from tests.refusals import refuses

NONLINEARITIES: list[NonlinearityConfig] = [
    ReLUConfig(),
    JumpReLUConfig(),
    FixedJumpReLUConfig(),
    TopKConfig(k=5),
    TopKConfig(k=5, across_layers=True),
    BatchTopKConfig(k=5),
    BatchTopKConfig(k=5, across_layers=True),
]


def make(nonlinearity: NonlinearityConfig, *, reach: int | None = None, skip: bool = False) -> CrossLayerTranscoder:
    """A random transcoder with random biases and statistics."""
    config = CrossLayerConfig(n_layers=4, n_features=60, d_model=8, reach=reach, skip=skip, nonlinearity=nonlinearity)
    return randomised(CrossLayerTranscoder(config, seed=1), seed=2)


def warm(transcoder: CrossLayerTranscoder, inputs: torch.Tensor) -> CrossLayerTranscoder:
    """Give BatchTopK thresholds from a batch, and move them off the batch's values, where rounding would decide."""
    transcoder.train()(inputs)
    for name, buffer in transcoder.named_buffers():
        if name.endswith("thresholds"):
            buffer.mul_(1.001)
    return transcoder.eval()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("reach", [None, 1, 2])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_the_forward_pass_equals_a_double_loop(nonlinearity: NonlinearityConfig, reach: int | None, skip: bool) -> None:
    transcoder, inputs = make(nonlinearity, reach=reach, skip=skip), torch.randn(9, 4, 8)
    output = warm(transcoder, inputs)(inputs)
    features = torch.stack([dense(layer) for layer in output.features], dim=1)
    expected = decode_by_loops(transcoder, features, inputs)
    torch.testing.assert_close(output.reconstruction, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transcoder.decode(transcoder.encode(inputs), inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "share", [0.5, torch.tensor(0.5), torch.tensor([[[0.5]]]), torch.full((5, 1, 1), 0.5)], ids=[1, 2, 3, 4]
)
def test_errors_follow_what_a_subclass_writes_and_its_forward_pass(share: float | torch.Tensor) -> None:
    class Muffled(CrossLayerTranscoder):
        def written(self, features: LayerFeatures, source: int, standard: torch.Tensor) -> Product | torch.Tensor:
            return share * super().written(features, source, standard)

    class Bent(CrossLayerTranscoder):
        def written(self, features: LayerFeatures, source: int, standard: torch.Tensor) -> torch.Tensor:
            return multiplied(super().written(features, source, standard)).tanh()

    class Shifted(Muffled):
        errors = errors_of_forward

        def forward(self, inputs: torch.Tensor) -> TranscoderOutput:
            features, reconstruction = super().forward(inputs)
            return TranscoderOutput(features, reconstruction + 1)

    config = CrossLayerConfig(n_layers=2, n_features=24, d_model=8, nonlinearity=TopKConfig(k=3))
    inputs, targets = torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    plain, muffled, bent, shifted = (cls(config, seed=1) for cls in (CrossLayerTranscoder, Muffled, Bent, Shifted))
    assert not torch.allclose(bent(inputs).reconstruction, plain(inputs).reconstruction)
    torch.testing.assert_close(muffled(inputs).reconstruction, 0.5 * plain(inputs).reconstruction)
    for transcoder in (plain, muffled, bent, shifted):
        (errors,) = transcoder.errors(inputs, targets).errors
        torch.testing.assert_close(errors, targets - transcoder(inputs).reconstruction)
    torch.testing.assert_close(shifted(inputs).reconstruction, muffled(inputs).reconstruction + 1)


def test_a_class_with_its_own_forward_pass_needs_its_own_errors() -> None:
    with refuses(ConfigError, "Own", "forward", "errors"):
        type("Own", (CrossLayerTranscoder,), {"forward": CrossLayerTranscoder.forward})


def test_topk_features_equal_sorted_preactivations() -> None:
    transcoder, inputs = make(TopKConfig(k=5)), torch.randn(9, 4, 8)
    features = torch.stack([layer.dense() for layer in transcoder.encode(inputs)], dim=1)
    torch.testing.assert_close(features, topk_by_loops(preactivations_by_loops(transcoder, inputs), 5))


@pytest.mark.parametrize(
    "nonlinearity", [TopKConfig(k=5), JumpReLUConfig(initial_threshold=1.0, bandwidth=0.1)], ids=str
)
def test_training_gradients_equal_those_of_dense_products(nonlinearity: NonlinearityConfig) -> None:
    transcoder, inputs = make(nonlinearity, skip=True).double(), torch.randn(9, 4, 8, dtype=torch.float64)
    output = transcoder(inputs)
    assert all(isinstance(layer, SparseFeatures) for layer in output.features)
    direction = torch.randn_like(output.reconstruction)
    parameters = [transcoder.W_enc, transcoder.b_enc, *transcoder.W_dec, transcoder.b_dec]
    actual = torch.autograd.grad((output.reconstruction * direction).sum(), parameters)

    pre = preactivations_by_loops(transcoder, inputs)
    if isinstance(nonlinearity, TopKConfig):
        features = pre.relu() * (topk_by_loops(pre.detach(), 5) > 0)
    else:
        layers = range(transcoder.config.n_layers)
        features = torch.stack([transcoder.nonlinearity.dense(pre[:, layer], layer) for layer in layers], dim=1)
    expected = torch.autograd.grad((decode_by_loops(transcoder, features, inputs) * direction).sum(), parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=str)
def test_folding_the_standardisation_does_not_change_outputs(nonlinearity: NonlinearityConfig, skip: bool) -> None:
    transcoder, inputs = make(nonlinearity, skip=skip), torch.randn(30, 4, 8)
    warm(transcoder, inputs)
    folded = transcoder.folded()
    assert torch.equal(folded.standardisation.inputs(inputs), inputs)
    torch.testing.assert_close(folded(inputs).reconstruction, transcoder(inputs).reconstruction, atol=1e-4, rtol=1e-4)


def test_full_reach_with_later_decoders_zero_is_a_per_layer_transcoder() -> None:
    full, per_layer = make(TopKConfig(k=5)), make(TopKConfig(k=5), reach=1)
    with torch.no_grad():
        full.load_state_dict({**full.state_dict(), **{
            name: tensor for name, tensor in per_layer.state_dict().items() if not name.startswith("W_dec")
        }})  # fmt: skip
        for full_table, table in zip(full.W_dec, per_layer.W_dec, strict=True):
            full_table.zero_()[:, :1].copy_(table)
    inputs = torch.randn(9, 4, 8)
    torch.testing.assert_close(full(inputs).reconstruction, per_layer(inputs).reconstruction)


def test_what_layers_write_one_by_one_sums_to_the_reconstruction() -> None:
    transcoder, inputs = make(TopKConfig(k=5), skip=True).eval(), torch.randn(9, 4, 8)
    columns = inputs.unbind(1)
    written = [transcoder.write(transcoder.encode_layer(columns[s], s), s, columns[s]) for s in range(4)]
    for target in range(4):
        total = transcoder.offset(inputs[:, target], target) + sum(written[s][:, target - s] for s in range(target + 1))
        torch.testing.assert_close(total, transcoder(inputs).reconstruction[:, target], atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_weights() -> None:
    config = CrossLayerConfig(n_layers=2, n_features=17, d_model=3)
    first, same_seed, other_seed = (CrossLayerTranscoder(config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.W_enc, same_seed.W_enc)
    assert not torch.equal(first.W_enc, other_seed.W_enc)


def assert_uniform(values: torch.Tensor, bound: float) -> None:
    """Check that values are drawn from U(+-bound): by their smallest, their largest, and their standard deviation."""
    assert -bound <= values.min() < -0.98 * bound
    assert 0.98 * bound < values.max() <= bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("reach", [None, 1])
def test_initial_weights_are_uniform_within_their_bounds_and_biases_are_zero(reach: int | None) -> None:
    """The bounds are 1/sqrt(n_features) for encoders and 1/sqrt(n_layers * d_model) for decoders; all three differ."""
    transcoder = CrossLayerTranscoder(CrossLayerConfig(n_layers=3, n_features=400, d_model=24, reach=reach, skip=True))
    for layer in range(3):
        assert_uniform(transcoder.W_enc[layer], 400**-0.5)
        assert_uniform(transcoder.W_dec[layer], (3 * 24) ** -0.5)
    assert transcoder.W_skip is not None
    for parameter in (transcoder.b_enc, transcoder.b_dec, transcoder.W_skip):
        assert not parameter.any()


@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), JumpReLUConfig(initial_threshold=0.01)], ids=str)
def test_a_layer_is_computed_densely_only_if_a_fifth_of_its_features_is_active(
    nonlinearity: NonlinearityConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcoder, inputs = make(nonlinearity, reach=2).eval(), torch.randn(50, 4, 8)
    with torch.no_grad():
        transcoder.b_enc[:2] -= 0.5
    selected: list[int] = []
    select = transcoder.nonlinearity.select

    def counted_select(pre: torch.Tensor, layer: int) -> SparseFeatures:
        selected.append(layer)
        return select(pre, layer)

    monkeypatch.setattr(transcoder.nonlinearity, "select", counted_select)
    features, reconstruction = transcoder(inputs)
    shares = [float((dense(layer) > 0).float().mean()) for layer in features]
    assert 0.02 < min(shares[:2]) <= max(shares[:2]) < 0.2 < min(shares[2:])
    assert [isinstance(layer, SparseFeatures) for layer in features] == [True, True, False, False]
    assert selected == [0, 1], "a dense layer is computed without a selection"
    codes = torch.stack([dense(layer) for layer in features], dim=1)
    pre = preactivations_by_loops(transcoder, inputs)
    torch.testing.assert_close(codes, pre * (pre > getattr(nonlinearity, "initial_threshold", 0.0)))
    torch.testing.assert_close(reconstruction, decode_by_loops(transcoder, codes, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("nonlinearity", [TopKConfig(k=30), BatchTopKConfig(k=30)], ids=str)
def test_selected_features_are_decoded_densely_if_they_are_many(nonlinearity: NonlinearityConfig) -> None:
    transcoder, inputs = make(nonlinearity), torch.randn(9, 4, 8)
    assert not any(isinstance(layer, SparseFeatures) for layer in transcoder.train()(inputs).features)
    sparse_transcoder = make(type(nonlinearity)(k=3)).train()
    assert all(isinstance(layer, SparseFeatures) for layer in sparse_transcoder(inputs).features)
