"""TopK across layers equals sorting all features of a token, and a bound selects what the ranking selects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from open_clt.config import TopKConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.nonlinearities import TopKAcrossLayers
from open_clt.transcoders.sparse.codes import LayerFeatures, dense
from open_clt.transcoders.transcoder import Transcoder, score_bounds
from tests.random_transcoders import architecture, random_architecture
from tests.reference.dense_transcoder import preactivations_by_loops, topk_across_layers_by_loops
from tests.refusals import refuses

CONFIGS = {
    "weighted": TopKConfig(k=5, across_layers=True),
    "unweighted": TopKConfig(k=5, across_layers=True, weighted=False),
    "total": TopKConfig(k=5, across_layers=True, k_total=7),
}
KINDS = [*((name, "clt") for name in CONFIGS), ("weighted", "molt")]


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(9, 3, 8, generator=torch.Generator().manual_seed(0))


def make(name: str, kind: str = "clt") -> Transcoder:
    return random_architecture(architecture(kind, nonlinearity=CONFIGS[name]))


def stacked(features: list[LayerFeatures]) -> torch.Tensor:
    return torch.stack([dense(layer) for layer in features], dim=1)


def expected_features(transcoder: Transcoder, inputs: torch.Tensor) -> torch.Tensor:
    config = transcoder.config.nonlinearity
    assert isinstance(config, TopKConfig)
    norms = transcoder.decoder_norms() if config.weighted else torch.ones_like(transcoder.b_enc)
    return topk_across_layers_by_loops(preactivations_by_loops(transcoder, inputs), norms, config.k_total or 3 * 5)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@torch.no_grad()
def test_features_equal_those_of_sorting_all_layers_of_a_token(name: str, kind: str, inputs: torch.Tensor) -> None:
    transcoder = make(name, kind)
    expected = expected_features(transcoder, inputs)
    assert len((expected > 0).sum((0, 2)).unique()) > 1
    torch.testing.assert_close(stacked([*transcoder.encode(inputs)]), expected)
    for training in (True, False):
        torch.testing.assert_close(stacked(transcoder.train(training)(inputs).features), expected)


def test_weights_decide_which_features_are_selected(inputs: torch.Tensor) -> None:
    weighted, unweighted = (stacked([*make(name).encode(inputs)]) for name in ("weighted", "unweighted"))
    assert ((weighted > 0) != (unweighted > 0)).sum() > 10


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_one_layer_is_encoded_alone_if_the_bounds_are_known(name: str, inputs: torch.Tensor) -> None:
    transcoder = make(name)
    features, bounds = transcoder.encode(inputs), score_bounds(transcoder, inputs)
    for layer in range(3):
        alone = transcoder.encode_layer(inputs[:, layer], layer, bounds=bounds)
        assert torch.equal(alone.dense(), features[layer].dense())
        # Rounding does not change which features are selected.
        nearly = transcoder.encode_layer(inputs[:, layer] * (1 + 1e-6), layer, bounds=bounds)
        assert torch.equal(nearly.dense() > 0, features[layer].dense() > 0)
    with refuses(ConfigError, "encode", "score_bounds"):
        transcoder.encode_layer(inputs[:, 0], 0)
    with refuses(ConfigError, 2, 3):
        transcoder.encode(inputs[:, :2])
    assert score_bounds(random_architecture(architecture("clt")), inputs) is None


def test_fewer_positive_features_than_places_are_all_selected() -> None:
    nonlinearity = TopKAcrossLayers(TopKConfig(k=2, across_layers=True, weighted=False), 2, 3).eval()
    pre, norms = torch.tensor([[[3.0, -1.0, 1.0]], [[-1.0, 2.0, -3.0]]]), torch.ones(2, 3)
    candidates = [nonlinearity.candidates(of_layer, layer, norms[layer]) for layer, of_layer in enumerate(pre)]
    assert nonlinearity.bounds(candidates, norms).tolist() == [0.0]
    assert torch.equal(torch.stack([layer.dense() for layer in nonlinearity.couple(candidates, norms)]), pre.relu())


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_folding_and_unit_decoders_do_not_change_the_ranking(
    training: bool, inputs: torch.Tensor, tmp_path: Path
) -> None:
    transcoder = make("weighted")
    transcoder.standardisation.target_scale.copy_(torch.tensor([0.2, 1.0, 5.0]))
    folded = transcoder.train(training).folded().eval()
    expected = stacked([*transcoder.eval().encode(inputs)])
    by_folded_norms = topk_across_layers_by_loops(
        preactivations_by_loops(transcoder, inputs), folded.decoder_norms(), 15
    )
    assert ((by_folded_norms > 0) != (expected > 0)).sum() > 10
    loaded = load_transcoder(save_transcoder(folded, tmp_path))
    for changed in (folded, folded.with_unit_decoders(), transcoder.with_unit_decoders(), loaded):
        active = stacked([*changed.encode(inputs)]) > 0
        assert torch.equal(active, expected > 0)
    with refuses(ConfigError, "JumpReLU"):
        make("unweighted").with_unit_decoders()


@torch.no_grad()
def test_in_training_the_ranking_follows_the_decoders(inputs: torch.Tensor) -> None:
    transcoder = make("weighted")
    transcoder.encode(inputs)
    transcoder.train()
    for parameter in transcoder.parameters():
        parameter.mul_(torch.rand_like(parameter) + 0.5)
    for training in (True, False):
        features = stacked(transcoder.train(training)(inputs).features)
        torch.testing.assert_close(features, expected_features(transcoder, inputs))


def test_norms_that_a_file_holds_are_used(inputs: torch.Tensor, tmp_path: Path) -> None:
    transcoder = make("weighted")
    save_transcoder(transcoder, tmp_path)
    assert not load_file(tmp_path / "transcoder.safetensors")["nonlinearity.norms"].any()
    assert isinstance(transcoder.nonlinearity, TopKAcrossLayers)
    transcoder.nonlinearity.norms.fill_(1)
    expected = make("unweighted").encode(inputs)
    loaded = load_transcoder(save_transcoder(transcoder, tmp_path), memory_limit=1)
    torch.testing.assert_close(stacked([*loaded.encode(inputs)]), stacked([*expected]))


def test_k_total_needs_across_layers_and_fits_the_features() -> None:
    for settings in ({"k_total": 7}, {"k_total": 7, "across_layers": True, "initial_k": 9}):
        with refuses(ConfigError, "k_total", 7):
            TopKConfig(**settings)
    with refuses(ConfigError, "k_total", 121):
        architecture("clt", nonlinearity=replace(CONFIGS["total"], k_total=121))
