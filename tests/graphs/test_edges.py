"""Edges: rows, columns and chunks of the same edges, and the numbers that are computed over chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from open_clt.errors import AttributionError
from open_clt.graphs import edges as edges_module
from open_clt.graphs.edges import Edges
from open_clt.graphs.influence import InfluenceGraph, Roles, prune, scores
from tests.graphs.hand_graph import hand_graph
from tests.reference.dense_influence import SlowGraph, slow_influence, slow_prune, slow_scores
from tests.refusals import refuses

N_NODES = 40


@pytest.fixture(params=[1, 7, 2**18], ids="{} edges a chunk".format)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "_CHUNK", request.param)


def random_graph(seed: int) -> tuple[InfluenceGraph, SlowGraph]:
    """Nodes without inputs, then nodes on four levels, then two outputs; edges lead upwards."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.cat([torch.full((8,), -1), torch.arange(30) // 8, torch.tensor([4, 4])])
    dense = torch.randn(N_NODES, N_NODES, generator=generator, dtype=torch.double).float()
    dense *= (level[:, None] > level) & (torch.rand(N_NODES, N_NODES, generator=generator) < 0.4)
    outputs = torch.zeros(N_NODES).index_fill(0, torch.tensor([38]), 0.7).index_fill(0, torch.tensor([39]), 0.2)
    omitted = torch.rand(N_NODES, generator=generator) * (level >= 0)
    target, source = dense.nonzero(as_tuple=True)
    shuffled = torch.randperm(len(target), generator=generator)
    edges = Edges(target[shuffled], source[shuffled], dense[target, source][shuffled])
    graph = InfluenceGraph(edges, outputs, omitted, level)
    return graph, SlowGraph(dense.double(), outputs.double(), omitted.double())


def mask(*nodes: int) -> Tensor:
    return torch.zeros(N_NODES, dtype=torch.bool).index_fill(0, torch.tensor(nodes), True)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("seed", range(3))
def test_influence_and_scores_equal_those_of_the_dense_matrix(seed: int) -> None:
    graph, slow = random_graph(seed)
    torch.testing.assert_close(graph.influence, slow_influence(slow), atol=1e-12, rtol=1e-9)
    tokens, errors = mask(0, 1, 2), mask(3, 4, 5)
    assert scores(graph, tokens, errors) == pytest.approx(slow_scores(slow, tokens, errors), rel=1e-9)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("node_share", "edge_share"), [(0.5, 0.9), (0.8, 0.98), (1.0, 1.0)])
def test_pruning_equals_that_of_the_dense_matrix(node_share: float, edge_share: float) -> None:
    graph, slow = random_graph(seed=5)
    roles = Roles(always=mask(0, 1, 2, 38, 39), exempt=mask(3, 4, 5), computed=graph.level >= 0)
    nodes, edges = prune(graph, roles, node_share, edge_share)
    slow_nodes, slow_edges = slow_prune(slow, roles, node_share, edge_share)
    assert torch.equal(nodes, slow_nodes)
    assert torch.equal(edges, slow_edges[graph.edges.target, graph.edges.source])


@pytest.mark.usefixtures("chunk")
def test_parts_and_masks_of_edges_equal_those_of_the_columns() -> None:
    edges = random_graph(seed=1)[0].edges
    nodes = torch.arange(N_NODES) % 3 != 0
    between = nodes[edges.target] & nodes[edges.source]
    assert torch.equal(edges.between(nodes), between)
    for column, expected in zip(edges.part(between), edges, strict=True):
        assert torch.equal(column, expected[between])
    assert len(edges.part(torch.zeros_like(between)).rows) == 0


@pytest.mark.usefixtures("chunk")
def test_chunks_hold_every_edge_of_the_chosen_rows_once() -> None:
    edges = random_graph(seed=2)[0].edges
    chosen = torch.tensor([0, 1, 2, 7, 9, 10])
    chunks = list(edges.chunks(chosen.numpy()))
    rows = torch.cat([torch.from_numpy(chunk.spread(chunk.rows)) for chunk in chunks])
    sources = torch.cat([torch.from_numpy(chunk.sources) for chunk in chunks])
    expected = torch.isin(edges.target, edges.rows[chosen])
    assert torch.equal(edges.rows[rows], edges.target[expected])
    assert torch.equal(sources.long(), edges.source[expected])


def test_edges_are_sorted_by_target_and_keep_their_order_within_one() -> None:
    edges = Edges(torch.tensor([5, 2, 5, 2]), torch.tensor([3, 1, 0, 0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert [column.tolist() for column in edges] == [[2, 2, 5, 5], [1, 0, 3, 0], [2.0, 4.0, 1.0, 3.0]]
    assert edges.rows.tolist() == [2, 5]
    assert [edges.sources_of(node).tolist() for node in (2, 3, 5, 6)] == [[1, 0], [], [3, 0], []]
    again = Edges(*edges)
    assert all(torch.equal(column, expected) for column, expected in zip(again, edges, strict=True))


def test_an_edge_takes_eight_bytes_and_its_columns_have_64_bits() -> None:
    edges = hand_graph().edges
    assert edges.sources.element_size() + edges.weight.element_size() == 8
    assert edges.target.dtype == edges.source.dtype == torch.int64


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        pytest.param({"target": torch.tensor([0.5])}, "target", marks=pytest.mark.wrong_types),
        pytest.param({"source": torch.tensor([True])}, "source", marks=pytest.mark.wrong_types),
        pytest.param({"weight": torch.tensor([1])}, "weight", marks=pytest.mark.wrong_types),
        pytest.param({"source": torch.tensor([1, 2])}, "source", marks=pytest.mark.wrong_types),
        ({"target": torch.tensor([-1])}, -1),
        ({"source": torch.tensor([2**31])}, 2**31),
    ],
    ids=lambda value: str(value)[:40],
)
def test_columns_that_are_not_those_of_edges_are_refused(columns: dict[str, Tensor], named: object) -> None:
    legal = {"target": torch.tensor([1]), "source": torch.tensor([0]), "weight": torch.tensor([1.0])}
    with refuses(AttributionError, named):
        Edges(**{**legal, **columns})
