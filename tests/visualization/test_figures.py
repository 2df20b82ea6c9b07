from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from open_clt import visualization_utils
from open_clt.errors import ConfigError
from open_clt.visualization.figures import (
    visualize_cross_layer_correlations,
    visualize_feature_density,
    visualize_feature_embedding,
    visualize_feature_heatmap,
    visualize_feature_importance,
    visualize_layer_activity,
    visualize_training_curves,
)
from tests.refusals import refuses
from tests.visualization.boxes import overlapping

RNG = np.random.default_rng(0)
TOKENS = [
    "<|endoftext|>",
    "The",
    " capital",
    " of",
    " $x_1$ costs $5",
    "\n",
    "你好",
    " snake_case_and_more",
    " is",
    "%",
]
NAMES = [f"L{row // 5}/{row * 317 % 2048}" for row in range(20)]


class Curves(NamedTuple):
    step: list[int]
    loss: list[float]
    fvu: list[float]
    l0: list[float]
    dead_share: list[float]


HEAT = np.maximum(RNG.normal(size=(20, len(TOKENS))), 0)
SPARSE = RNG.random((4, 64)) ** 8 * (RNG.random((4, 64)) > 0.1)
CORRELATIONS = np.array(np.corrcoef(RNG.normal(size=(20, 50))))

Draw = Callable[..., Figure]
FIGURES: dict[str, tuple[Draw, tuple[Any, ...], dict[str, Any]]] = {
    "heatmap": (visualize_feature_heatmap, (HEAT, TOKENS, NAMES), {}),
    "layer activity": (visualize_layer_activity, (HEAT[:4], TOKENS), {}),
    "pca": (visualize_feature_embedding, (RNG.normal(size=(40, 8)), np.arange(40) % 4), {"method": "pca"}),
    "tsne": (visualize_feature_embedding, (RNG.normal(size=(12, 8)), [0, 1, 2] * 4), {"method": "tsne"}),
    "correlations": (
        visualize_cross_layer_correlations,
        (CORRELATIONS, NAMES),
        {"layers": [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5},
    ),
    "small correlations": (visualize_cross_layer_correlations, (CORRELATIONS[:4, :4], NAMES[:4]), {}),
    "importance": (visualize_feature_importance, (SPARSE,), {}),
    "density": (visualize_feature_density, (SPARSE,), {}),
}
every_figure = pytest.mark.parametrize(("draw", "arrays", "settings"), FIGURES.values(), ids=FIGURES.keys())


@every_figure
def test_figures_are_drawn_into_given_axes_and_returned(draw: Draw, arrays: Any, settings: Any) -> None:
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert draw(*arrays, **settings, ax=left, title="$a_b$") is figure
    assert left.has_data()
    assert left.get_title("left") == "$a_b$"
    assert not right.has_data()


@pytest.mark.slow
@every_figure
def test_labels_do_not_overlap(draw: Draw, arrays: Any, settings: Any) -> None:
    figure = draw(*arrays, **settings, title="A title")
    ax = figure.axes[0]
    assert overlapping(figure, [*ax.get_xticklabels(), ax.xaxis.label, ax.title]) == []
    assert overlapping(figure, [*ax.get_yticklabels(), ax.yaxis.label]) == []


@pytest.mark.slow
@every_figure
def test_labels_do_not_overlap_in_a_small_figure(draw: Draw, arrays: Any, settings: Any) -> None:
    figure = Figure(figsize=(3, 1.6), layout="constrained")
    ax = figure.add_subplot()
    draw(*arrays, **settings, ax=ax)
    assert overlapping(figure, ax.get_xticklabels()) == []
    assert overlapping(figure, ax.get_yticklabels()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "magic"),
    [
        (".png", b"\x89PNG"),
        pytest.param(".svg", b"<?xml", marks=pytest.mark.slow),
        pytest.param(".pdf", b"%PDF", marks=pytest.mark.slow),
    ],
)
def test_every_picture_format_is_written_the_same_every_time(tmp_path: Path, suffix: str, magic: bytes) -> None:
    contents: list[bytes] = []
    for folder in ("one", "two"):
        path = tmp_path / folder / f"heatmap{suffix}"
        visualize_feature_heatmap(HEAT, TOKENS, NAMES, save_path=path)
        contents.append(path.read_bytes())
    assert contents[0].startswith(magic)
    assert contents[0] == contents[1]


