"""A small attribution graph whose every number is known: two layers, three tokens, two outputs.

E_11_1 -> 0_5_1 -> 1_3_2 -> 3_40_2        the features 0_5_2 and 0_7_2 do much the same as 0_5_1
"""

from __future__ import annotations

import torch

from open_clt.attribution.graph import AttributionGraph, GraphInfo
from open_clt.attribution.influence import Edges
from open_clt.attribution.nodes import NodeKind, NodeTable, node_id

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
NAMES = [node_id(*row[:4]) for row in NODES]
EDGES: dict[tuple[str, str], float] = {
    ("E_10_0", "0_5_1"): 0.5,
    ("E_11_1", "0_5_1"): 1.0,
    ("P_2", "0_5_2"): 0.25,
    ("E_11_1", "0_5_2"): 1.0,
    ("E_10_0", "0_5_2"): 0.5,
    ("E_11_1", "0_7_2"): 0.8,
    ("E_12_2", "0_7_2"): -0.4,
    ("0_5_1", "1_3_2"): 2.0,
    ("0_5_2", "1_3_2"): 1.5,
    ("0_7_2", "1_3_2"): -1.0,
    ("0_-1_1", "1_3_2"): 0.5,
    ("0_5_1", "3_40_2"): 0.5,
    ("0_5_2", "3_40_2"): 0.5,
    ("1_3_2", "3_40_2"): 3.0,
    ("1_-1_2", "3_40_2"): -1.0,
    ("B_0_2", "3_40_2"): 0.125,
    ("0_7_2", "3_41_2"): 1.0,
    ("1_3_2", "3_41_2"): -2.0,
    ("1_3_2", "T_1_2"): 4.0,
}


def hand_graph(*, compatible: bool = False, tokens: tuple[str, ...] = ("<bos>", " the", " cat\n")) -> AttributionGraph:
    """The graph above; a compatible one has no positional embedding, bias or target that is no token."""
    kept = [
        row for row in NODES if not (compatible and row[0] in (NodeKind.POSITIONAL, NodeKind.BIAS, NodeKind.TARGET))
    ]
    names = [node_id(*row[:4]) for row in kept]
    number = {name: place for place, name in enumerate(names)}
    links = sorted(
        (number[target], number[source], weight)
        for (source, target), weight in EDGES.items()
        if source in number and target in number
    )
    columns = [list(column) for column in zip(*kept, strict=True)]
    kind, layer, position, index = (torch.tensor([int(x) for x in column]) for column in columns[:4])
    value = torch.tensor(columns[4])
    is_logit, is_target = kind == NodeKind.LOGIT, kind == NodeKind.TARGET
    target, source, weight = (list(column) for column in zip(*links, strict=True))
    edges = Edges(torch.tensor(target), torch.tensor(source), torch.tensor(weight))
    has_row = torch.zeros(len(kept), dtype=torch.bool).index_fill(0, edges.target, True)
    total = torch.zeros(len(kept)).index_add(0, edges.target, edges.weight)
    table = NodeTable(
        kind=kind,
        layer=layer,
        position=position,
        index=index,
        value=value,
        weight=value * is_logit + is_target.float(),
        total=total.where(has_row, torch.tensor(torch.nan)),
        omitted=torch.zeros(len(kept)),
        omitted_sum=torch.zeros(len(kept)),
        cumulative=torch.full((len(kept),), torch.nan),
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
        settings={"max_logits": 2, "logit_probability": 0.95, "max_feature_nodes": None, "batch_size": 8},
        versions={"open-clt": "0.1.0"},
    )
    return AttributionGraph(table, edges, info, {"0_7": "animals"})


def weights(graph: AttributionGraph) -> dict[tuple[str, str], float]:
    """Edges by the names of their ends."""
    names = graph.ids()
    rows = zip(*(column.tolist() for column in graph.edges), strict=True)
    return {(names[source], names[target]): weight for target, source, weight in rows}


def assert_same(found: AttributionGraph, expected: AttributionGraph) -> None:
    """Every bit of two graphs is the same."""
    for name in NodeTable.__dataclass_fields__:
        ours, theirs = getattr(found.nodes, name), getattr(expected.nodes, name)
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, equal_nan=True, msg=name)
    for ours, theirs in zip(found.edges, expected.edges, strict=True):
        assert torch.equal(ours, theirs)
    assert found.info == expected.info
    assert dict(found.labels) == dict(expected.labels)
