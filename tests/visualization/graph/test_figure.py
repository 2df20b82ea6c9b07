from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from open_clt.attribution.attribute import attribute
from open_clt.config import CrossLayerConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.supernodes import GroupedGraph, Supernode, group, suggest_supernodes
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.graph.picture import GraphPicture, Shape, picture_of
from open_clt.visualization.style import BLUE, GREY, VERMILLION
from tests.graphs.hand_graph import hand_graph
from tests.refusals import refuses
from tests.visualization.boxes import overlapping

SHORT = ["<|endoftext|>", "The", " capital", " of", " the", " state", " containing", " Dallas", " is"]
LONG = [
    "<|endoftext|>",
    *(f" {word}" for word in "When Mary and John went to the new shop in town , John gave".split()),
]
LABELS = ["say a capital", "Texas", "say Austin", "names of capitals of countries", "$x_1$", "L", "1843", "207"]


def picture(seed: int, tokens: list[str], n_layers: int, count: int, n_outputs: int) -> GraphPicture:
    """A picture like that of a real graph: most nodes at late positions, many labels, some errors and biases."""
    rng = np.random.default_rng(seed)
    mixture: list[Shape] = ["feature", "feature", "feature", "error", "other"]
    shapes = [mixture[index] for index in rng.integers(len(mixture), size=count)]
    rows = [rng.integers(n_layers) - 0.5 * (shape == "other") for shape in shapes]
    positions = np.minimum((len(tokens) * rng.random(count) ** 0.4).astype(int), len(tokens) - 1).tolist()
    labels = [LABELS[rng.integers(len(LABELS))] if shape == "feature" else "" for shape in shapes]
    shapes += ["token"] * len(tokens) + ["output"] * n_outputs
    rows += [-1.0] * len(tokens) + [float(n_layers)] * n_outputs
    positions += [*range(len(tokens)), *[len(tokens) - 1] * n_outputs]
    labels += [""] * len(tokens) + [f"·Austin{index}  {index}%" for index in range(n_outputs)]
    pairs = [(s, t) for s in range(len(rows)) for t in range(len(rows)) if rows[s] < rows[t] and rng.random() < 0.1]
    return GraphPicture(
        shapes=tuple(shapes),
        rows=tuple(map(float, rows)),
        positions=tuple(positions),
        labels=tuple(labels),
        influence=rng.random(len(rows)) ** 4,
        sources=np.array([source for source, _ in pairs]),
        targets=np.array([target for _, target in pairs]),
        weights=rng.normal(size=len(pairs)),
        tokens=tuple(tokens),
        n_layers=n_layers,
        caption="60 of 512 nodes between tokens and outputs, with 85% of their influence; 160 of 431 edges.",
    )


def texts_of(figure: Figure) -> list[Text]:
    ax = figure.axes[0]
    legend = ax.get_legend()
    return [*ax.texts, *(legend.get_texts() if legend else [])]


@pytest.mark.parametrize("n_outputs", [1, 10])
@pytest.mark.parametrize(("tokens", "n_layers", "count"), [(SHORT, 4, 30), (SHORT, 4, 60), (LONG, 12, 60)])
def test_no_two_labels_overlap(tokens: list[str], n_layers: int, count: int, n_outputs: int) -> None:
    """Labels of features, tokens, outputs and layers, the key and the caption do not overlap and lie on the page."""
    figure = visualize_attribution_graph(picture(count, tokens, n_layers, count, n_outputs), title="A graph")
    texts = texts_of(figure)
    assert len(texts) > count / 3
    assert overlapping(figure, texts) == []
    width, height = figure.bbox.width, figure.bbox.height
    for text in texts:
        box = text.get_window_extent()
        assert -1 <= box.x0 < box.x1 <= width + 1, text
        assert -1 <= box.y0 < box.y1 <= height + 1, text


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4, 3), (8, 3), (12, 9)])
def test_a_graph_is_scaled_to_fit_given_axes(size: tuple[float, float]) -> None:
    figure = Figure(figsize=size)
    left, right = figure.subplots(1, 2)
    assert visualize_attribution_graph(picture(1, SHORT, 4, 50, 5), ax=left, title="A graph") is figure
    assert overlapping(figure, texts_of(figure)) == []
    frame = left.get_window_extent()
    for text in texts_of(figure):
        box = text.get_window_extent()
        assert frame.x0 - 1 <= box.x0 < box.x1 <= frame.x1 + 1, text
        assert frame.y0 - 1 <= box.y0 < box.y1 <= frame.y1 + 1, text
    assert not right.has_data()


