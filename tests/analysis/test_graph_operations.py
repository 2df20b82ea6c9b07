"""Graph operations: a part keeps its books, a path is every path, a comparison finds what was changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from open_clt.analysis.graph_operations import (
    NodeQuery,
    compare_graphs,
    describe,
    find_nodes,
    label_features,
    path_subgraph,
    subgraph,
)
from open_clt.analysis.records import FeatureExample, FeatureRecord, TokenEffect
from open_clt.attribution.graph import AttributionGraph
from open_clt.attribution.nodes import NodeKind
from open_clt.errors import AttributionError
from tests.analysis.hand_graph import EDGES, NAMES, hand_graph, weights


@pytest.fixture
def graph() -> AttributionGraph:
    return hand_graph()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (NodeQuery(), NAMES),
        (NodeQuery(kinds=(NodeKind.ERROR,)), ["0_-1_1", "1_-1_2"]),
        (NodeQuery(layers=(1,)), ["1_3_2", "1_-1_2"]),
        (NodeQuery(positions=(-2,)), ["0_5_1", "0_-1_1", "E_11_1"]),
        (NodeQuery(token="cat", kinds=(NodeKind.FEATURE,)), ["0_5_2", "0_7_2", "1_3_2"]),
        (NodeQuery(label="ANIMAL"), ["0_7_2"]),
        (NodeQuery(layers=(1,), positions=(0,)), []),
    ],
)
def test_a_query_finds_what_meets_every_condition(
    graph: AttributionGraph, query: NodeQuery, expected: list[str]
) -> None:
    assert find_nodes(graph, query) == expected


def test_a_subgraph_has_the_nodes_asked_for_and_their_edges(graph: AttributionGraph) -> None:
    wanted = ["E_11_1", "0_5_1", "1_3_2", "3_41_2"]
    part = subgraph(graph, wanted)
    assert set(part.ids()) == set(wanted)
    assert weights(part) == pytest.approx({edge: weight for edge, weight in EDGES.items() if set(edge) <= set(wanted)})
    # The output that is left keeps its own name.
    assert part.node(part.n_nodes - 1).label == graph.node(NAMES.index("3_41_2")).label


def test_a_subgraph_remembers_what_its_rows_lost(graph: AttributionGraph) -> None:
    part = subgraph(graph, ["0_5_1", "1_3_2", "3_40_2"])
    assert part.check().relative_to_row < 1e-6
    assert float(part.nodes.omitted[part.ids().index("1_3_2")]) == pytest.approx(3.0)
    assert float(part.nodes.omitted_sum[part.ids().index("1_3_2")]) == pytest.approx(1.0)


def test_a_path_subgraph_is_all_paths_and_nothing_else(graph: AttributionGraph) -> None:
    part = path_subgraph(graph, "E_10_0", "3_40_2")
    assert set(part.ids()) == {"E_10_0", "0_5_1", "0_5_2", "1_3_2", "3_40_2"}
    assert ("0_5_1", "3_40_2") in weights(part)
    with pytest.raises(AttributionError, match="No path leads from '3_40_2'"):
        path_subgraph(graph, "3_40_2", "E_10_0")


def test_unknown_nodes_are_named(graph: AttributionGraph) -> None:
    with pytest.raises(AttributionError, match="no node '9_9_9'"):
        subgraph(graph, ["0_5_1", "9_9_9"])


def test_a_graph_equals_itself(graph: AttributionGraph) -> None:
    same = compare_graphs(graph, graph)
    assert (same.node_overlap, same.edge_overlap) == (1, 1)
    assert same.weight_cosine == pytest.approx(1)
    assert not same.nodes_only_first
    assert not same.edges_only_second


def test_a_comparison_finds_what_was_changed(graph: AttributionGraph) -> None:
    other = subgraph(graph, [name for name in NAMES if name != "0_7_2"])
    stronger = other.edges._replace(weight=other.edges.weight.clone())
    names = other.ids()
    changed = (stronger.source == names.index("1_3_2")) & (stronger.target == names.index("3_40_2"))
    stronger.weight[changed] = 5.0
    found = compare_graphs(graph, replace(other, edges=stronger))
    assert found.nodes_only_first == ("0_7_2",)
    assert found.nodes_only_second == ()
    assert {pair[:2] for pair in found.edges_only_first} == {edge for edge in EDGES if "0_7_2" in edge}
    assert found.shared_edges[0] == ("1_3_2", "3_40_2", 3.0, 5.0)
    assert found.node_overlap == pytest.approx(13 / 14)
    first = torch.tensor([EDGES[edge] for edge in EDGES])
    second = torch.tensor(
        [0.0 if "0_7_2" in edge else 5.0 if edge == ("1_3_2", "3_40_2") else EDGES[edge] for edge in EDGES]
    )
    assert found.weight_cosine == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)))


def test_across_positions_a_feature_is_one(graph: AttributionGraph) -> None:
    found = compare_graphs(graph, subgraph(graph, ["0_5_2", "1_3_2"]), across_positions=True)
    assert found.shared_nodes == ("0_5", "1_3")
    (pair,) = found.shared_edges
    assert pair == ("0_5", "1_3", 3.5, 1.5)


def record(layer: int, feature: int) -> FeatureRecord:
    peaks = [FeatureExample((" a", token), torch.tensor([0.0, 1.0]), 1) for token in (" dog", " cat", " dog")]
    effects = (TokenEffect(" barks", 2.0), TokenEffect(" runs", 1.0), TokenEffect(" is", 0.5))
    return FeatureRecord(layer, feature, 0.1, 1.0, tuple(peaks), effects, ())


@pytest.mark.parametrize(
    ("fires", "raises", "label"),
    [
        ([" dog"], [" barks", "barks", " runs"], "dog → barks, runs"),
        ([" dog", "\ufffd", "\x15"], ["\ufffd", "\x15", " ", " runs"], "dog → runs"),
        ([","], ["'", " \n", "“"], "“,” → “'”, ““”"),
        (["\ufffd"], ["\x15"], "feature 5"),
        (["\ufffd"], [" cat"], "cat"),
    ],
)
def test_labels_pass_over_what_no_one_can_read(fires: list[str], raises: list[str], label: str) -> None:
    peaks = tuple(FeatureExample((token,), torch.ones(1), 0) for token in fires)
    effects = tuple(TokenEffect(token, 1.0) for token in raises)
    assert describe(FeatureRecord(0, 5, 0.1, 1.0, peaks, effects, ())) == label


def test_records_name_features_but_never_over_the_user(graph: AttributionGraph) -> None:
    assert describe(record(0, 5)) == "dog, cat → barks, runs"
    named = label_features(graph, [record(0, 5), record(0, 7)])
    assert [named.node(place).label for place in (0, 1, 2)] == [describe(record(0, 5))] * 2 + ["animals"]
