"""Directions and records of features: what features write, which tokens they raise, and embeddings of vectors."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from open_clt.config import CrossLayerConfig, MoltConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.features.embedding import embed
from open_clt.features.figure_data import FeaturesOnTexts, ModelAndTranscoder, output_effects
from open_clt.features.firing import activations_of, feature_activations
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.directions import decoder_directions, match_features
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.molt import Molt
from tests.refusals import refuses
from tests.tiny_models import TEXTS

KEYS = [Feature(2, 4), Feature(0, 7), Feature(2, 1), Feature(1, 0)]


@pytest.fixture(scope="module")
def transcoder(tiny_gpt2: LanguageModel) -> CrossLayerTranscoder:
    transcoder = CrossLayerTranscoder(
        CrossLayerConfig(
            n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, n_features=16, nonlinearity=TopKConfig(k=4)
        ),
        seed=1,
    )
    transcoder.standardisation.target_scale.copy_(torch.tensor([0.5, 2.0, 3.0]))
    return transcoder


def test_directions_are_sums_of_raw_decoders(transcoder: CrossLayerTranscoder) -> None:
    folded = transcoder.folded()
    expected = torch.stack([folded.W_dec[layer][feature].sum(0) for layer, feature in KEYS])
    torch.testing.assert_close(decoder_directions(transcoder, KEYS), expected.detach())


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_logit_effects_are_differences_of_logits_once_the_norm_is_frozen(
    name: str, request: pytest.FixtureRequest
) -> None:
    """The effect over the norm's denominator is what a direction adds to the logits, for LayerNorm and for RMSNorm."""
    model: LanguageModel = request.getfixturevalue(name)
    path = read_linear_path(model, model.tokenize("The cat"), "hook_resid_mid")
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    before = path.final_norm.forward(path.final) @ path.W_U
    after = path.final_norm.forward(path.final + direction) @ path.W_U
    added = (after - before)[-1]
    effect = model.unembedding.effects(direction[None])[0] / path.final_norm.scale[-1]
    torch.testing.assert_close(effect, added - added.mean(), rtol=1e-4, atol=1e-4)


def test_a_text_given_as_tokens_has_the_same_activations(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder
) -> None:
    from_text = feature_activations(tiny_gpt2, transcoder, TEXTS[1])
    from_tokens = feature_activations(tiny_gpt2, transcoder, tiny_gpt2.tokenize(TEXTS[1]))
    assert torch.equal(from_text.dense(), from_tokens.dense())


def test_output_effects_name_the_tokens_that_directions_raise_and_lower(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder
) -> None:
    named = output_effects(ModelAndTranscoder(tiny_gpt2, transcoder), KEYS, 3)
    assert list(named) == KEYS
    for feature, effect in zip(KEYS, tiny_gpt2.unembedding.effects(decoder_directions(transcoder, KEYS)), strict=True):
        order = effect.sort(descending=True).indices
        assert named[feature].raises == tuple(tiny_gpt2.token_strings(order[:3]))
        assert named[feature].lowers == tuple(tiny_gpt2.token_strings(order.flip(0)[:3]))


def test_a_mixture_of_linear_transforms_has_no_output_effects(tiny_gpt2: LanguageModel) -> None:
    layers, width = tiny_gpt2.n_layers, tiny_gpt2.d_model
    config = MoltConfig(n_layers=layers, d_model=width, ranks=(2,), counts=(6,), nonlinearity=TopKConfig(k=2))
    molt = Molt(config)
    assert output_effects(ModelAndTranscoder(tiny_gpt2, molt), [Feature(0, 0)]) == {}


def test_vectors_of_coactivation_have_the_correlations_of_activations_as_cosines(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder
) -> None:
    on_texts = FeaturesOnTexts(ModelAndTranscoder(tiny_gpt2, transcoder), TEXTS * 8)
    chosen = on_texts.embedding(8, space="coactivation")
    columns = activations_of(tiny_gpt2, transcoder, on_texts.statistics.contexts, chosen.features)
    unit = torch.nn.functional.normalize(chosen.directions, dim=1)
    torch.testing.assert_close(unit @ unit.T, torch.corrcoef(columns.T), rtol=1e-4, atol=1e-4)
    decoders = on_texts.embedding(8)
    assert decoders.features == chosen.features
    torch.testing.assert_close(decoders.directions, decoder_directions(transcoder, chosen.features))


