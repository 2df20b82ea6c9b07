"""The training step: warm-ups, the sparsity loss, and losses that revive dead features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from open_clt.config import (
    BatchTopKConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LossConfig,
    NonlinearityConfig,
    ReLUConfig,
    TanhSparsityConfig,
    TopKConfig,
    TranscoderConfig,
)
from open_clt.data.harvest import MemoryStore
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations
from open_clt.training.step.module import ramp, set_encoder_bias
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.directions import decoder_norms_between_layers
from open_clt.transcoders.molt import Molt
from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import architecture
from tests.training.synthetic import D_MODEL, FEATURES, LAYERS, quick_training, relu_mlps, small_transcoder


def train_with_killed_features(
    monkeypatch: pytest.MonkeyPatch, config: TranscoderConfig, loss: LossConfig
) -> TrainingResult:
    """Train a transcoder; half of its features start with biases so low that they cannot fire."""
    initialise = Transcoder._initialise_encoders

    def kill(self: Transcoder, generator: torch.Generator) -> None:
        initialise(self, generator)
        self.b_enc[:, ::2] -= 2

    monkeypatch.setattr(Transcoder, "_initialise_encoders", kill)
    settings = quick_training(epochs=3, learning_rate=2e-2, loss=loss)
    return train_on_activations(relu_mlps(4000), config, settings, progress=False)


AUXILIARY = LossConfig(auxiliary=1 / 32, auxiliary_k=8, dead_after_tokens=500)
PREACTIVATION = LossConfig(auxiliary=0.0, preactivation=1.0, dead_after_tokens=500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "loss", "largest_dead_share"),
    [
        (small_transcoder(nonlinearity=TopKConfig(k=4)), AUXILIARY, 0.15),
        # A few transforms of high rank do most of the work, so that fewer of the others revive.
        (architecture("molt", n_layers=LAYERS, d_model=D_MODEL), replace(AUXILIARY, auxiliary=1.0), 0.4),
        (small_transcoder(nonlinearity=JumpReLUConfig(bandwidth=0.1)), PREACTIVATION, 0.15),
        # Features that compete over a whole batch need a larger coefficient, because a few can take all places.
        (small_transcoder(nonlinearity=BatchTopKConfig(k=8)), replace(AUXILIARY, auxiliary=1.0), 0.15),
        (
            small_transcoder(nonlinearity=BatchTopKConfig(k=8, across_layers=True)),
            replace(AUXILIARY, auxiliary=1.0),
            0.2,
        ),
        (small_transcoder(nonlinearity=ReLUConfig()), PREACTIVATION, 0.15),
    ],
    ids=["topk", "molt", "jumprelu", "batchtopk", "batchtopk across layers", "relu"],
)
def test_dead_features_revive(
    monkeypatch: pytest.MonkeyPatch, config: TranscoderConfig, loss: LossConfig, largest_dead_share: float
) -> None:
    without = replace(loss, auxiliary=0.0, auxiliary_k=LossConfig.auxiliary_k, preactivation=0.0)
    assert train_with_killed_features(monkeypatch, config, without).dead_share >= 0.5
    monkeypatch.undo()
    assert train_with_killed_features(monkeypatch, config, loss).dead_share < largest_dead_share


def test_sparsity_rises_from_zero_to_its_full_value() -> None:
    assert [ramp(step, 100, 0.5) for step in (0, 25, 50, 100)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp(0, 100, 0.0) == 1.0


class Trained(Callback):
    """Keeps the transcoder of a run before folding, which works in the standardised units of the losses."""

    transcoder: Transcoder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.transcoder = pl_module.transcoder


@torch.no_grad()
def sparsity_by_loops(transcoder: Transcoder, inputs: torch.Tensor, *, steepness: float | None) -> float:
    """``sum tanh(steepness |W_dec| a)`` per token, or ``sum |W_dec| a`` (L1), by a loop over features."""
    total = 0.0
    for layer, active in enumerate(transcoder.encode(inputs)):
        for feature, values in enumerate(active.dense().T):
            if isinstance(transcoder, Molt):
                writes = transcoder.matrix(layer, feature)
            else:
                assert isinstance(transcoder, CrossLayerTranscoder)
                writes = transcoder.W_dec[layer][feature]
            weighted = writes.square().sum().sqrt() * values
            total += (weighted if steepness is None else (steepness * weighted).tanh()).sum().item()
    return total / inputs.shape[0]


@pytest.mark.parametrize(
    "config",
    [
        small_transcoder(nonlinearity=ReLUConfig()),
        small_transcoder(nonlinearity=JumpReLUConfig(initial_threshold=0.5), prefixes=(8,)),
        architecture("molt", n_layers=LAYERS, d_model=D_MODEL),
    ],
    ids=["clt", "matryoshka", "molt"],
)
@pytest.mark.parametrize("penalty", [TanhSparsityConfig, L1SparsityConfig])
def test_the_sparsity_loss_rises_during_the_warm_up_and_is_weighted_by_decoder_norms(
    config: TranscoderConfig, penalty: type[TanhSparsityConfig] | type[L1SparsityConfig]
) -> None:
    """Compares the losses of ten steps with and without the penalty, on the same tokens and with constant weights."""
    block = relu_mlps(64, batches=1).batches[0]
    store = MemoryStore([block._replace(positions=block.positions + 1)])
    losses: list[list[float]] = []
    for sparsity in (None, penalty(coefficient=3.0, warmup=0.5)):
        loss = LossConfig(sparsity=sparsity)
        settings = quick_training(max_steps=10, learning_rate=1e-30, max_norm_ratio=None, loss=loss)
        trained = Trained()
        result = train_on_activations(store, config, settings, progress=False, own=OwnParts(callbacks=[trained]))
        losses.append(result.curves.loss)
    added = [with_penalty - without for without, with_penalty in zip(*losses, strict=True)]
    steepness = getattr(sparsity, "steepness", None)
    full = 3.0 * sparsity_by_loops(trained.transcoder, block.inputs, steepness=steepness)
    assert added == pytest.approx([full * min(1.0, step / 5) for step in range(10)], rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_price_of_distance_shortens_the_reach_of_features() -> None:
    far: list[float] = []
    for price in (0.0, 3.0):
        training = quick_training(max_steps=150, loss=LossConfig(distance_penalty=price))
        transcoder = train_on_activations(relu_mlps(600), small_transcoder(), training, progress=False).transcoder
        norms = decoder_norms_between_layers(transcoder)
        far.append(float(norms.triu(1).sum() / norms.diagonal().sum()))
    assert far[1] < far[0] / 2


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    settings = quick_training(max_steps=40, warmup_share=0.25, decay_share=0.25, learning_rate=1.0)
    rates = train_on_activations(relu_mlps(200), small_transcoder(), settings, progress=False).curves.learning_rate
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10:30] == pytest.approx([1.0] * 20)
    assert rates[30:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nonlinearity", "sparsity"),
    [
        (ReLUConfig(), 1.0),
        (JumpReLUConfig(bandwidth=0.5), 1.0),
        (TopKConfig(k=4), 0.0),
        (TopKConfig(k=4, across_layers=True), 0.0),
        (BatchTopKConfig(k=4), 0.0),
        (BatchTopKConfig(k=4, across_layers=True), 0.0),
    ],
)
def test_every_nonlinearity_learns(nonlinearity: NonlinearityConfig, sparsity: float) -> None:
    penalty = TanhSparsityConfig(coefficient=sparsity) if sparsity else None
    loss = LossConfig(sparsity=penalty, dead_after_tokens=500)
    settings = quick_training(max_steps=100, learning_rate=2e-2, loss=loss)
    config = small_transcoder(nonlinearity=nonlinearity)
    result = train_on_activations(relu_mlps(4000), config, settings, held_out=relu_mlps(500, seed=1), progress=False)
    assert result.metrics is not None
    assert result.metrics.fvu < 0.5
    assert result.metrics.l0 < FEATURES / 2
    if not sparsity:
        assert result.metrics.l0 == pytest.approx(4, rel=0.1)


@pytest.mark.slow
def test_more_sparsity_means_fewer_features() -> None:
    l0 = []
    for sparsity in (0.1, 3.0):
        penalty = TanhSparsityConfig(coefficient=sparsity)
        loss = LossConfig(sparsity=penalty, dead_after_tokens=500)
        settings = quick_training(max_steps=50, learning_rate=2e-2, loss=loss)
        config = small_transcoder(nonlinearity=JumpReLUConfig())
        l0.append(train_on_activations(relu_mlps(4000), config, settings, progress=False).curves.l0[-1])
    assert l0[1] < 0.7 * l0[0]


@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), JumpReLUConfig()])
def test_encoder_bias_sets_the_firing_rate(nonlinearity: NonlinearityConfig) -> None:
    transcoder = CrossLayerTranscoder(small_transcoder(nonlinearity=nonlinearity)).eval()
    store: MemoryStore = relu_mlps(1000, batches=1)
    inputs = store.batches[0].inputs
    set_encoder_bias(transcoder, inputs, 0.05)
    counts = torch.stack([active_counts(layer) for layer in transcoder.encode(inputs)])
    assert counts.shape == (LAYERS, FEATURES)
    assert (counts - 50).abs().max() <= 2
