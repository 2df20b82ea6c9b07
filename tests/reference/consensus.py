"""The consensus of graphs, computed one node and one edge at a time from dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind


class Mean(NamedTuple):
    """What several graphs say about one node or edge."""

    frequency: float
    mean: float
    deviation: float


def influences(graphs: Sequence[AttributionGraph], roles: Sequence[Sequence[str]]) -> dict[tuple[str, ...], Mean]:
    """Mean influence of each node, by the node's name."""
    rows = []
    for graph, of_position in zip(graphs, roles, strict=True):
        row: dict[tuple[str, ...], float] = {}
        for name, influence in zip(names(graph, of_position), graph.influence().tolist(), strict=True):
            row[name] = row.get(name, 0.0) + influence / float(graph.nodes.weight.sum())
        rows.append(row)
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name, 0.0) for row in rows]
        means[name] = Mean(sum(name in row for row in rows) / len(rows), fmean(values), stdev(values))
    return means


def edges(
    graphs: Sequence[AttributionGraph], roles: Sequence[Sequence[str]]
) -> dict[tuple[tuple[str, ...], tuple[str, ...]], Mean]:
    """Mean share of each edge in the inputs of its target, over the graphs that have the target."""
    rows = [_shares(graph, of_position) for graph, of_position in zip(graphs, roles, strict=True)]
    means = {}
    for edge in dict.fromkeys(edge for shares, _ in rows for edge in shares):
        values = [shares.get(edge, 0.0) for shares, targets in rows if edge[1] in targets]
        deviation = stdev(values) if len(values) > 1 else 0.0
        means[edge] = Mean(sum(edge in shares for shares, _ in rows) / len(rows), fmean(values), deviation)
    return means


def stability(graphs: Sequence[AttributionGraph], roles: Sequence[Sequence[str]]) -> list[float]:
    """The overlap of each graph's influence with the mean of the others."""
    rows = []
    for graph, of_position in zip(graphs, roles, strict=True):
        row: dict[tuple[str, ...], float] = {}
        for name, influence in zip(names(graph, of_position), graph.influence().tolist(), strict=True):
            if name[0] == "feature":
                row[name] = row.get(name, 0.0) + influence
        rows.append({name: value / sum(row.values()) for name, value in row.items()})
    scores = []
    for number, row in enumerate(rows):
        others = rows[:number] + rows[number + 1 :]
        all_names = {name for each in rows for name in each}
        pairs = [(row.get(name, 0.0), fmean(other.get(name, 0.0) for other in others)) for name in all_names]
        scores.append(sum(map(min, pairs)) / sum(map(max, pairs)))
    return scores


def names(graph: AttributionGraph, roles: Sequence[str]) -> list[tuple[str, ...]]:
    """What tells a node from others in a consensus: its kind, layer, role and index, or an output's name."""
    found = []
    first_output = graph.n_nodes - len(graph.info.target_names)
    for row in range(graph.n_nodes):
        node = graph.node(row)
        index = "" if node.kind is NodeKind.EMBEDDING else str(node.index)
        index = graph.info.target_names[row - graph.n_nodes] if row >= first_output else index
        found.append((node.kind.name.lower(), str(node.layer), roles[node.position], index))
    return found


def _shares(
    graph: AttributionGraph, roles: Sequence[str]
) -> tuple[dict[tuple[tuple[str, ...], tuple[str, ...]], float], set[tuple[str, ...]]]:
    """The share of each edge in the inputs of its target, and the nodes that have inputs."""
    named = names(graph, roles)
    inputs: dict[tuple[str, ...], float] = {}
    for row, name in enumerate(named):
        inputs[name] = inputs.get(name, 0.0) + float(graph.nodes.omitted[row])
    columns = list(zip(*(column.tolist() for column in graph.edges), strict=True))
    for target, _, weight in columns:
        inputs[named[target]] += abs(weight)
    shares: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    for target, source, weight in columns:
        edge = named[source], named[target]
        shares[edge] = shares.get(edge, 0.0) + weight / inputs[named[target]]
    return shares, {name for name, total in inputs.items() if total > 0}
