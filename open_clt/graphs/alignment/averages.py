"""Averages: the mean nodes and edges of aligned graphs, with standard deviations and bootstrap intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from open_clt.graphs.alignment.aligned_nodes import LEAST, AlignedNodes
from open_clt.graphs.edges import Edges
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.graphs.operations import answer_effects

_INTERVAL = (0.025, 0.975)
_AT_ONCE = 2**22
"""Number of bootstrap means that are in memory at once."""
Draws: TypeAlias = npt.NDArray[np.float64]
"""How often each bootstrap sample (row) holds each graph (column)."""


def average_nodes(aligned: AlignedNodes, draws: Draws) -> tuple[NodeTable, dict[str, Tensor]]:
    """The table of nodes, without what follows from edges, and the columns of the consensus for nodes."""
    graphs = aligned.graphs
    kind, layer, role, index = aligned.keys.T.copy()
    sums = {name: np.zeros(aligned.n_nodes) for name in ("value", "weight", "effect")}
    token_of = np.full(aligned.n_nodes, -1)
    for graph, row in zip(reversed(graphs), reversed(aligned.rows), strict=True):
        of_outputs = max(LEAST, float(graph.nodes.weight.double().sum()))
        np.add.at(sums["value"], row, graph.nodes.value.double().numpy())
        np.add.at(sums["weight"], row, graph.nodes.weight.double().numpy() / of_outputs)
        np.add.at(sums["effect"], row, answer_effects(graph).numpy())
        token_of[row[::-1]] = graph.nodes.index.numpy()[::-1]
    has_it = aligned.present.sum(0)
    index = np.where(kind == NodeKind.EMBEDDING, token_of, index)
    for row in np.flatnonzero(kind == NodeKind.LOGIT):
        index[row] = aligned.tokens[int(index[row])]
    first_target = np.flatnonzero(kind == NodeKind.TARGET)
    index[first_target] = np.arange(len(first_target))
    table = NodeTable.of(
        NodeKind.FEATURE,
        torch.from_numpy(layer),
        torch.from_numpy(role),
        index=torch.from_numpy(index),
        value=_float(sums["value"] / has_it),
        weight=_float(sums["weight"] / len(graphs)),
    )
    low, high = _interval(aligned.influence.T, np.ones((aligned.n_nodes, len(graphs))), draws)
    columns = {
        "frequency": has_it / len(graphs),
        "influence": aligned.influence.mean(0),
        "deviation": aligned.influence.std(0, ddof=1),
        "low": low,
        "high": high,
        "effect": sums["effect"] / has_it,
    }
    return replace(table, kind=torch.from_numpy(kind)), {name: _float(column) for name, column in columns.items()}


def average_edges(aligned: AlignedNodes, draws: Draws) -> tuple[Edges, dict[str, Tensor], dict[str, Tensor]]:
    """Mean edges, what rows omit and their totals, and the columns of the consensus for edges."""
    graphs = aligned.graphs
    n_nodes, rows = aligned.n_nodes, _Rows.zeros(len(graphs), aligned.n_nodes)
    keys, weights, owners = list[npt.NDArray[np.int64]](), list[npt.NDArray[np.float64]](), list[int]()
    for number, (graph, row) in enumerate(zip(graphs, aligned.rows, strict=True)):
        inputs = rows.add(number, graph, row)
        target, source = row[graph.edges.target.numpy()], row[graph.edges.source.numpy()]
        keys.append(target * n_nodes + source)
        weights.append(graph.edges.weight.double().numpy() / inputs[target])
        owners.append(number)
    sizes = [len(key) for key in keys]
    union, edge_of = np.unique(np.concatenate(keys), return_inverse=True)
    graph_of, shape = np.repeat(owners, sizes), (len(union), len(graphs))
    shares = coo_array((np.concatenate(weights), (edge_of.reshape(-1), graph_of)), shape=shape).tocsr()
    occurs = coo_array((np.ones(len(edge_of)), (edge_of.reshape(-1), graph_of)), shape=shape).tocsr()
    occurs.data[:] = 1
    target, source = union // n_nodes, union % n_nodes
    has_target = rows.exists.T[target].astype(np.float64)
    count = has_target.sum(1)
    mean = shares.sum(1) / count
    variance = np.maximum(shares.power(2).sum(1) - count * mean**2, 0) / np.maximum(count - 1, 1)
    low, high = _interval(shares, has_target, draws)
    columns = {
        "edge_frequency": occurs.sum(1) / len(graphs),
        "edge_deviation": np.sqrt(variance),
        "edge_low": low,
        "edge_high": high,
    }
    explained = np.zeros(n_nodes)
    np.add.at(explained, target, np.abs(mean))
    edges = Edges(torch.from_numpy(target), torch.from_numpy(source), _float(mean))
    return edges, rows.columns(explained), {name: _float(column) for name, column in columns.items()}


class _Rows(NamedTuple):
    """What the rows of each graph hold beside edges, in shares of their inputs, with graphs as rows."""

    exists: npt.NDArray[np.bool_]
    """Whether a graph has inputs of the node."""
    total: npt.NDArray[np.float64]
    omitted_sum: npt.NDArray[np.float64]

    @staticmethod
    def zeros(n_graphs: int, n_nodes: int) -> _Rows:
        """Rows of no graph."""
        shape = (n_graphs, n_nodes)
        return _Rows(np.zeros(shape, dtype=bool), np.zeros(shape), np.zeros(shape))

    def add(self, number: int, graph: AttributionGraph, row: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Add the rows of a graph, and return the inputs of each node."""
        inputs = np.zeros(self.exists.shape[1])
        np.add.at(inputs, row, graph.influence_graph.inputs.numpy())
        self.exists[number] = inputs > 1e-25
        inputs = np.maximum(inputs, LEAST)
        has_row = self.exists[number][row]
        for column, values in ((self.total, graph.nodes.total), (self.omitted_sum, graph.nodes.omitted_sum)):
            np.add.at(column[number], row[has_row], (values.double().numpy() / inputs[row])[has_row])
        return inputs

    def columns(self, explained: npt.NDArray[np.float64]) -> dict[str, Tensor]:
        """The columns of the table of nodes; totals are known if those of all graphs are."""
        count, exists = self.exists.sum(0), self.exists.any(0)
        total = np.where(exists, self.total.sum(0) / np.maximum(count, 1), np.nan)
        if np.isnan(total[exists]).any():
            total[:] = np.nan
        return {
            "total": _float(total),
            "omitted": _float(np.where(exists, np.maximum(1 - explained, 0), 0)),
            "omitted_sum": _float(self.omitted_sum.sum(0) / np.maximum(count, 1)),
        }


def _interval(
    values: npt.NDArray[np.float64] | csr_array, counts: npt.NDArray[np.float64], draws: Draws
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bootstrap intervals of the means of rows; a sample without any counted value has the mean of all."""
    ends = [np.zeros(counts.shape[0]), np.zeros(counts.shape[0])]
    step = max(1, _AT_ONCE // len(draws))
    for start in range(0, counts.shape[0], step):
        part = slice(start, start + step)
        sums, drawn = values[part] @ draws.T, counts[part] @ draws.T
        mean = np.asarray(values[part].sum(1)).reshape(-1, 1) / counts[part].sum(1, keepdims=True)
        means = np.where(drawn > 0, sums / np.maximum(drawn, 1), mean)
        ends[0][part], ends[1][part] = np.quantile(means, _INTERVAL, axis=1)
    return ends[0], ends[1]


def _float(values: npt.NDArray[np.float64]) -> Float[Tensor, "some"]:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