@every_figure
def test_an_unknown_suffix_is_refused(draw: Draw, arrays: Any, settings: Any, tmp_path: Path) -> None:
    with refuses(ConfigError, "figure.gif", ".png", ".svg", ".pdf"):
        draw(*arrays, **settings, save_path=tmp_path / "figure.gif")
    assert list(tmp_path.iterdir()) == []


def test_dollar_signs_are_not_read_as_mathematics() -> None:
    figure = visualize_feature_heatmap(HEAT, TOKENS, NAMES)
    labels = figure.axes[0].get_xticklabels()
    assert "·$x_1$ costs …" in [label.get_text() for label in labels]
    assert not any(label.get_parse_math() for label in labels)


def test_drawing_does_not_change_the_global_style() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    visualize_feature_heatmap(HEAT, TOKENS, NAMES)
    assert dict(mpl.rcParams) == before


def test_a_wrong_number_of_labels_is_refused() -> None:
    with refuses(ConfigError, "tokens", len(TOKENS)):
        visualize_feature_heatmap(HEAT)
    with refuses(ConfigError, "names", 19, 20):
        visualize_feature_heatmap(HEAT, TOKENS, NAMES[1:])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_array_is_refused(shape: tuple[int, int]) -> None:
    values = np.zeros(shape)
    with refuses(ConfigError, "activations", *shape):
        visualize_feature_heatmap(values, [""] * shape[1])
    with refuses(ConfigError, "importance", *shape):
        visualize_feature_importance(values)
    with refuses(ConfigError, "vectors", *shape):
        visualize_feature_embedding(values, [0] * shape[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_refused(value: float) -> None:
    values = np.ones((3, 4))
    values[1, 2] = value
    with refuses(ConfigError, "activations", value, [1, 2]):
        visualize_feature_heatmap(values, [""] * 4)
    with refuses(ConfigError, "importance", value, [1, 2]):
        visualize_feature_importance(values)
    with refuses(ConfigError, "density", value, [1, 2]):
        visualize_feature_density(values)


def test_an_array_without_its_labels_is_refused() -> None:
    vectors = RNG.normal(size=(4, 8))
    for layers in (None, [0, 1, 2], ["a"] * 4, [0, 0, 0, -1]):
        with refuses(ConfigError, "layers"):
            visualize_feature_embedding(vectors, layers)
    with refuses(ConfigError, "names"):
        visualize_cross_layer_correlations(CORRELATIONS)


@pytest.mark.parametrize("top_n", [0, -1, 2**70])
def test_at_least_one_feature_is_drawn(top_n: int) -> None:
    with refuses(ConfigError, "top_n", top_n):
        visualize_feature_importance(SPARSE, top_n=top_n)


def test_importance_shows_the_most_important_feature_first() -> None:
    importance = np.array([[0.1, 0.0], [0.6, 0.3]])
    ax = visualize_feature_importance(importance, top_n=3).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["L1/0", "L1/1", "L0/0"]
    assert [bar.get_width() for bar in bars(ax)] == pytest.approx([60, 30, 10])


def bars(ax: Axes) -> list[Any]:
    return [bar for container in ax.containers for bar in container]


def test_density_states_the_share_of_features_that_never_fire() -> None:
    ax = visualize_feature_density(np.array([[0.5, 0.0], [0.01, 0.001]])).axes[0]
    assert ax.get_title("right") == "25.0% never active"
    assert visualize_feature_density(np.zeros((2, 3))).axes[0].get_title("right") == "100.0% never active"


def test_training_curves_state_their_last_values(tmp_path: Path) -> None:
    curves = Curves([1, 2, 3], [9.0, 4.0, 2.5], [1.0, 0.5, 0.125], [16.0, 16.0, 16.0], [0.0, 0.1, 0.25])
    figure = visualize_training_curves(curves, title="t", save_path=tmp_path / "curves.svg")
    assert [ax.get_title("right") for ax in figure.axes] == ["2.5", "12.5%", "16", "25.0%"]
    axes = Figure().subplots(1, 4)
    assert visualize_training_curves(curves, axes=list(axes)) is axes[0].figure
    with refuses(ConfigError, "axes", 3, 4):
        visualize_training_curves(curves, axes=list(axes[:3]))


def test_all_figures_can_be_imported_from_one_module() -> None:
    assert all(callable(getattr(visualization_utils, name)) for name in visualization_utils.__all__)
    assert {draw.__name__ for draw, _, _ in FIGURES.values()} < set(visualization_utils.__all__)
