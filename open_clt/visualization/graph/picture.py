"""Which part of an attribution graph is drawn, as plain columns that know nothing of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.influence import Edges
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.transcoders.feature import Feature
from open_clt.visualization.labels import token_label

Shape: TypeAlias = Literal["feature", "error", "other", "group", "token", "output"]
"""What a node looks like; ``other`` are biases, positional embeddings and whole MLP outputs, ``group`` a supernode."""

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


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class GraphPicture:
    """A graph as it is drawn: columns with one entry per node, and edges between nodes by their number."""

    shapes: tuple[Shape, ...]
    rows: tuple[float, ...]
    """Height of each node that is neither token nor output: its layer, or half a layer less for what a layer's features
    read, so that edges lead upwards; -1 is the input. A supernode stands between what feeds it and what it feeds."""
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    """What stands beside a node, or within an output; empty for nothing."""
    notes: Mapping[int, str] = field(default_factory=dict[int, str])
    """A second, smaller line within some supernodes and outputs, by their number."""
    influence: npt.NDArray[np.float64]
    """Sets the area of a node."""
    sources: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    """Signed; one per edge."""
    tokens: tuple[str, ...]
    """All tokens of the prompt, also those without a node."""
    n_layers: int
    caption: str = ""
    missing: str = ""
    """What the reader must know of rows that do not add up."""
    alarming: bool = False
    """Whether they should."""

    def of(self, *shapes: Shape) -> list[int]:
        """Numbers of the nodes that look like one of these."""
        return [number for number, shape in enumerate(self.shapes) if shape in shapes]


class _Unit(NamedTuple):
    """A node, or a supernode, before it is known whether it is drawn."""

    shape: Shape
    row: float
    position: int
    label: str
    note: str = ""


def picture_of(
    drawn: AttributionGraph | GroupedGraph, max_nodes: int, max_edges: int, kinds: Sequence[Shape]
) -> GraphPicture:
    """The outputs, the tokens, the most influential nodes between them, and the edges that carry most influence."""
    grouped = isinstance(drawn, GroupedGraph)
    graph = drawn.graph if grouped else drawn
    units = _grouped_units(drawn) if grouped else _units(graph)
    edges, influence, measured = drawn.edges, drawn.influence(), drawn.influence_graph
    ends = torch.tensor([unit.shape in ("token", "output") for unit in units])
    eligible = torch.tensor([unit.shape in (*kinds, "group") for unit in units]) & (influence > 0)
    kept = ends | _largest(influence.where(eligible, 0), max_nodes)
    between = kept[edges.source] & kept[edges.target]
    carried = measured.shares.float() * (influence + measured.outputs)[edges.target]
    lines = _strongest(edges, carried.masked_fill(~between, 0), max_edges)
    number = kept.cumsum(0) - 1
    shown = [units[place] for place in kept.nonzero()[:, 0].tolist()]
    picture = GraphPicture(
        shapes=tuple(unit.shape for unit in shown),
        rows=tuple(unit.row for unit in shown),
        positions=tuple(unit.position for unit in shown),
        labels=tuple(unit.label for unit in shown),
        notes={place: unit.note for place, unit in enumerate(shown) if unit.note},
        influence=influence[kept].double().numpy(),
        sources=number[edges.source[lines]].numpy(),
        targets=number[edges.target[lines]].numpy(),
        weights=edges.weight[lines].double().numpy(),
        tokens=tuple(graph.info.token_strings),
        n_layers=graph.info.n_layers,
        caption=_caption(influence[~ends], kept[~ends], len(lines), int(between.sum())),
        missing=graph.missing(),
        alarming=not graph.info.compatible,
    )
    return replace(picture, rows=_rows(picture))


def _largest(values: Float[Tensor, "node"], count: int) -> Bool[Tensor, "node"]:
    """Where the largest few stand, of those that are more than nothing."""
    best = values.topk(min(count, len(values))).indices
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, best[values[best] > 0], True)


def _units(graph: AttributionGraph) -> list[_Unit]:
    nodes = graph.nodes
    rows = (nodes.layer - 0.5 * (nodes.kind == NodeKind.BIAS)).tolist()
    shapes: list[Shape] = [_SHAPES[NodeKind(kind)] for kind in nodes.kind.tolist()]
    labels = [_label(graph, number) for number in range(graph.n_nodes)]
    is_token = (nodes.kind == NodeKind.LOGIT).tolist()
    chances = [_percent(weight) * said for weight, said in zip(nodes.weight.tolist(), is_token, strict=True)]
    columns = zip(shapes, rows, nodes.position.tolist(), labels, chances, strict=True)
    return [_Unit(shape, row, position, label, note) for shape, row, position, label, note in columns]


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _label(graph: AttributionGraph, number: int) -> str:
    node = graph.node(number)
    match node.kind:
        case NodeKind.FEATURE:
            return graph.labels.get(Feature(node.layer, node.index), str(node.index))
        case NodeKind.LOGIT:
            return token_label(graph.info.target_names[number - graph.n_nodes])
        case NodeKind.TARGET:
            return node.label
        case _:
            return ""


def _grouped_units(grouped: GroupedGraph) -> list[_Unit]:
    """Supernodes as one unit each, where most of their influence is; all other nodes as they are."""
    units, ids, influence = _units(grouped.graph), grouped.graph.ids(), grouped.graph.influence().tolist()
    members: list[list[int]] = [[] for _ in grouped.groups]
    for node, number in enumerate(grouped.group_of.tolist()):
        members[number].append(node)
    found: list[_Unit] = []
    for joined, inside in zip(grouped.groups, members, strict=True):
        if [ids[inside[0]]] == [joined.label, *joined.members[1:]]:
            found.append(units[inside[0]])
        else:
            found.append(_joined(joined.label, [units[node] for node in inside], [influence[node] for node in inside]))
    return found


def _joined(label: str, members: Sequence[_Unit], influence: Sequence[float]) -> _Unit:
    shares = np.array(influence) + 1e-12
    rows, positions = np.array([unit.row for unit in members]), np.array([unit.position for unit in members])
    position = int(np.bincount(positions, weights=shares).argmax())
    note = (
        f"{len(members)} nodes" if len({unit.shape for unit in members}) > 1 else _count(members[0].shape, len(members))
    )
    layers = sorted({int(np.ceil(row)) for row in rows})
    where = "" if layers[0] < 0 else f", L{layers[0]}" if len(layers) == 1 else f", L{layers[0]}–{layers[-1]}"
    if any(unit.shape == "output" for unit in members):
        return _Unit("output", float(rows.max()), position, label, note)
    return _Unit("group", float(np.average(rows, weights=shares)), position, label, note + where)


def _count(shape: Shape, count: int) -> str:
    name = {"other": "node"}.get(shape, shape)
    return f"{count} {name}" + ("" if count == 1 else "s")


def _strongest(edges: Edges, carried: Float[Tensor, "edge"], count: int) -> Int[Tensor, "drawn"]:
    """The edges that carry most, and the strongest from and to every node, so that none hangs in the air."""
    order = carried.argsort(descending=True, stable=True)
    order = order[carried[order] > 0]
    chosen = torch.arange(len(order)) < count
    for ends in (edges.source, edges.target):
        chosen[torch.from_numpy(np.unique(ends[order].numpy(), return_index=True)[1])] = True
    return order[chosen]


def _rows(picture: GraphPicture) -> tuple[float, ...]:
    """Heights of all nodes, supernodes moved to where edges lead upwards, as little as can be."""
    rows = list(picture.rows)
    below: dict[int, list[int]] = {number: [] for number in range(len(rows))}
    above: dict[int, list[int]] = {number: [] for number in range(len(rows))}
    for source, target in zip(picture.sources.tolist(), picture.targets.tolist(), strict=True):
        below[target].append(source)
        above[source].append(target)
    groups = sorted(picture.of("group"), key=rows.__getitem__)
    # Supernodes move one another, upwards first; what then still has no room between its neighbours stays where it is.
    for number in [*groups, *reversed(groups), *groups]:
        lowest = max((rows[other] for other in below[number]), default=-2.0)
        highest = min((rows[other] for other in above[number]), default=float(picture.n_layers))
        rows[number] = _between(lowest, highest, picture.rows[number])
    return tuple(rows)


def _between(lowest: float, highest: float, wanted: float) -> float:
    """The half layer nearest to a height that lies between two others; their middle if none does."""
    halves = np.arange(np.floor(2 * lowest) + 1, np.ceil(2 * highest)) / 2
    if not len(halves):
        return (lowest + highest) / 2
    return float(halves[np.abs(halves - wanted).argmin()])


def _caption(influence: Float[Tensor, "inner"], shown: Bool[Tensor, "inner"], edges: int, all_edges: int) -> str:
    nodes, all_nodes = int(shown.sum()), len(shown)
    share = float(influence[shown].sum() / influence.sum().clamp(min=1e-30))
    which = f"All {nodes} nodes" if nodes == all_nodes else f"{nodes} of {all_nodes} nodes"
    held = "" if nodes == all_nodes else f", with {share:.0%} of their influence"
    among = "all" if edges == all_edges else f"{edges} of"
    return f"{which} between tokens and outputs{held}; {among} {all_edges} edges."
