"""The part of an attribution graph that is drawn, as plain columns that do not depend on the attribution code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.features.labelling.automatic import in_brief
from open_clt.graphs.consensus_table import ConsensusTable
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.visualization.labels import token_label
from open_clt.visualization.titles import title_of

Shape: TypeAlias = Literal["feature", "error", "other", "group", "token", "output"]
"""Shape of a node: ``other`` means a bias, positional embedding or whole MLP output; ``group`` means a supernode."""

_SHAPES: dict[NodeKind, Shape] = {
    NodeKind.FEATURE: "feature",
    NodeKind.ERROR: "error",
    NodeKind.EMBEDDING: "token",
    NodeKind.POSITIONAL: "other",
    NodeKind.BIAS: "other",
    NodeKind.MLP_OUTPUT: "other",
    NodeKind.LOGIT: "output",
    NodeKind.TARGET: "output",
}


_FAINTEST = 0.2
"""Opacity of a marker whose node is in hardly any graph of a consensus."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GraphPicture:
    """A graph as it is drawn: columns with one entry per node, and edges that name nodes by their index."""

    shapes: tuple[Shape, ...]
    rows: tuple[float, ...]
    """Height of each node in layers, which matters for nodes that are neither tokens nor outputs; -1 is the input.

    A bias stands half a layer lower than the features that read it, and a supernode stands between its sources and its
    targets, so that edges lead upwards.
    """
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    """Text beside each node or within each output; empty for a node without a label."""
    notes: Mapping[int, str] = field(default_factory=dict[int, str])
    """Second, smaller line of a supernode or an output, by node index."""
    members: tuple[tuple[int, ...], ...] = ()
    """Rows of the graph's table of nodes that each node stands for; empty if the picture was not made from a graph."""
    influence: npt.NDArray[np.float64]
    """Influence of each node, which sets the area of its marker."""
    sources: npt.NDArray[np.int64]
    """Node index of the source of each edge."""
    targets: npt.NDArray[np.int64]
    """Node index of the target of each edge."""
    weights: npt.NDArray[np.float64]
    """Signed weight of each edge."""
    tokens: tuple[str, ...]
    """All tokens of the prompt, including those without a node."""
    n_layers: int
    title: str = ""
    """Title that states the prompt and the model."""
    caption: str = ""
    missing: str = ""
    """Line that warns of rows that do not add up; empty if they do."""
    alarming: bool = False
    """Whether ``missing`` reports an error, because the rows of this kind of graph should add up."""
    averages: str = ""
    """Line that says what a consensus is an average of; empty for the graph of one prompt."""
    frequencies: tuple[float, ...] = ()
    """Share of a consensus's graphs that have each node, at most 1; empty for the graph of one prompt."""
    edge_frequencies: npt.NDArray[np.float64] | None = None
    """Share of a consensus's graphs that have each edge; None for other graphs, and where supernodes join edges."""

    __repr__ = short_repr

    @cached_property
    def largest_influence(self) -> float:
        """Largest influence of a node between tokens and outputs; 0 if there are none."""
        between = [node for node, shape in enumerate(self.shapes) if shape not in ("token", "output")]
        return float(np.max(self.influence[between], initial=0))

    def opacity(self, node: int) -> float:
        """Return the opacity of a node's marker, which grows with its frequency."""
        return _FAINTEST + (1 - _FAINTEST) * self.frequencies[node] if self.frequencies else 1.0

    def of(self, *shapes: Shape) -> list[int]:
        """Return the indices of the nodes that have one of these shapes."""
        return [node for node, shape in enumerate(self.shapes) if shape in shapes]


_NAMES: dict[tuple[bool, bool], str] = {
    (False, False): "Attribution graph",
    (True, False): "Grouped attribution graph",
    (False, True): "Consensus graph",
    (True, True): "Grouped consensus graph",
}
"""Names of graphs in titles: whether nodes are grouped, and whether the graph is a consensus."""


class _Unit(NamedTuple):
    """A node or supernode that may be drawn."""

    shape: Shape
    row: float
    position: int
    label: str
    note: str
    members: tuple[int, ...]
    """Rows of the graph's table of nodes that the unit stands for."""


