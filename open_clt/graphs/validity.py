"""Validity: whether the tables of a graph fit together, so that every number computed from them has a meaning.

Graphs come from files of strangers and from users' own code. ``AttributionGraph`` asks once, when it is made, so no
other function meets a row that does not exist or a number that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from open_clt.graphs.edges import Edges
from open_clt.graphs.info import GraphInfo
from open_clt.graphs.nodes import NodeKind, NodeTable

_INTEGERS = ("nodes.kind", "nodes.layer", "nodes.position", "nodes.index")
_MAY_BE_NAN = ("nodes.total", "nodes.cumulative", "nodes.confidence")
_NOT_NEGATIVE = ("nodes.weight", "nodes.omitted")
_LARGEST_SUM_OF_WEIGHTS = 1e30
"""Largest sum of the weights of all outputs; influence, which is the sum over many paths, is then finite too."""


def problem(nodes: NodeTable, edges: Edges, info: GraphInfo) -> str | None:
    """What is wrong with the tables of a graph, as the end of a sentence; None if they fit together."""
    columns = {f"nodes.{entry.name}": getattr(nodes, entry.name) for entry in fields(nodes)}
    return (  # each step relies on the steps before it
        next(_problems_of_types(columns), None)
        or next(_problems_of_info(nodes, info), None)
        or next(_problems_of_ranges(nodes, edges, info), None)
        or next(_problems_of_numbers(columns), None)
        or _problem_of_totals(nodes, edges)
        or _problem_of_edges(nodes, edges)
    )


def _problems_of_types(columns: dict[str, Tensor]) -> Iterator[str]:
    length = columns["nodes.kind"].shape
    for name, column in columns.items():
        expected = torch.int64 if name in _INTEGERS else torch.float32
        if column.dtype != expected:
            yield f"{name} has the data type {column.dtype}, not {expected}"
        if column.ndim != 1 or column.shape != length:
            yield f"{name} has the shape {tuple(column.shape)}, but other columns of nodes {tuple(length)}"


def _problems_of_info(nodes: NodeTable, info: GraphInfo) -> Iterator[str]:
    if len(info.tokens) != len(info.token_strings):
        yield f"it has {len(info.tokens)} token ids and {len(info.token_strings)} token strings"
    if info.n_layers < 0:
        yield f"n_layers is {info.n_layers}"
    outputs = int(torch.isin(nodes.kind, torch.tensor([int(NodeKind.LOGIT), int(NodeKind.TARGET)])).sum())
    if len(info.target_names) != outputs:
        yield f"it has {outputs} outputs and {len(info.target_names)} names of outputs"


def _problems_of_ranges(nodes: NodeTable, edges: Edges, info: GraphInfo) -> Iterator[str]:
    n_nodes, n_positions = len(nodes), len(info.token_strings)
    ranges = (
        ("kind", nodes.kind, 0, len(NodeKind) - 1),
        ("layer", nodes.layer, -1, info.n_layers),
        ("position", nodes.position, 0, n_positions - 1),
        ("index", nodes.index, -1, None),
        ("layer of a feature or error", nodes.layer[nodes.kind <= NodeKind.ERROR], 0, info.n_layers - 1),
        ("index of a feature", nodes.index[nodes.kind == NodeKind.FEATURE], 0, None),
        ("target of an edge", edges.rows, 0, n_nodes - 1),
        ("source of an edge", edges.sources, 0, n_nodes - 1),
    )
    for name, column, lowest, highest in ranges:
        if not column.numel():
            continue
        smallest, largest = (int(value) for value in torch.aminmax(column))
        if smallest < lowest or (highest is not None and largest > highest):
            value = smallest if smallest < lowest else largest
            yield f"the {name} is {value}, outside {lowest} to {'any number' if highest is None else highest}"


def _problems_of_numbers(columns: dict[str, Tensor]) -> Iterator[str]:
    for name, column in columns.items():
        if not column.is_floating_point():
            continue
        legal = ~column.isinf() if name in _MAY_BE_NAN else column.isfinite()
        if name in _NOT_NEGATIVE:
            legal &= column >= 0
        if name == "nodes.confidence":
            legal &= column.isnan() | ((column >= 0) & (column <= 1))
        if not bool(legal.all()):
            row = int((~legal).int().argmax())
            yield f"{name} is {float(column[row])} in row {row}"
    sum_of_weights = float(columns["nodes.weight"].double().sum())
    if sum_of_weights > _LARGEST_SUM_OF_WEIGHTS:
        yield f"nodes.weight adds up to {sum_of_weights:.1e}, more than {_LARGEST_SUM_OF_WEIGHTS:.0e}"


def _problem_of_totals(nodes: NodeTable, edges: Edges) -> str | None:
    """The totals of all nodes with inputs are known, or none is, as in files of other programs."""
    unknown = nodes.total.isnan()
    unchecked = unknown[edges.rows]
    if bool(unknown.all()) or not bool(unchecked.any()):
        return None
    return f"nodes.total is nan in row {int(edges.rows[unchecked][0])}, which has inputs"


def _problem_of_edges(nodes: NodeTable, edges: Edges) -> str | None:
    """Weights are finite, and edges lead from lower to higher layers.

    Only sources without inputs may lie as high as their targets.
    """
    layers = nodes.layer.numpy()
    # A source without inputs is below every node.
    heights = np.full(len(nodes), -2, dtype=np.int32)
    heights[edges.rows.numpy()] = layers[edges.rows.numpy()]
    target_layers = layers[edges.rows.numpy()]
    for chunk in edges.chunks():
        if not np.isfinite(chunk.weight.sum(dtype=np.float64)):
            edge = int(np.isfinite(chunk.weight).argmin())
            row = int(edges.starts[int(chunk.rows[0])]) + edge
            return f"edges.weight is {chunk.weight[edge]} in row {row}"
        highest = np.maximum.reduceat(heights[chunk.sources], chunk.starts[:-1])
        wrong = highest >= target_layers[chunk.rows]
        if wrong.any():
            row = int(wrong.argmax())
            sources = chunk.sources[chunk.starts[row] : chunk.starts[row + 1]]
            source = sources[heights[sources].argmax()]
            target = int(edges.rows[int(chunk.rows[row])])
            return f"the edge from row {source} to row {target} does not lead to a later layer"
    return None
