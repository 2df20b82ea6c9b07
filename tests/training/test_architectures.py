"""Every kind of transcoder learns, and every nonlinearity recovers the directions that data was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LossConfig,
    NonlinearityConfig,
    ReLUConfig,
    SparsityConfig,
    TanhSparsityConfig,
    TopKConfig,
)
from open_clt.data.harvest import ActivationBatch, MemoryStore
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.training.run import train_on_activations, train_transcoder
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder
from tests.random_transcoders import ARCHITECTURES, architecture
from tests.tiny_models import TEXTS
from tests.training.synthetic import D_MODEL, LAYERS, quick_training, relu_mlps, small_transcoder

PLANTED, WIDTH = 20, 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_thirty_steps_lower_the_loss(name: str) -> None:
    config = architecture(name, n_layers=LAYERS, d_model=D_MODEL, nonlinearity=TopKConfig(k=4))
    store = relu_mlps(2000, batches=1)
    if config.input_hook == config.target_hook:
        store = MemoryStore([batch._replace(targets=batch.inputs) for batch in store.batches])
    settings = quick_training(max_steps=30, learning_rate=2e-2, decay_share=0.0)
    loss = train_on_activations(store, config, settings, progress=False).curves.loss
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


@pytest.mark.parametrize(
    "name", ["sae", pytest.param("matryoshka sae", marks=pytest.mark.slow), "matryoshka skip", "molt"]
)
def test_from_texts_to_an_evaluated_replacement_model(name: str, tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    config = architecture(name, n_layers=3, d_model=32, nonlinearity=BatchTopKConfig(k=8))
    settings = quick_training(max_steps=40, context_length=16)
    result = train_transcoder(tiny_gpt2, TEXTS * 4, config, settings, output_dir=tmp_path, progress=False)
    assert result.metrics is not None
    assert result.curves.loss[-1] < result.curves.loss[0]
    loaded = load_transcoder(tmp_path)
    assert loaded.config == config
    contexts = torch.stack([tiny_gpt2.tokenize(text)[:12] for text in TEXTS])
    evaluation = measure(ReplacementModel(tiny_gpt2, loaded), contexts)
    assert evaluation.reconstruction.fvu < 1
    assert evaluation.reconstruction.l0 > 0


def planted(seed: int, *, layers: int = 2, tokens: int = 8000) -> tuple[torch.Tensor, MemoryStore]:
    """Activations made from random directions, about two of each layer active per token, and the target directions."""
    generator = torch.Generator().manual_seed(seed)
    read, write = functional.normalize(torch.randn(2, layers, PLANTED, WIDTH, generator=generator), dim=-1)
    active = torch.rand(tokens, layers, PLANTED, generator=generator) < 2 / PLANTED
    codes = active * (torch.rand(tokens, layers, PLANTED, generator=generator) + 0.5)
    inputs, targets = (torch.einsum("blp,lpd->bld", codes, directions) for directions in (read, write))
    indices = torch.arange(tokens)
    return write, MemoryStore([ActivationBatch(inputs, targets, indices, indices + 1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nonlinearity", "sparsity"),
    [
        (ReLUConfig(), L1SparsityConfig(coefficient=0.3, warmup=0.2)),
        pytest.param(
            ReLUConfig(), TanhSparsityConfig(coefficient=1.0, steepness=1.0, warmup=0.3), marks=pytest.mark.slow
        ),
        (
            JumpReLUConfig(bandwidth=0.5, initial_threshold=0.1),
            TanhSparsityConfig(coefficient=1.0, steepness=2.0, warmup=0.3),
        ),
        (TopKConfig(k=3), None),
        pytest.param(TopKConfig(k=3, initial_k=10), None, marks=pytest.mark.slow),
        pytest.param(BatchTopKConfig(k=3), None, marks=pytest.mark.slow),
        pytest.param(BatchTopKConfig(k=3, across_layers=True), None, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "kind", "none"),
)
def test_planted_directions_are_recovered(nonlinearity: NonlinearityConfig, sparsity: SparsityConfig | None) -> None:
    write, store = planted(seed=0)
    config = CrossLayerConfig(n_layers=2, n_features=32, d_model=WIDTH, reach=1, nonlinearity=nonlinearity)
    loss = LossConfig(sparsity=sparsity, dead_after_tokens=1500)
    settings = quick_training(batch_size=128, max_steps=120, learning_rate=2e-2, loss=loss)
    transcoder = train_on_activations(store, config, settings, progress=False).transcoder
    assert isinstance(transcoder, CrossLayerTranscoder)
    for layer in range(2):
        learned = functional.normalize(transcoder.W_dec[layer][:, 0].detach(), dim=-1)
        assert (write[layer] @ learned.T).max(dim=1).values.mean() >= 0.9


@pytest.mark.slow
def test_the_first_features_of_a_matryoshka_transcoder_reconstruct_on_their_own() -> None:
    """The first half of its features leaves less unexplained than the first half of an ordinary transcoder's."""
    unexplained: dict[tuple[int, ...], float] = {}
    store = relu_mlps(4000)
    batch = store.batches[0]
    for prefixes in ((), (12,)):
        config = small_transcoder(nonlinearity=BatchTopKConfig(k=4), prefixes=prefixes)
        settings = quick_training(max_steps=60, learning_rate=2e-2)
        transcoder = train_on_activations(store, config, settings, progress=False).transcoder
        assert isinstance(transcoder, CrossLayerTranscoder)
        errors = transcoder.prefix(12)(batch.inputs).reconstruction.detach() - batch.targets
        unexplained[prefixes] = float(errors.square().sum() / (batch.targets - batch.targets.mean(0)).square().sum())
    assert unexplained[(12,)] < 0.8 * unexplained[()]


@pytest.mark.parametrize("config", [TopKConfig, BatchTopKConfig])
def test_k_is_annealed_and_exact_in_the_end(config: type[TopKConfig] | type[BatchTopKConfig]) -> None:
    nonlinearity = config(k=2, initial_k=10, anneal_share=0.5)
    settings = quick_training(max_steps=40, learning_rate=1e-3)
    result = train_on_activations(
        relu_mlps(2000), small_transcoder(nonlinearity=nonlinearity), settings, progress=False
    )
    l0 = result.curves.l0
    assert l0[0] == pytest.approx(10, abs=0.5)
    assert l0[10] == pytest.approx(6, abs=0.5)
    assert l0[20:] == pytest.approx([2.0] * 20, abs=0.01)
    if config is TopKConfig:
        features = result.transcoder.encode(torch.randn(5, LAYERS, D_MODEL))
        assert [layer.values.shape[0] for layer in features] == [5 * 2] * LAYERS


def test_the_preactivation_loss_on_all_features_needs_no_dead_ones() -> None:
    """Its coefficient is so large that features rise above their thresholds, although none of them is dead."""
    settings = quick_training(
        max_steps=60,
        learning_rate=5e-2,
        loss=LossConfig(preactivation=100.0, preactivation_on="all", auxiliary=0.0, dead_after_tokens=10**9),
    )
    config = small_transcoder(nonlinearity=JumpReLUConfig(initial_threshold=0.5))
    curves = train_on_activations(relu_mlps(2000), config, settings, progress=False).curves
    assert curves.dead_share == [0.0] * len(curves.dead_share)
    assert curves.l0[-1] > 1.5 * curves.l0[0]