def picture_of(
    drawn: AttributionGraph | GroupedGraph, max_nodes: int, max_edges: int, kinds: Sequence[Shape]
) -> GraphPicture:
    """Select outputs, tokens, the most influential nodes between them, and the edges that carry most influence."""
    grouped = isinstance(drawn, GroupedGraph)
    graph = drawn.graph if grouped else drawn
    units = _grouped_units(drawn) if grouped else _units(graph)
    edges, influence, influence_graph = drawn.edges, drawn.influence(), drawn.influence_graph
    ends = torch.tensor([unit.shape in ("token", "output") for unit in units])
    eligible = torch.tensor([unit.shape in (*kinds, "group") for unit in units]) & (influence > 0)
    drawn_nodes = ends | _largest(influence.where(eligible, 0), max_nodes)
    between = edges.between(drawn_nodes).nonzero().flatten()
    target, source, weight = (column[between] for column in edges)
    carried = influence_graph.scaled(influence + influence_graph.outputs)[between]
    drawn_edges = _strongest(source, target, carried.float(), max_edges)
    index_in_picture = drawn_nodes.cumsum(0) - 1
    shown = [units[node] for node in drawn_nodes.nonzero()[:, 0].tolist()]
    picture = GraphPicture(
        shapes=tuple(unit.shape for unit in shown),
        rows=tuple(unit.row for unit in shown),
        positions=tuple(unit.position for unit in shown),
        labels=tuple(unit.label for unit in shown),
        notes={index: unit.note for index, unit in enumerate(shown) if unit.note},
        members=tuple(unit.members for unit in shown),
        influence=influence[drawn_nodes].double().numpy(),
        sources=index_in_picture[source[drawn_edges]].numpy(),
        targets=index_in_picture[target[drawn_edges]].numpy(),
        weights=weight[drawn_edges].double().numpy(),
        tokens=tuple(graph.info.token_strings),
        n_layers=graph.info.n_layers,
        title=title_of(
            _NAMES[grouped, graph.consensus is not None],
            prompt=graph.info.prompt,
            model=graph.info.model,
            link="of",
        ),
        caption=_caption(influence[~ends], drawn_nodes[~ends], len(drawn_edges), len(between)),
        missing=graph.missing(),
        alarming=not graph.info.compatible,
        **_of_consensus(graph.consensus, [unit.members for unit in shown], None if grouped else between[drawn_edges]),
    )
    return replace(picture, rows=_rows_with_edges_upwards(picture))


def _of_consensus(
    table: ConsensusTable | None, members: Sequence[tuple[int, ...]], edges: Int[Tensor, "drawn"] | None
) -> dict[str, Any]:
    """The columns of a consensus; a supernode is as frequent as its most frequent member."""
    if table is None:
        return {}
    frequency = table.frequency.tolist()
    return {
        "averages": f"{table.summary()} Opacity by frequency.",
        "frequencies": tuple(max(frequency[row] for row in rows) for rows in members),
        "edge_frequencies": None if edges is None else table.edge_frequency[edges].double().numpy(),
    }


def node_numbers(graph: AttributionGraph, row: int) -> str:
    """Return what is known of a node beside its influence: frequency and interval in a consensus, and confidence."""
    table, confidence, numbers = graph.consensus, float(graph.nodes.confidence[row]), list[str]()
    if table is not None:
        count = len(table.prompts)
        numbers.append(f"in {round(float(table.frequency[row]) * count)} of {count} graphs")
        if graph.nodes.kind[row] not in (NodeKind.LOGIT, NodeKind.TARGET):
            numbers.append(f"mean influence {float(table.low[row]):.2g} to {float(table.high[row]):.2g}")
    if not math.isnan(confidence):
        numbers.append(f"confidence {confidence:.0%}")
    return ", ".join(numbers)


def _largest(values: Float[Tensor, "node"], count: int) -> Bool[Tensor, "node"]:
    """Return a mask of the ``count`` largest values, without those that are not positive."""
    largest = values.topk(min(count, len(values))).indices
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, largest[values[largest] > 0], True)


def _units(graph: AttributionGraph) -> list[_Unit]:
    nodes = graph.nodes
    rows = (nodes.layer - 0.5 * (nodes.kind == NodeKind.BIAS)).tolist()
    shapes: list[Shape] = [_SHAPES[NodeKind(kind)] for kind in nodes.kind.tolist()]
    labels = [_label(graph, node_index) for node_index in range(graph.n_nodes)]
    is_logit = (nodes.kind == NodeKind.LOGIT).tolist()
    notes = [_percent(weight) if logit else "" for weight, logit in zip(nodes.weight.tolist(), is_logit, strict=True)]
    columns = zip(shapes, rows, nodes.position.tolist(), labels, notes, strict=True)
    return [_Unit(*unit, members=(node,)) for node, unit in enumerate(columns)]


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _label(graph: AttributionGraph, node_index: int) -> str:
    node = graph.node(node_index)
    match node.kind:
        case NodeKind.FEATURE:
            return in_brief(graph.labels.get(Feature(node.layer, node.index), str(node.index)))
        case NodeKind.LOGIT:
            return token_label(graph.info.target_names[node_index - graph.n_nodes])
        case NodeKind.TARGET:
            return node.label
        case _:
            return ""


