"""Interactive figures of a language model with its transcoder: the static contents, and outputs under the mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import pytest

from open_clt import visualization_utils as utils
from open_clt.attribution.attribute import attribute
from open_clt.config import CrossLayerConfig, MoltConfig, TopKConfig
from open_clt.errors import OpenCLTError
from open_clt.features.figure_data import FeaturesOnTexts, ModelAndTranscoder, output_effects
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.molt import Molt
from open_clt.visualization.interactive.text import tokens_text
from tests.tiny_models import TEXTS
from tests.visualization.interactive.pairs import displayed


@pytest.fixture(scope="module")
def clt(tiny_gpt2: LanguageModel) -> ModelAndTranscoder:
    shape = {"n_layers": tiny_gpt2.n_layers, "d_model": tiny_gpt2.d_model}
    config = CrossLayerConfig(**shape, n_features=16, nonlinearity=TopKConfig(k=4))
    return ModelAndTranscoder(tiny_gpt2, CrossLayerTranscoder(config, seed=1))


def trace(figure: go.Figure) -> Any:
    return cast(Any, figure).data[0]


def title_of(figure: go.Figure) -> str:
    return displayed(cast(Any, figure).layout.title.text).replace("\n", " ")


def test_a_heatmap_shows_activations_and_outputs_of_features(clt: ModelAndTranscoder) -> None:
    figure = utils.interactive_feature_heatmap(clt, TEXTS[1], top_n=5, labels={Feature(0, 0): "never shown"})
    image = utils.visualize_feature_heatmap(clt, TEXTS[1], top_n=5).axes[0].images[0]
    np.testing.assert_array_equal(np.asarray(trace(figure).z), np.asarray(image.get_array()))
    assert TEXTS[1][:20] in title_of(figure)
    assert Path(clt.language_model.name).name in title_of(figure)
    names = [Feature.parse(name) for name in cast(Any, figure).layout.yaxis.ticktext]
    outputs = output_effects(clt, names)
    for row, feature in enumerate(names):
        active = int(np.argmax(np.abs(np.asarray(trace(figure).z)[row])))
        text = trace(figure).hovertext[row][active]
        assert f"raises {tokens_text(outputs[feature].raises)}" in text
        assert f"lowers {tokens_text(outputs[feature].lowers)}" in text


@pytest.mark.parametrize("space", ["decoder", "coactivation"])
def test_a_map_names_the_features(clt: ModelAndTranscoder, space: Any) -> None:
    figure = utils.interactive_feature_embedding(clt, TEXTS * 8, space=space)
    drawn = utils.visualize_feature_embedding(clt, TEXTS * 8, space=space).axes[0].collections[0]
    points = np.stack([trace(figure).x, trace(figure).y], axis=1)
    np.testing.assert_allclose(points, np.asarray(drawn.get_offsets()), rtol=1e-5, atol=1e-6)
    features = FeaturesOnTexts(clt, TEXTS * 8).embedding().features
    assert [displayed(text).split("\n")[0] for text in trace(figure).hovertext] == [str(one) for one in features]
    assert {"decoder": "Decoder directions", "coactivation": "Co-activation"}[space] in title_of(figure)


def test_correlations_and_importance_are_those_of_the_texts(clt: ModelAndTranscoder) -> None:
    on_texts = FeaturesOnTexts(clt, TEXTS * 8)
    matrix = trace(utils.interactive_cross_layer_correlations(clt, TEXTS * 8)).z
    np.testing.assert_allclose(np.asarray(matrix), on_texts.layer_correlations().matrix.numpy())
    bars = trace(utils.interactive_feature_importance(clt, TEXTS * 8, top_n=3))
    largest = on_texts.importance.flatten().sort(descending=True).values[:3]
    np.testing.assert_allclose(bars.x, 100 * largest.numpy(), rtol=1e-5)
    assert "raises" in bars.hovertext[0]


def test_a_mixture_of_linear_transforms_has_a_heatmap_without_outputs(tiny_gpt2: LanguageModel) -> None:
    shape = {"n_layers": tiny_gpt2.n_layers, "d_model": tiny_gpt2.d_model}
    molt = Molt(MoltConfig(**shape, ranks=(2,), counts=(6,), nonlinearity=TopKConfig(k=2)))
    figure = utils.interactive_feature_heatmap(ModelAndTranscoder(tiny_gpt2, molt), TEXTS[1])
    assert "raises" not in str(trace(figure).hovertext)


@pytest.mark.parametrize("name", ["feature_heatmap", "feature_embedding", "feature_importance"])
def test_a_model_without_a_text_is_refused_as_by_the_static_figure(clt: ModelAndTranscoder, name: str) -> None:
    refusals: list[str] = []
    for kind in ("visualize", "interactive"):
        with pytest.raises(OpenCLTError) as refused:
            getattr(utils, f"{kind}_{name}")(clt)
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


def test_a_computed_graph_is_shown_with_its_activations(clt: ModelAndTranscoder) -> None:
    graph = attribute(clt.language_model, clt.transcoder, TEXTS[1])
    figure = utils.interactive_attribution_graph(graph, max_nodes=20)
    features = next(one for one in cast(Any, figure).data if one.name == "feature")
    assert all("activation " in text and "influence " in text for text in features.hovertext)
    assert "of " in cast(Any, figure).layout.annotations[0].text