def test_influence_sets_sizes_and_weights_set_widths_and_colours() -> None:
    drawn = GraphPicture(
        shapes=("feature", "feature", "token", "output"),
        rows=(0.0, 1.0, -1.0, 2.0),
        positions=(0, 0, 0, 0),
        labels=("1", "2", "", "out"),
        influence=np.array([0.1, 0.4, 0.0, 0.0]),
        sources=np.array([2, 0, 1]),
        targets=np.array([0, 1, 3]),
        weights=np.array([2.0, -1.0, 4.0]),
        tokens=("a",),
        n_layers=2,
    )
    ax = visualize_attribution_graph(drawn).axes[0]
    small, large = (line.get_markersize() for line in ax.lines)
    assert small < large
    (edges,) = ax.collections
    widths = np.asarray(edges.get_linewidth())  # edges are drawn from light to heavy
    assert widths[1] - widths[0] == pytest.approx((widths[2] - widths[1]) / 2)
    colours = [to_hex(colour).upper() for colour in np.asarray(edges.get_edgecolor())]
    assert colours == [VERMILLION, BLUE, BLUE]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_every_picture_format_is_written(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / "folder" / f"graph{suffix}"
    visualize_attribution_graph(picture(0, SHORT, 4, 20, 2), save_path=path)
    assert path.read_bytes().startswith(magic)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with refuses(ConfigError, ".png", ".svg", ".pdf"):
        visualize_attribution_graph(picture(0, SHORT, 4, 20, 2), save_path=tmp_path / "graph.jpeg")


@pytest.fixture(scope="module")
def graph(tiny_gpt2: LanguageModel) -> AttributionGraph:
    transcoder = CrossLayerTranscoder(
        CrossLayerConfig(
            n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, n_features=32, nonlinearity=TopKConfig(k=3)
        ),
        seed=0,
    )
    return attribute(tiny_gpt2, transcoder, "The cat sat on the mat.", max_logits=3)


ALL: tuple[Shape, ...] = ("feature", "error", "other")


def test_the_most_influential_nodes_are_drawn(graph: AttributionGraph) -> None:
    drawn = picture_of(graph, 12, 1000, ALL)
    inner = ~graph.of_kind(NodeKind.EMBEDDING, NodeKind.LOGIT)
    expected = graph.influence()[inner].sort(descending=True).values[:12]
    influence = drawn.influence[drawn.of(*ALL)]
    assert np.sort(influence)[::-1] == pytest.approx(expected.numpy())
    assert len(drawn.of("token")) == len(graph.info.tokens)
    assert len(drawn.of("output")) == len(graph.info.target_names)
    assert f"12 of {int(inner.sum())} nodes" in drawn.caption


def test_edges_come_from_the_graph_and_lead_upwards(graph: AttributionGraph) -> None:
    drawn = picture_of(graph, 30, 40, ALL)
    rows = np.array(drawn.rows)
    assert (rows[drawn.sources] < rows[drawn.targets]).all()
    assert set(drawn.sources) >= set(drawn.of(*ALL))  # every node has an edge
    weights = set(graph.edges.weight.double().tolist())
    assert set(drawn.weights.tolist()) <= weights


def test_kinds_select_the_nodes_that_are_drawn(graph: AttributionGraph) -> None:
    drawn = picture_of(graph, 1000, 1000, ("feature",))
    assert len(drawn.of("feature")) == int((graph.of_kind(NodeKind.FEATURE) & (graph.influence() > 0)).sum())
    assert drawn.of("error", "other") == []


@pytest.mark.slow
def test_labels_of_features_are_drawn(graph: AttributionGraph) -> None:
    strongest = int(torch.where(graph.of_kind(NodeKind.FEATURE), graph.influence(), -1).argmax())
    node = graph.node(strongest)
    labelled = graph.with_labels({Feature(node.layer, node.index): "a $cat$"})
    for version, expected in ((graph, str(node.index)), (labelled, "a $cat$")):
        figure = visualize_attribution_graph(version, max_nodes=1000)
        assert expected in [text.get_text() for text in texts_of(figure)]


def test_a_pruned_graph_and_a_graph_without_edges_can_be_drawn(graph: AttributionGraph) -> None:
    assert overlapping(*of_graph(graph.prune(0.7))) == []
    empty = replace(graph, edges=graph.edges._replace(**{k: v[:0] for k, v in graph.edges._asdict().items()}))
    assert overlapping(*of_graph(empty)) == []


def test_outputs_state_their_probabilities(graph: AttributionGraph) -> None:
    drawn = picture_of(graph, 10, 10, ALL)
    weights = graph.nodes.weight[graph.of_kind(NodeKind.LOGIT)].tolist()
    assert [drawn.notes[node] for node in drawn.of("output")] == [
        "<1%" if weight < 0.005 else f"{weight:.0%}" for weight in weights
    ]
    assert len({*drawn.notes.values(), "<1%"} & {text.get_text() for text in of_graph(graph)[1]}) >= 1


PAIR = Supernode("the twins of the house", ("0:1:5", "0:2:5"))
DEEP = Supernode("deep", ("0:2:7", "1:2:3"))


def test_a_supernode_is_one_box_with_its_label_and_its_number_of_members() -> None:
    figure = visualize_attribution_graph(group(hand_graph(), [PAIR, Supernode("noise", ("error:0:1", "error:1:2"))]))
    texts = [text.get_text() for text in texts_of(figure)]
    assert {"the twins of the\nhouse", "2 features, L0", "noise", "2 errors, L0–1", "supernode"} <= set(texts)
    assert "5" not in texts  # members are not drawn separately
    boxes = [box for box in figure.axes[0].patches if isinstance(box, FancyBboxPatch)]
    assert len(boxes) == 2 + 3  # supernodes and outputs
    assert overlapping(figure, texts_of(figure)) == []


def test_edges_of_a_supernode_add_up_and_lead_upwards() -> None:
    grouped = group(hand_graph(compatible=True), [PAIR, DEEP])
    drawn = picture_of(grouped, 60, 160, ALL)
    twins, deep = (drawn.labels.index(supernode.label) for supernode in (PAIR, DEEP))
    (edge,) = ((drawn.sources == twins) & (drawn.targets == deep)).nonzero()[0]
    assert drawn.weights[edge] == pytest.approx(2.0 + 1.5)
    assert drawn.influence[twins] == pytest.approx(float(grouped.influence()[grouped.groups.index(PAIR)]))
    rows = np.array(drawn.rows)
    assert (rows[drawn.sources] < rows[drawn.targets]).all()
    assert drawn.positions[deep] == 2


def test_supernodes_may_contain_tokens_outputs_or_a_single_node(graph: AttributionGraph) -> None:
    small_graph = hand_graph()
    words, answers = (
        Supernode("words", ("token:0:10", "token:1:11")),
        Supernode("answers", ("logit:2:40", "logit:2:41")),
    )
    drawn = picture_of(group(small_graph, [words, answers, Supernode("alone", ("1:2:3",))]), 60, 160, ALL)
    assert {drawn.labels[node]: drawn.notes[node] for node in drawn.of("group")} == {
        "words": "2 tokens",
        "alone": "1 feature, L1",
    }
    assert drawn.notes[drawn.of("output")[0]] == "2 outputs"
    assert len(drawn.of("token")) == 1
    assert overlapping(*of_graph(group(small_graph, [words, answers]))) == []


def test_labels_of_suggested_supernodes_do_not_overlap(graph: AttributionGraph) -> None:
    supernodes = suggest_supernodes(graph, min_similarity=0.2)
    grouped = group(graph, supernodes)
    drawn = picture_of(grouped, 60, 200, ALL)
    assert 0 < len(drawn.of("group")) <= len(supernodes)
    rows = np.array(drawn.rows)
    assert (rows[drawn.sources] < rows[drawn.targets]).mean() > 0.95
    assert overlapping(*of_graph(grouped)) == []


def test_a_line_below_the_picture_warns_of_rows_that_do_not_add_up(graph: AttributionGraph) -> None:
    """The line is red where rows should add up, grey for a compatible graph, and absent if they add up."""
    wrong = replace(graph, edges=graph.edges._replace(weight=2 * graph.edges.weight))
    compatible = replace(wrong, info=replace(graph.info, compatible=True))
    colours: list[str | None] = []
    for drawn in (graph, wrong, compatible):
        warnings = [text for text in of_graph(drawn)[1] if drawn.missing() and text.get_text() == drawn.missing()]
        assert len(warnings) == bool(drawn.missing())
        colours.append(str(warnings[0].get_color()) if warnings else None)
        assert overlapping(*of_graph(drawn)) == []
    assert colours == [None, VERMILLION, GREY]


def of_graph(graph: AttributionGraph | GroupedGraph) -> tuple[Figure, list[Text]]:
    figure = visualize_attribution_graph(graph)
    return figure, texts_of(figure)