def _grouped_units(grouped: GroupedGraph) -> list[_Unit]:
    """Return one unit per group: a supernode becomes a new unit, and a group of one node keeps that node's unit."""
    units, ids, influence = _units(grouped.graph), grouped.graph.ids(), grouped.graph.influence().tolist()
    members: list[list[int]] = [[] for _ in grouped.groups]
    for node, group_index in enumerate(grouped.group_of.tolist()):
        members[group_index].append(node)
    grouped_units: list[_Unit] = []
    for group, nodes in zip(grouped.groups, members, strict=True):
        if [ids[nodes[0]]] == [group.label, *group.members[1:]]:
            grouped_units.append(units[nodes[0]])
        else:
            joined = _joined(group.label, [units[node] for node in nodes], [influence[node] for node in nodes])
            grouped_units.append(joined)
    return grouped_units


def _joined(label: str, members: Sequence[_Unit], influence: Sequence[float]) -> _Unit:
    """Join nodes into one unit, which stands at the position that holds most of their influence."""
    shares = np.array(influence) + 1e-12
    rows, positions = np.array([unit.row for unit in members]), np.array([unit.position for unit in members])
    position = int(np.bincount(positions, weights=shares).argmax())
    joined = tuple(node for unit in members for node in unit.members)
    note = (
        f"{len(members)} nodes" if len({unit.shape for unit in members}) > 1 else _count(members[0].shape, len(members))
    )
    layers = sorted({int(np.ceil(row)) for row in rows})
    layer_range = "" if layers[0] < 0 else f", L{layers[0]}" if len(layers) == 1 else f", L{layers[0]}–{layers[-1]}"
    if any(unit.shape == "output" for unit in members):
        return _Unit("output", float(rows.max()), position, label, note, joined)
    return _Unit("group", float(np.average(rows, weights=shares)), position, label, note + layer_range, joined)


def _count(shape: Shape, count: int) -> str:
    name = {"other": "node"}.get(shape, shape)
    return f"{count} {name}" + ("" if count == 1 else "s")


def _strongest(
    source: Int[Tensor, "edge"], target: Int[Tensor, "edge"], carried: Float[Tensor, "edge"], count: int
) -> Int[Tensor, "drawn"]:
    """Return the edges that carry most, and the strongest from and to every node, so that every node is connected."""
    order = carried.argsort(descending=True, stable=True)
    order = order[carried[order] > 0]
    is_drawn = torch.arange(len(order)) < count
    for ends in (source, target):
        is_drawn[torch.from_numpy(np.unique(ends[order].numpy(), return_index=True)[1])] = True
    return order[is_drawn]


def _rows_with_edges_upwards(picture: GraphPicture) -> tuple[float, ...]:
    """Return the heights of all nodes, after moving supernodes as little as needed to let their edges lead upwards."""
    rows = list(picture.rows)
    below: dict[int, list[int]] = {node: [] for node in range(len(rows))}
    above: dict[int, list[int]] = {node: [] for node in range(len(rows))}
    for source, target in zip(picture.sources.tolist(), picture.targets.tolist(), strict=True):
        below[target].append(source)
        above[source].append(target)
    groups = sorted(picture.of("group"), key=rows.__getitem__)
    # A supernode that moves may displace its neighbours, so there are three passes: upwards, downwards, upwards.
    for node in [*groups, *reversed(groups), *groups]:
        lowest = max((rows[source] for source in below[node]), default=-2.0)
        highest = min((rows[target] for target in above[node]), default=float(picture.n_layers))
        rows[node] = _between(lowest, highest, picture.rows[node])
    return tuple(rows)


def _between(lowest: float, highest: float, preferred: float) -> float:
    """Return the half layer between two heights that is nearest to ``preferred``, or their middle if there is none."""
    halves = np.arange(np.floor(2 * lowest) + 1, np.ceil(2 * highest)) / 2
    if not len(halves):
        return (lowest + highest) / 2
    return float(halves[np.abs(halves - preferred).argmin()])


def _caption(influence: Float[Tensor, "inner"], shown: Bool[Tensor, "inner"], edges: int, all_edges: int) -> str:
    nodes, all_nodes = int(shown.sum()), len(shown)
    share = float(influence[shown].sum() / influence.sum().clamp(min=1e-30))
    node_count = f"All {nodes} nodes" if nodes == all_nodes else f"{nodes} of {all_nodes} nodes"
    influence_share = "" if nodes == all_nodes else f", with {share:.0%} of their influence"
    edge_count = f"all {all_edges} edges" if edges == all_edges else f"{edges} of {all_edges} edges"
    return f"{node_count} between tokens and outputs{influence_share}; {edge_count}."