def clustered(seed: int) -> torch.Tensor:
    """Forty vectors around four directions, of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 12, generator=generator)
    vectors = centres.repeat(10, 1) + 0.2 * torch.randn(40, 12, generator=generator)
    return vectors * torch.rand(40, 1, generator=generator) * 100


def test_principal_components_are_those_of_the_covariance() -> None:
    vectors = clustered(0)
    embedding = embed(vectors, "pca")
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    values, axes = torch.linalg.eigh(torch.cov(unit.T.double()))
    projected = (unit - unit.mean(0)).double() @ axes[:, [-1, -2]]
    torch.testing.assert_close(embedding.points.abs(), projected.abs().float(), rtol=1e-4, atol=1e-5)
    assert embedding.explained == pytest.approx(
        [float(values[-1] / values.sum()), float(values[-2] / values.sum())], rel=1e-4
    )


def test_tsne_is_the_same_for_the_same_seed_and_keeps_neighbours() -> None:
    vectors = clustered(1)
    points, again = (embed(vectors, "tsne", perplexity=8.0, seed=5).points for _ in range(2))
    assert torch.equal(points, again)
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert bool((nearest % 4 == torch.arange(40) % 4).all())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 20])
def test_few_vectors_get_finite_points(count: int) -> None:
    for points in (embed(clustered(2)[:count], "pca").points, embed(clustered(2)[:count], "tsne").points):
        assert points.shape == (count, 2)
        assert bool(points.isfinite().all())


def test_equal_vectors_get_finite_points() -> None:
    assert bool(embed(torch.ones(6, 3), "tsne").points.isfinite().all())


def permuted(transcoder: CrossLayerTranscoder, order: torch.Tensor) -> CrossLayerTranscoder:
    """The same transcoder with its features in another order, the same in all layers."""
    other = copy.deepcopy(transcoder)
    state = {
        name: tensor.index_select(tensor.shape.index(16), order) if 16 in tensor.shape else tensor
        for name, tensor in transcoder.state_dict().items()
    }
    other.load_state_dict(state)
    return other


def test_features_of_a_permuted_transcoder_match_those_that_they_were(transcoder: CrossLayerTranscoder) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    matches = match_features(transcoder, permuted(transcoder, order))
    expected = {(layer, place): (layer, was) for layer in range(3) for place, was in enumerate(order.tolist())}
    assert matches == expected


def test_features_of_an_unrelated_transcoder_have_no_match(transcoder: CrossLayerTranscoder) -> None:
    assert match_features(transcoder, CrossLayerTranscoder(transcoder.config, seed=2), min_cosine=0.95) == {}


def test_matches_are_mutual_and_similar(transcoder: CrossLayerTranscoder) -> None:
    """Compared with every pair of features, one at a time."""
    other = CrossLayerTranscoder(transcoder.config, seed=2)
    matches = match_features(transcoder, other, min_cosine=0.1)
    assert matches
    for layer in range(3):
        ours, theirs = (
            [t.decoders(layer, torch.tensor([feature]))[0].flatten().detach() for feature in range(16)]
            for t in (transcoder, other)
        )
        cosine = torch.tensor([[float(torch.cosine_similarity(a, b, dim=0)) for b in theirs] for a in ours])
        expected = {
            second: int(cosine[:, second].argmax())
            for second in range(16)
            if int(cosine[cosine[:, second].argmax()].argmax()) == second and float(cosine[:, second].max()) >= 0.1
        }
        assert {k.index: v.index for k, v in matches.items() if k.layer == layer} == expected


@pytest.mark.parametrize(("cosine", "reach", "words"), [(1.5, 3, ("min_cosine", 1.5)), (0.5, 1, ("reach", 3, 1))])
def test_transcoders_that_cannot_be_matched_are_refused(
    transcoder: CrossLayerTranscoder, cosine: float, reach: int, words: tuple[object, ...]
) -> None:
    other = CrossLayerTranscoder(replace(transcoder.config, reach=reach), seed=2)
    with refuses(ConfigError, *words):
        match_features(transcoder, other, min_cosine=cosine)
