"""A small attribution graph with given edges: two layers, three tokens, two logits and another target.

The main path is token:1:11 -> 0:1:5 -> 1:2:3 -> logit:2:40; the features 0:2:5 and 0:2:7 have similar edges to 0:1:5.
"""

from __future__ import annotations

import torch

from open_clt.graphs.attention import Carried, ExplainedLook, GraphAttention, Look, Pair, Part
from open_clt.graphs.edges import Edges
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import GraphInfo, GraphSettings
from open_clt.graphs.nodes import NodeId, NodeKind, NodeTable
from open_clt.graphs.targets import SalientLogits
from open_clt.transcoders.feature import Feature

NODES: list[tuple[NodeKind, int, int, int, float]] = [
    (NodeKind.FEATURE, 0, 1, 5, 1.5),
    (NodeKind.FEATURE, 0, 2, 5, 0.1),
    (NodeKind.FEATURE, 0, 2, 7, 2.5),
    (NodeKind.FEATURE, 1, 2, 3, 3.25),
    (NodeKind.ERROR, 0, 1, -1, 0.0),
    (NodeKind.ERROR, 1, 2, -1, 0.0),
    (NodeKind.EMBEDDING, -1, 0, 10, 0.0),
    (NodeKind.EMBEDDING, -1, 1, 11, 0.0),
    (NodeKind.EMBEDDING, -1, 2, 12, 0.0),
    (NodeKind.POSITIONAL, -1, 2, -1, 0.0),
    (NodeKind.BIAS, 0, 2, -1, 0.0),
    (NodeKind.LOGIT, 2, 2, 40, 0.6),
    (NodeKind.LOGIT, 2, 2, 41, 0.2),
    (NodeKind.TARGET, 2, 2, 1, 0.0),
]
NAMES = [str(NodeId.of(*row[:4])) for row in NODES]
EDGES: dict[tuple[str, str], float] = {
    ("token:0:10", "0:1:5"): 0.5,
    ("token:1:11", "0:1:5"): 1.0,
    ("position:2", "0:2:5"): 0.25,
    ("token:1:11", "0:2:5"): 1.0,
    ("token:0:10", "0:2:5"): 0.5,
    ("token:1:11", "0:2:7"): 0.8,
    ("token:2:12", "0:2:7"): -0.4,
    ("0:1:5", "1:2:3"): 2.0,
    ("0:2:5", "1:2:3"): 1.5,
    ("0:2:7", "1:2:3"): -1.0,
    ("error:0:1", "1:2:3"): 0.5,
    ("0:1:5", "logit:2:40"): 0.5,
    ("0:2:5", "logit:2:40"): 0.5,
    ("1:2:3", "logit:2:40"): 3.0,
    ("error:1:2", "logit:2:40"): -1.0,
    ("bias:0:2", "logit:2:40"): 0.125,
    ("0:2:7", "logit:2:41"): 1.0,
    ("1:2:3", "logit:2:41"): -2.0,
    ("1:2:3", "target:2:1"): 4.0,
}


