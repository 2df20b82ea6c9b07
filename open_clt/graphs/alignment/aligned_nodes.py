"""Aligned nodes: the nodes of several graphs in one list, and their influence in each graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from open_clt.graphs.alignment.position_roles import PositionRoles
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.short_repr import short_repr

ANSWER = "answer"
"""Name of the output of a consensus whose prompts have different answers."""
LEAST = 1e-30
"""Least value of a divisor."""


class AlignedNodes(NamedTuple):
    """The nodes of several graphs in one list."""

    rows: list[npt.NDArray[np.int64]]
    """For each graph, the node of the list that each of its nodes is."""
    keys: npt.NDArray[np.int64]
    """Kind, layer, role and index of each node of the list; the index is 0 for tokens, and counts outputs."""
    influence: npt.NDArray[np.float64]
    """Influence of each node in each graph, with the graphs as rows; 0 where a graph lacks the node."""
    present: npt.NDArray[np.bool_]
    """Whether each graph has each node."""
    graphs: tuple[AttributionGraph, ...]
    """The graphs."""
    names: list[str]
    """Names of the outputs."""
    tokens: dict[int, int]
    """Token id of each output that is a token, by the output's number."""

    @property
    def n_nodes(self) -> int:
        """Number of nodes of the list."""
        return len(self.keys)

    @staticmethod
    def of(graphs: Sequence[AttributionGraph], roles: PositionRoles, same_answer: bool) -> AlignedNodes:
        """Align the nodes of several graphs."""
        outputs, keys = dict[tuple[str, int], int](), list[npt.NDArray[np.int64]]()
        for graph, of_position in zip(graphs, roles.of, strict=True):
            keys.append(_keys(graph, np.array(of_position), outputs, same_answer))
        union, inverse = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
        rows = np.split(inverse.reshape(-1), np.cumsum([len(key) for key in keys])[:-1])
        influence = np.zeros((len(graphs), len(union)))
        present = np.zeros((len(graphs), len(union)), dtype=bool)
        for number, (graph, row) in enumerate(zip(graphs, rows, strict=True)):
            of_outputs = max(LEAST, float(graph.nodes.weight.double().sum()))
            np.add.at(influence[number], row, graph.influence().double().numpy() / of_outputs)
            present[number, row] = True
        tokens = {number: token for (_, token), number in outputs.items()}
        return AlignedNodes(rows, union, influence, present, tuple(graphs), [name for name, _ in outputs], tokens)

    __repr__ = short_repr


def _keys(
    graph: AttributionGraph, of_position: npt.NDArray[np.int64], outputs: dict[tuple[str, int], int], same: bool
) -> npt.NDArray[np.int64]:
    """Kind, layer, role and index of each node of a graph; outputs that are new are added to ``outputs``."""
    nodes = graph.nodes
    kind, index = nodes.kind.numpy().copy(), nodes.index.numpy().copy()
    index[kind == NodeKind.EMBEDDING] = 0
    first = graph.n_nodes - len(graph.info.target_names)
    for row, name in enumerate(graph.info.target_names, first):
        is_token = kind[row] == NodeKind.LOGIT and same
        output = (name, int(index[row])) if is_token else (name if same else ANSWER, -1)
        if not is_token:
            kind[row] = NodeKind.TARGET
        index[row] = outputs.setdefault(output, len(outputs))
    return np.stack([kind, nodes.layer.numpy(), of_position[nodes.position.numpy()], index], axis=1)
