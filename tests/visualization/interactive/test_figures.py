"""Interactive figures: they show what the static figures show, refuse the same mistakes, and are small."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from matplotlib.figure import Figure

import open_clt
from open_clt import visualization_utils as utils
from open_clt.errors import ConfigError, OpenCLTError
from open_clt.features.records import FeatureLabel, FeatureRecord, TokenEffect
from open_clt.transcoders.feature import Feature
from open_clt.visualization.interactive.notebook_plot import PLOTLY
from open_clt.visualization.interactive.saving import page_of
from open_clt.visualization.preparation import density_counts, feature_points
from open_clt.visualization.style import NotebookFigure
from tests.refusals import refuses
from tests.visualization.interactive.pairs import (
    CORRELATIONS,
    CURVES,
    HEAT,
    NAMES,
    PAIRS,
    REPORTS,
    SPARSE,
    TOKENS,
    VECTORS,
    Pair,
    displayed,
    pair,
)

every_pair = pytest.mark.parametrize("name", PAIRS)
NOTHING = np.zeros((0, 3))
NOT_FINITE = np.full((2, 3), np.nan)
MISTAKES = {
    "no tokens": pair("feature_heatmap", HEAT),
    "too few names": pair("feature_heatmap", HEAT, TOKENS, NAMES[1:]),
    "empty": pair("feature_heatmap", NOTHING, ["a"] * 3, []),
    "not finite": pair("feature_importance", NOT_FINITE),
    "text with an array": pair("feature_importance", SPARSE, "a text"),
    "no layers": pair("feature_embedding", VECTORS),
    "negative layers": pair("feature_embedding", VECTORS, [-1] * 40),
    "space of an array": pair("feature_embedding", VECTORS, [0] * 40, space="coactivation"),
    "no rows": pair("cross_layer_correlations", CORRELATIONS),
    "density": pair("feature_density", NOT_FINITE),
    "activity": pair("layer_activity", NOTHING, ["a"] * 3),
    "no reports": pair("comparison", []),
    "not a graph": pair("attribution_graph", 3),
    "not a report": pair("report", 3),
    "not curves": pair("training_curves", 3),
    "too few features": pair("feature_importance", SPARSE, top_n=0),
}


def traces(figure: go.Figure) -> list[Any]:
    return list(cast(Any, figure).data)


def refusal(function: Callable[[], object]) -> tuple[type[OpenCLTError], str]:
    with pytest.raises(OpenCLTError) as refused:
        function()
    return refused.type, str(refused.value).replace("interactive_", "visualize_")


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_as_by_the_static_figure(name: str) -> None:
    mistake = MISTAKES[name]
    assert refusal(mistake.shown) == refusal(mistake.drawn)


@every_pair
def test_a_figure_has_few_traces_a_title_and_fits_a_window(name: str) -> None:
    figure = PAIRS[name].shown()
    assert 0 < len(traces(figure)) <= 30
    layout = cast(Any, figure).layout
    assert len(layout.title.text) > 5
    assert layout.width <= 1280
    assert layout.height <= 800


@every_pair
def test_a_figure_is_a_page_below_6_mb_and_always_the_same(name: str) -> None:
    page = page_of(PAIRS[name].shown())
    assert len(page.encode()) < 6e6
    assert page == page_of(PAIRS[name].shown())


@every_pair
def test_every_axis_has_a_name(name: str) -> None:
    layout = cast(dict[str, Any], PAIRS[name].shown().to_dict()["layout"])
    axes = {key: axis for key, axis in layout.items() if key.startswith(("xaxis", "yaxis"))}
    named = {key for key, axis in axes.items() if axis.get("title", {}).get("text")}
    panels = {annotation["text"] for annotation in layout.get("annotations", ())}
    # The name of a panel above it names its vertical axis; panels above each other share a horizontal axis.
    unnamed = set() if panels and name not in ("graph", "supernodes") else set(axes) - named
    assert unnamed == set()


@every_pair
def test_a_title_of_ones_own_replaces_the_title_and_an_empty_one_leaves_it_out(name: str) -> None:
    layout = cast(Any, PAIRS[name].shown(title="My title")).layout
    assert displayed(layout.title.text).startswith("My title")
    assert "My" not in (cast(Any, PAIRS[name].shown(title="")).layout.title.text or "")


MATRICES = ["heatmap", "signed heatmap", "layer activity"]
MATRICES += ["correlations", "small correlations"]


@pytest.mark.parametrize(
    "name", [*MATRICES, *(pytest.param(name, marks=pytest.mark.slow) for name in ("long text", "many correlations"))]
)
def test_a_matrix_has_the_values_and_limits_of_the_static_one(name: str) -> None:
    image = PAIRS[name].drawn().axes[0].images[0]
    (heatmap,) = traces(PAIRS[name].shown())
    np.testing.assert_array_equal(np.asarray(heatmap.z), np.asarray(image.get_array()))
    assert (heatmap.zmin, heatmap.zmax) == image.get_clim()
    if name not in ("long text", "many correlations"):
        assert np.asarray(heatmap.hovertext).shape == np.asarray(heatmap.z).shape
    else:
        assert heatmap.hovertemplate.startswith("%{y}<br>%{x}<br>")


@pytest.mark.parametrize("name", ["pca", "tsne"])
def test_a_map_has_the_points_colours_and_sizes_of_the_static_one(name: str) -> None:
    drawn = PAIRS[name].drawn().axes[0].collections[0]
    (points,) = traces(PAIRS[name].shown())
    np.testing.assert_allclose(np.stack([points.x, points.y], axis=1), np.asarray(drawn.get_offsets()), rtol=1e-6)
    ratio = np.asarray(points.marker.size) ** 2 / np.asarray(cast(Any, drawn).get_sizes())
    np.testing.assert_allclose(ratio, ratio[0])
    assert list(points.marker.color) == [index % 4 for index in range(40)]


def test_importance_has_the_bars_and_names_of_the_static_one() -> None:
    ax = PAIRS["importance"].drawn().axes[0]
    figure = PAIRS["importance"].shown()
    (bars,) = traces(figure)
    widths = [bar.get_width() for container in ax.containers for bar in cast(Any, container)]
    np.testing.assert_allclose(bars.x, widths)
    assert list(cast(Any, figure).layout.yaxis.ticktext) == [label.get_text() for label in ax.get_yticklabels()]


def test_labels_of_features_stand_beside_their_names_and_under_the_mouse() -> None:
    importance = np.array([[0.1, 0.0], [0.6, 0.3]])
    figure = utils.interactive_feature_importance(importance, labels={Feature(1, 0): "Texas & more"})
    assert displayed(cast(Any, figure).layout.yaxis.ticktext[0]) == "L1/0 Texas & more"
    assert displayed(traces(figure)[0].hovertext[0]).startswith("L1/0 Texas & more\n60 %")


def test_an_automatic_label_is_marked_and_a_label_of_ones_own_wins() -> None:
    features = [Feature(1, 0), Feature(1, 1), Feature(0, 0)]
    labels = [FeatureLabel("Texas", automatic=True), FeatureLabel("capitals"), FeatureLabel("cities", automatic=True)]
    effects = (TokenEffect(" Austin", 1.0),)
    records = [
        FeatureRecord(feature, 0.25, 2.0, (), effects, (), label=label)
        for feature, label in zip(features, labels, strict=True)
    ]
    importance = np.array([[0.1, 0.0], [0.6, 0.3]])
    figure = utils.interactive_feature_importance(importance, records=records, labels={features[2]: "mine"})
    first, second, third = (displayed(text).split("\n") for text in traces(figure)[0].hovertext)
    assert (first[0], second[0], third[0]) == ("L1/0 Texas (automatic)", "L1/1 capitals", "L0/0 mine")
    assert first[1:] == ["active on 25.00% of tokens, at most 2", "raises ·Austin", "60 % of everything written"]
    assert list(cast(Any, figure).layout.yaxis.ticktext) == ["L1/0 Texas", "L1/1 capitals", "L0/0 mine"]


@pytest.mark.parametrize("name", ["density", "many layers"])
def test_density_has_the_counts_of_the_static_one(name: str) -> None:
    counts = density_counts(PAIRS[name].arguments[0]).counts
    heights = np.concatenate([np.asarray(trace.y, dtype=float) for trace in traces(PAIRS[name].shown())[1:]])
    per_layer = heights.reshape(len(counts), -1)
    np.testing.assert_array_equal(per_layer[:, 1:-2:2], counts)
    np.testing.assert_array_equal(per_layer[:, 2:-1:2], counts)
    steps = [np.asarray(cast(Any, patch).get_data().values) for patch in PAIRS[name].drawn().axes[0].patches]
    np.testing.assert_array_equal(np.stack(steps), counts)


def test_curves_have_the_values_and_limits_of_the_static_ones() -> None:
    shown = PAIRS["curves"].shown()
    for number, (ax, trace) in enumerate(zip(PAIRS["curves"].drawn().axes, traces(shown), strict=True)):
        assert list(trace.x) == CURVES.step
        np.testing.assert_array_equal(trace.y, np.asarray(ax.lines[0].get_ydata()))
        axis = cast(Any, shown).layout[f"yaxis{number + 1 if number else ''}"]
        assert tuple(axis.range) == pytest.approx(ax.get_ylim())


def test_a_long_curve_keeps_its_ends_and_its_extremes() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[54_321] = 40.0
    curves = CURVES._replace(step=list(range(len(values))), loss=values.tolist())
    loss = traces(utils.interactive_training_curves(curves))[0]
    assert len(loss.y) < 10_000
    assert loss.y[list(loss.x).index(54_321)] == 40.0
    assert (loss.x[0], loss.x[-1], loss.y[-1]) == (0, 99_999, values[-1])


def points_of(figure: Figure, number: int) -> np.ndarray:
    return np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[number].collections])


def test_a_comparison_has_the_points_and_fronts_of_the_static_one() -> None:
    figure, drawn = PAIRS["comparison"].shown(), PAIRS["comparison"].drawn()
    for number in range(3):
        front, points = traces(figure)[2 * number : 2 * number + 2]
        np.testing.assert_allclose(np.stack([points.x, points.y], axis=1), points_of(drawn, number))
        np.testing.assert_allclose(front.y, np.asarray(drawn.axes[number].lines[0].get_ydata()))
    assert [trace.name for trace in traces(figure)[6:]] == [one.name for one in REPORTS]


def test_a_report_has_the_numbers_of_the_report() -> None:
    of_report = REPORTS[0]
    bars = [trace for trace in traces(PAIRS["report"].shown()) if trace.type == "bar"]
    reconstruction = of_report.evaluation.reconstruction
    assert list(bars[0].y) == reconstruction.fvu_per_layer
    assert list(bars[1].y) == reconstruction.l0_per_layer
    assert list(bars[2].y) == pytest.approx([0.5] * 12)
    agreements = [trace for trace in traces(PAIRS["report without graphs"].shown()) if trace.type == "bar"][3]
    assert list(agreements.y) == [0.9] * 12


def test_a_map_of_points_is_that_of_its_preparation() -> None:
    settings: dict[str, Any] = {"perplexity": 30.0, "seed": 0, "sizes": None, "n_layers": None, "space": "decoder"}
    chosen = feature_points(VECTORS, [0] * 40, method="pca", **settings)
    figure = utils.interactive_feature_embedding(VECTORS, [0] * 40)
    assert cast(Any, figure).layout.xaxis.title.text == chosen.axes[0]


@pytest.mark.parametrize(
    "name",
    [
        "heatmap",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("layer activity", "pca", "small correlations", "importance", "density", "curves", "report")
        ),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("comparison", "graph", "supernodes")),
    ],
)
def test_a_notebook_stores_the_data_of_a_figure_and_the_picture_of_the_static_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype+notebook")  # as plotly 6 has it in Jupyter
    figure = PAIRS[name].shown(title="A title")
    content = cast(Any, figure)._repr_mimebundle_()
    assert content.keys() == {PLOTLY, "image/png"}
    stored = json.loads(cast(Any, figure).to_json())
    assert {key: content[PLOTLY][key] for key in stored} == stored
    assert len(json.dumps(content)) < 400_000
    drawn = PAIRS[name].drawn(title="A title")
    assert isinstance(drawn, NotebookFigure)
    assert base64.b64decode(content["image/png"]) == drawn.png(96)


def test_a_form_that_the_user_chooses_is_plotlys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pio.renderers, "default", "json")
    assert cast(Any, PAIRS["heatmap"].shown())._repr_mimebundle_().keys() == {"application/json"}


def test_every_static_figure_has_an_interactive_one() -> None:
    static = {name.removeprefix("visualize_") for name in utils.__all__ if name.startswith("visualize_")}
    interactive = {name.removeprefix("interactive_") for name in utils.__all__ if name.startswith("interactive_")}
    assert interactive == static == {pair.interactive.__name__.removeprefix("interactive_") for pair in PAIRS.values()}
    assert open_clt.interactive_attribution_graph is utils.interactive_attribution_graph


def test_an_unknown_suffix_is_refused_before_anything_is_computed() -> None:
    broken = Pair(utils.visualize_report, utils.interactive_feature_heatmap, (HEAT,), {})
    with refuses(ConfigError, "figure.gif", ".html", ".png", ".svg", ".pdf"):
        broken.shown(save_path="figure.gif")
