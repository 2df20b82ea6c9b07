"""The interactive attribution graph: what the static one shows, in few traces, with facts under the mouse."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import pytest

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.picture import GraphPicture, picture_of
from open_clt.visualization.interactive.saving import page_of
from open_clt.visualization.labels import wrapped
from open_clt.visualization.style import BLUE, VERMILLION
from open_clt.visualization_utils import interactive_attribution_graph, visualize_attribution_graph
from tests.graphs.hand_graph import hand_graph
from tests.visualization.graph.test_figure import LONG, SHORT, picture
from tests.visualization.interactive.pairs import displayed, grouped


def traces(figure: go.Figure) -> list[Any]:
    return list(cast(Any, figure).data)


def edge_traces(figure: go.Figure) -> list[Any]:
    return [trace for trace in traces(figure) if trace.legendgroup in ("excites", "inhibits")]


def node_trace(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in traces(figure) if trace.name == name)


def hover_of(figure: go.Figure) -> list[str]:
    hover = [text for trace in traces(figure) if trace.hoverinfo == "text" for text in trace.hovertext]
    return [displayed(text) for text in hover]


@pytest.mark.parametrize(("tokens", "n_layers", "count"), [(SHORT, 4, 60), (LONG, 12, 60)])
def test_nodes_edges_and_labels_are_those_of_the_static_figure(tokens: list[str], n_layers: int, count: int) -> None:
    drawn = picture(count, tokens, n_layers, count, 4)
    figure = interactive_attribution_graph(drawn)
    static = visualize_attribution_graph(drawn).axes[0]
    edges = sum(int(np.isnan(np.asarray(trace.x, dtype=float)).sum()) for trace in edge_traces(figure))
    assert edges == len(drawn.weights) == len(static.collections[0].get_paths())
    named = {"feature": "feature", "error": "error", "other": "bias, position, MLP output"}
    for shape, name in named.items():
        trace = node_trace(figure, name)
        assert len(trace.x) == len(drawn.of(cast(Any, shape)))
        labels = [displayed(text) for text in trace.text]
        assert labels == [wrapped(drawn.labels[node]) for node in drawn.of(cast(Any, shape))]
    assert displayed(cast(Any, figure).layout.annotations[0].text).startswith("Area by influence")


def test_an_edge_lies_in_the_trace_of_its_sign_and_width() -> None:
    drawn = picture(3, SHORT, 4, 40, 3)
    figure = interactive_attribution_graph(drawn)
    assert 2 <= len(edge_traces(figure)) <= 8
    for name, colour, dash, count in (
        ("excites", BLUE, "solid", int((drawn.weights > 0).sum())),
        ("inhibits", VERMILLION, "5px,3px", int((drawn.weights < 0).sum())),
    ):
        of_sign = [trace for trace in edge_traces(figure) if trace.legendgroup == name]
        assert {(trace.line.color, trace.line.dash) for trace in of_sign} == {(colour, dash)}
        assert len({trace.line.width for trace in of_sign}) == len(of_sign)
        assert sum(int(np.isnan(np.asarray(trace.x, dtype=float)).sum()) for trace in of_sign) == count
        assert sum(bool(trace.showlegend) for trace in of_sign) == 1
    assert {trace.hoverinfo for trace in edge_traces(figure)} == {"skip"}


def test_the_area_of_a_marker_grows_with_influence() -> None:
    drawn = picture(3, SHORT, 4, 40, 3)
    sizes = np.asarray(node_trace(interactive_attribution_graph(drawn), "feature").marker.size)
    influence = drawn.influence[drawn.of("feature")]
    slopes = np.diff((sizes**2)[np.argsort(influence)]) / np.diff(np.sort(influence))
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)


def test_the_mouse_shows_label_kind_layer_token_activation_and_influence() -> None:
    graph = hand_graph()
    row = int(np.flatnonzero(graph.nodes.kind.numpy() == int(NodeKind.FEATURE))[0])
    node = graph.node(row)
    feature = Feature(node.layer, node.index)
    figure = interactive_attribution_graph(graph.with_labels({feature: "Texas & its cities"}), max_nodes=1000)
    start = f"Texas & its cities\nfeature {feature}, token {node.position}: "
    (text,) = [text for text in hover_of(figure) if text.startswith(start)]
    assert f"activation {node.value:.3g}" in text
    assert f"influence {float(graph.influence()[row]):.3g}" in text


def test_every_node_has_a_text_under_the_mouse() -> None:
    graph = hand_graph()
    drawn = picture_of(graph, 60, 160, ("feature", "error", "other"))
    texts = hover_of(interactive_attribution_graph(graph))
    assert len(texts) == len(drawn.shapes)
    assert all(texts)
    assert len(hover_of(interactive_attribution_graph(drawn))) == len(texts)


def test_a_supernode_is_a_box_with_its_members_under_the_mouse() -> None:
    graph = grouped()
    figure = interactive_attribution_graph(graph)
    assert len(node_trace(figure, "supernode").x) == 1
    members = next(one.members for one in graph.groups if one.label == "two features")
    (text,) = [displayed(text) for text in node_trace(figure, "supernode").hovertext]
    assert text.startswith("two features\nsupernode, 2 nodes:")
    assert all(member in text for member in members)
    outlines = [trace for trace in traces(figure) if trace.fill == "toself"]
    assert len(outlines) == 2  # supernodes and outputs


def labels_that_overlap(figure: go.Figure) -> list[tuple[str, str]]:
    """Pairs of labels of nodes whose boxes share an area, by the obvious double loop."""
    from open_clt.visualization.labels import text_size

    boxes: list[tuple[str, np.ndarray]] = []
    for trace in traces(figure):
        if trace.mode != "markers+text":
            continue
        for x, y, text, size in zip(trace.x, trace.y, trace.text, trace.marker.size, strict=True):
            if text:
                width, height = text_size(displayed(text), trace.textfont.size)
                left = x + size / 2 / 0.8 + 1  # as plotly places a text to the right of a marker
                boxes.append((text, np.array([[left, y - height / 2], [left + width / 1.12, y + height / 2]])))
    return [
        (first, second)
        for index, (first, one) in enumerate(boxes)
        for second, other in boxes[index + 1 :]
        if (np.minimum(one[1], other[1]) - np.maximum(one[0], other[0]) > 0.5).all()
    ]


@pytest.mark.parametrize(("tokens", "n_layers", "count"), [(SHORT, 4, 60), (LONG, 12, 60), (LONG, 12, 150)])
def test_no_two_labels_of_nodes_overlap(tokens: list[str], n_layers: int, count: int) -> None:
    assert labels_that_overlap(interactive_attribution_graph(picture(count, tokens, n_layers, count, 4))) == []


def test_a_large_graph_is_a_page_below_6_mb() -> None:
    drawn = picture(0, LONG, 12, 300, 10)
    heavy = np.argsort(-np.abs(drawn.weights))[:2000]
    large = GraphPicture(
        **{
            **vars(drawn),
            "sources": drawn.sources[heavy],
            "targets": drawn.targets[heavy],
            "weights": drawn.weights[heavy],
        }
    )
    figure = interactive_attribution_graph(large)
    assert sum(int(np.isnan(np.asarray(trace.x, dtype=float)).sum()) for trace in edge_traces(figure)) == 2000
    assert len(traces(figure)) <= 30
    assert len(page_of(figure).encode()) < 6e6


def test_rows_that_do_not_add_up_are_said_so() -> None:
    graph = hand_graph()
    damaged = AttributionGraph(
        graph.nodes, graph.edges._replace(weight=graph.edges.weight * 1.5), graph.info, graph.labels
    )
    shown = " ".join(
        displayed(note.text) for note in cast(Any, interactive_attribution_graph(damaged)).layout.annotations
    )
    assert damaged.missing() in shown