def hand_graph(*, compatible: bool = False, tokens: tuple[str, ...] = ("<bos>", " the", " cat\n")) -> AttributionGraph:
    """Make the graph; a compatible one has no positional embedding, no bias, and no target that is not a token."""
    left_out = (NodeKind.POSITIONAL, NodeKind.BIAS, NodeKind.TARGET) if compatible else ()
    nodes = [node for node in NODES if node[0] not in left_out]
    row_of = {str(NodeId.of(*node[:4])): row for row, node in enumerate(nodes)}
    links = sorted(
        (row_of[target], row_of[source], weight)
        for (source, target), weight in EDGES.items()
        if source in row_of and target in row_of
    )
    columns = [list(column) for column in zip(*nodes, strict=True)]
    kind, layer, position, index = (torch.tensor([int(x) for x in column]) for column in columns[:4])
    value = torch.tensor(columns[4])
    is_logit, is_target = kind == NodeKind.LOGIT, kind == NodeKind.TARGET
    target, source, weight = (list(column) for column in zip(*links, strict=True))
    edges = Edges(torch.tensor(target), torch.tensor(source), torch.tensor(weight))
    has_row = torch.zeros(len(nodes), dtype=torch.bool).index_fill(0, edges.target, True)
    total = torch.zeros(len(nodes)).index_add(0, edges.target, edges.weight)
    table = NodeTable(
        kind=kind,
        layer=layer,
        position=position,
        index=index,
        value=value,
        weight=value * is_logit + is_target.float(),
        total=total.where(has_row, torch.tensor(torch.nan)),
        omitted=torch.zeros(len(nodes)),
        omitted_sum=torch.zeros(len(nodes)),
        cumulative=torch.full((len(nodes),), torch.nan),
        confidence=torch.full((len(nodes),), torch.nan),
    )
    info = GraphInfo(
        model="tiny",
        transcoder="tiny",
        prompt="the cat",
        tokens=(10, 11, 12),
        token_strings=tokens,
        target_names=(" sat", ' "on"') if compatible else (" sat", ' "on"', "sat - on"),
        n_layers=2,
        n_active_features=4,
        compatible=compatible,
        settings=GraphSettings(targets=(SalientLogits(max_count=2, position=2),), batch_size=8),
        versions={"open-clt": "0.1.0"},
    )
    return AttributionGraph(table, edges, info, {Feature(0, 7): "animals"})


def weights(graph: AttributionGraph) -> dict[tuple[str, str], float]:
    """Weights of the edges, by the ids of their sources and targets."""
    ids = graph.ids()
    edges = zip(*(column.tolist() for column in graph.edges), strict=True)
    return {(ids[source], ids[target]): weight for target, source, weight in edges}


def assert_same(graph: AttributionGraph, expected: AttributionGraph) -> None:
    """Two graphs are equal, bit for bit."""
    for name in NodeTable.__dataclass_fields__:
        column, expected_column = getattr(graph.nodes, name), getattr(expected.nodes, name)
        torch.testing.assert_close(column, expected_column, atol=0, rtol=0, equal_nan=True, msg=name)
    for column, expected_column in zip(graph.edges, expected.edges, strict=True):
        assert torch.equal(column, expected_column)
    assert graph.info == expected.info
    assert dict(graph.labels) == dict(expected.labels)


def hand_attention(score: float = 1.0) -> GraphAttention:
    """Explained attention of the graph: a head of layer 1 carries an edge to 1:2:3, and one of layer 0 one to 0:2:5.

    Feature 0:1:8, an MLP output and a bias are not in the graph.
    """
    query, key, unknown = (NodeId(NodeKind.FEATURE, 0, position, index) for position, index in ((2, 7), (1, 5), (1, 8)))
    token, error = NodeId(NodeKind.EMBEDDING, -1, 1, 11), NodeId(NodeKind.ERROR, 0, 2, -1)
    mlp = NodeId(NodeKind.MLP_OUTPUT, 0, 0, -1)
    looks = (
        ExplainedLook(
            look=Look(0, 3, 2, 1),
            score=score,
            attention=0.5,
            constant_part=0.25,
            missing_share=0.0,
            pairs=(Pair(NodeId(NodeKind.EMBEDDING, -1, 2, 12), token, 0.75),),
            by_query=(),
            by_key=(Part(token, 0.5),),
        ),
        ExplainedLook(
            look=Look(1, 2, 2, 1),
            score=score,
            attention=0.75,
            constant_part=-0.5,
            missing_share=2.0**-20,
            pairs=(Pair(query, unknown, 1.5), Pair(query, key, -0.5), Pair(error, mlp, 0.25)),
            by_query=(Part(query, 1.0),),
            by_key=(Part(unknown, 1.5), Part(mlp, 0.25)),
        ),
    )
    carried = (
        Carried(key, NodeId(NodeKind.FEATURE, 1, 2, 3), looks[1].look, 1.5),
        Carried(token, NodeId(NodeKind.FEATURE, 0, 2, 5), looks[0].look, 0.5),
    )
    return GraphAttention(0.25, carried, looks, {query: 2.5, key: 1.5, unknown: 0.5})
