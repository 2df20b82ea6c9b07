"""Titles of figures: they say what is shown and of what, and fit the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.visualization.figures import (
    visualize_cross_layer_correlations,
    visualize_feature_embedding,
    visualize_feature_heatmap,
    visualize_feature_importance,
)
from open_clt.visualization.labels import text_size
from open_clt.visualization.titles import TITLE_FONT, fitted, title_of
from tests.tiny_models import TEXTS
from tests.visualization.test_figures import FIGURES, Draw

LONG = "A title that goes on and on, with more words than one line of a small picture can hold, " * 3
PROMPT = "The cat sat on the mat."


@pytest.fixture(scope="module")
def clt(tiny_gpt2: LanguageModel) -> OpenCrossLayerTranscoder:
    clt = OpenCrossLayerTranscoder(tiny_gpt2, num_features=24)
    clt._trained = True
    return clt


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def inside(figure: Figure, text: Text) -> bool:
    figure.draw_without_rendering()
    box, page = text.get_window_extent(), figure.bbox
    return box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1


def title_text(figure: Figure) -> Text:
    (found,) = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
    return found


@pytest.mark.slow
def test_a_figure_of_a_model_states_the_prompt_or_the_length_of_the_texts_and_the_model(
    clt: OpenCrossLayerTranscoder,
) -> None:
    model = Path(clt.language_model.name).name
    heatmap = title(visualize_feature_heatmap(clt, PROMPT))
    assert PROMPT in heatmap
    assert model in heatmap
    assert title(clt.visualize_feature_activations(PROMPT)) == heatmap
    for draw in (visualize_feature_embedding, visualize_cross_layer_correlations, visualize_feature_importance):
        stated = title(draw(clt, TEXTS))
        assert model in stated
        assert " tokens " in stated


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "arrays", "settings"), FIGURES.values(), ids=FIGURES.keys())
def test_every_new_figure_has_a_title_unless_it_is_empty(draw: Draw, arrays: tuple[object], settings: dict) -> None:
    assert title(draw(*arrays, **settings)) != ""
    assert title(draw(*arrays, **settings, title="")) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "arrays", "settings"), FIGURES.values(), ids=FIGURES.keys())
def test_a_long_title_stays_inside_the_picture(draw: Draw, arrays: tuple[object], settings: dict) -> None:
    figure = draw(*arrays, **settings, title=LONG)
    assert "\n" in figure.get_suptitle()
    assert inside(figure, title_text(figure))
    page = Figure(figsize=(6, 3), layout="constrained")
    left, _ = page.subplots(1, 2)
    draw(*arrays, **settings, title=LONG, ax=left)
    (above,) = [text for text in left.findobj(Text) if text.get_text() and text.get_text() == left.get_title("left")]
    assert inside(page, above)


@pytest.mark.slow
def test_a_fitted_title_has_no_line_that_is_too_wide_and_an_ellipsis_where_it_is_cut() -> None:
    for width in (60.0, 150.0, 400.0):
        lines = fitted(LONG, width).split("\n")
        assert len(lines) <= 3
        assert all(text_size(line, TITLE_FONT)[0] <= width for line in lines)
        assert lines[-1].endswith("…")
    assert fitted("x" * 400, 100.0).endswith("…")
    assert fitted("short", 100.0) == "short"


def test_long_prompts_and_names_are_cut_and_line_breaks_are_not_kept() -> None:
    stated = title_of("Graph", prompt="word\n" * 200, model="/a/long/path" * 20 + "/name")
    assert len(stated) < 160
    assert "\n" not in stated
    assert stated.endswith("(name)")
    assert title_of("Graph", model="org/model") == "Graph (org/model)"


def test_labels_stand_beside_the_names_of_their_features_and_are_cut() -> None:
    labels = {Feature(1, 0): "Texas and its cities", Feature(0, 1): "x" * 100}
    bars = visualize_feature_importance(np.array([[0.1, 0.2], [0.6, 0.3]]), labels=labels).axes[0]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names[:2] == ["L1/0 Texas and its cities", "L1/1"]
    assert names[2].startswith("L0/1 xxx")
    assert len(names[2]) <= 48
    tokens, rows = ["a", "b"], ["L1/0", "L0/0"]
    heatmap = visualize_feature_heatmap(np.eye(2), tokens, rows, labels=labels).axes[0]
    assert [label.get_text() for label in heatmap.get_yticklabels()] == ["L1/0 Texas and its cities", "L0/0"]
    cells = visualize_cross_layer_correlations(np.eye(2), rows, labels=labels).axes[0]
    assert [label.get_text() for label in cells.get_yticklabels()] == ["L1/0 Texas and its cities", "L0/0"]
    assert [label.get_text() for label in cells.get_xticklabels()] == rows


def test_a_picture_of_a_graph_states_its_prompt_and_model(clt: OpenCrossLayerTranscoder, tmp_path: Path) -> None:
    from open_clt.visualization.graph.figure import visualize_attribution_graph

    graph = clt.create_attribution_graph(PROMPT)
    texts = [text.get_text() for text in visualize_attribution_graph(graph).findobj(Text)]
    assert any(
        PROMPT in text and Path(clt.language_model.name).name in text for text in (t.replace("\n", " ") for t in texts)
    )
    assert not any(PROMPT in t.get_text() for t in visualize_attribution_graph(graph, title="").findobj(Text))
