"""A graph that is written to networkx or GraphML and read again is the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from open_clt.errors import CheckpointError
from open_clt.graphs.formats.networkx import from_networkx, read_graphml, to_networkx, write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.transcoders.feature import Feature
from tests.graphs.hand_graph import EDGES, NAMES, assert_same, hand_graph
from tests.refusals import refuses


@pytest.fixture
def graph() -> AttributionGraph:
    return hand_graph(tokens=("<bos>", "\x00\x1b", " <&\n")).with_labels({Feature(0, 5): "bell \x07 & <tag>"})


def test_a_networkx_graph_has_nodes_by_id_and_weighted_edges(graph: AttributionGraph) -> None:
    network = to_networkx(graph)
    assert list(network) == NAMES
    assert {(source, target) for source, target in network.edges} == set(EDGES)
    assert network.edges["1:2:3", "logit:2:40"]["weight"] == 3.0
    assert network.nodes["0:2:7"]["label"] == "animals"
    assert nx.has_path(network, "token:0:10", "logit:2:40")
    assert nx.is_directed_acyclic_graph(network)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_graph_read_from_networkx_is_the_same(graph: AttributionGraph, pruned: bool) -> None:
    graph = graph.prune(0.8) if pruned else graph
    assert_same(from_networkx(to_networkx(graph)), graph)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_graph_read_from_graphml_is_the_same(graph: AttributionGraph, pruned: bool, tmp_path: Path) -> None:
    graph = graph.prune(0.8) if pruned else graph
    assert_same(read_graphml(write_graphml(graph, tmp_path / "new" / "graph.graphml")), graph)


def test_nodes_may_be_removed_in_networkx(graph: AttributionGraph) -> None:
    network = to_networkx(graph)
    network.remove_nodes_from(["logit:2:40", "0:2:7"])
    smaller = from_networkx(network)
    assert smaller.ids() == [node for node in NAMES if node not in ("logit:2:40", "0:2:7")]
    assert smaller.info.target_names == (' "on"', "sat - on")


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError):
        from_networkx(nx.DiGraph([(1, 2)]))
    with refuses(CheckpointError, "none.graphml"):
        read_graphml(tmp_path / "none.graphml")
    (tmp_path / "broken.graphml").write_text("<graphml><graph")
    with refuses(CheckpointError, "broken.graphml"):
        read_graphml(tmp_path / "broken.graphml")
