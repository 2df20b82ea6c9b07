"""Operations on graphs: queries, subgraphs, paths and comparisons."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import (
    NodeQuery,
    compare_graphs,
    find_nodes,
    node_numbers,
    path_subgraph,
    sizes_at_replacement,
    subgraph,
)
from tests.graphs.hand_graph import EDGES, NAMES, hand_graph, weights
from tests.refusals import refuses


@pytest.fixture
def graph() -> AttributionGraph:
    return hand_graph()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (NodeQuery(), NAMES),
        (NodeQuery(kinds=(NodeKind.ERROR,)), ["error:0:1", "error:1:2"]),
        (NodeQuery(layers=(1,)), ["1:2:3", "error:1:2"]),
        (NodeQuery(positions=(-2,)), ["0:1:5", "error:0:1", "token:1:11"]),
        (NodeQuery(token="cat", kinds=(NodeKind.FEATURE,)), ["0:2:5", "0:2:7", "1:2:3"]),
        (NodeQuery(label="ANIMAL"), ["0:2:7"]),
        (NodeQuery(layers=(1,), positions=(0,)), []),
    ],
)
def test_a_query_finds_the_nodes_that_meet_every_condition(
    graph: AttributionGraph, query: NodeQuery, expected: list[str]
) -> None:
    assert find_nodes(graph, query) == expected


def test_a_subgraph_has_the_given_nodes_and_the_edges_between_them(graph: AttributionGraph) -> None:
    ids = ["token:1:11", "0:1:5", "1:2:3", "logit:2:41"]
    part = subgraph(graph, ids)
    assert set(part.ids()) == set(ids)
    assert weights(part) == pytest.approx({edge: weight for edge, weight in EDGES.items() if set(edge) <= set(ids)})
    # The remaining output keeps its name.
    assert part.node(part.n_nodes - 1).label == graph.node(NAMES.index("logit:2:41")).label


def test_a_subgraph_adds_the_weights_of_removed_edges_to_omitted(graph: AttributionGraph) -> None:
    part = subgraph(graph, ["0:1:5", "1:2:3", "logit:2:40"])
    assert part.check().relative_to_row < 1e-6
    assert float(part.nodes.omitted[part.ids().index("1:2:3")]) == pytest.approx(3.0)
    assert float(part.nodes.omitted_sum[part.ids().index("1:2:3")]) == pytest.approx(1.0)


def test_a_path_subgraph_has_the_nodes_and_edges_of_all_paths(graph: AttributionGraph) -> None:
    part = path_subgraph(graph, "token:0:10", "logit:2:40")
    assert set(part.ids()) == {"token:0:10", "0:1:5", "0:2:5", "1:2:3", "logit:2:40"}
    assert ("0:1:5", "logit:2:40") in weights(part)
    with refuses(AttributionError, "logit:2:40"):
        path_subgraph(graph, "logit:2:40", "token:0:10")


def test_ids_may_be_circuit_tracers_or_have_positions_from_the_end(graph: AttributionGraph) -> None:
    ours = ["token:0:10", "0:1:5", "0:2:5", "1:2:3", "logit:2:40", "target:2:1", "error:0:1"]
    theirs = ["E_10_0", "0_5_1", "0:-1:5", "1_3_2", "3_40_2", "3_-2_2", "0_-1_1"]
    assert node_numbers(graph, theirs).tolist() == node_numbers(graph, ours).tolist()
    assert set(path_subgraph(graph, "E_10_0", "3_40_2").ids()) == set(path_subgraph(graph, ours[0], ours[4]).ids())


def test_errors_name_unknown_nodes(graph: AttributionGraph) -> None:
    with refuses(AttributionError, "9:9:9"):
        subgraph(graph, ["0:1:5", "9:9:9"])


def test_a_graph_compared_with_itself_shares_everything(graph: AttributionGraph) -> None:
    comparison = compare_graphs(graph, graph)
    assert (comparison.node_overlap, comparison.edge_overlap) == (1, 1)
    assert comparison.weight_cosine == pytest.approx(1)
    assert not comparison.nodes_only_first
    assert not comparison.edges_only_second


def test_a_comparison_finds_a_missing_node_and_a_changed_edge(graph: AttributionGraph) -> None:
    smaller = subgraph(graph, [node for node in NAMES if node != "0:2:7"])
    edges = smaller.edges._replace(weight=smaller.edges.weight.clone())
    ids = smaller.ids()
    changed = (edges.source == ids.index("1:2:3")) & (edges.target == ids.index("logit:2:40"))
    edges.weight[changed] = 5.0
    comparison = compare_graphs(graph, replace(smaller, edges=edges))
    assert comparison.nodes_only_first == ("0:2:7",)
    assert comparison.nodes_only_second == ()
    assert {pair[:2] for pair in comparison.edges_only_first} == {edge for edge in EDGES if "0:2:7" in edge}
    assert comparison.shared_edges[0] == ("1:2:3", "logit:2:40", 3.0, 5.0)
    assert comparison.node_overlap == pytest.approx(13 / 14)
    first = torch.tensor([EDGES[edge] for edge in EDGES])
    second = torch.tensor(
        [0.0 if "0:2:7" in edge else 5.0 if edge == ("1:2:3", "logit:2:40") else EDGES[edge] for edge in EDGES]
    )
    assert comparison.weight_cosine == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)))


def test_across_positions_the_edges_of_a_feature_are_added(graph: AttributionGraph) -> None:
    comparison = compare_graphs(graph, subgraph(graph, ["0:2:5", "1:2:3"]), across_positions=True)
    assert comparison.shared_nodes == ("0:*:5", "1:*:3")
    (pair,) = comparison.shared_edges
    assert pair == ("0:*:5", "1:*:3", 3.5, 1.5)


def test_embeddings_of_different_tokens_are_different_nodes(graph: AttributionGraph) -> None:
    tokens = graph.of_kind(NodeKind.EMBEDDING)
    other = replace(graph, nodes=replace(graph.nodes, index=graph.nodes.index + tokens))
    for across_positions, first in ((False, "token:0:10"), (True, "token:*:10")):
        comparison = compare_graphs(graph, other, across_positions=across_positions)
        assert first in (*comparison.nodes_only_first, *comparison.nodes_only_second)
        assert comparison.node_overlap < 1


def test_sizes_grow_with_the_replacement_score_and_are_those_of_pruned_graphs(graph: AttributionGraph) -> None:
    pruned = graph.prune(0.8, 1.0)
    score = pruned.scores().replacement
    sizes = sizes_at_replacement(graph, [score / 2, score, 1.1])
    assert sizes[score] == pytest.approx(float(pruned.of_kind(NodeKind.FEATURE).sum()))
    assert 0 < sizes[score / 2] < sizes[score]
    assert math.isnan(sizes[1.1])
