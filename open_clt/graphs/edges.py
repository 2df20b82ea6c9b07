"""Edges: the weighted edges of a graph, stored row by row.

A row holds the edges into one node. Rows are sorted by this node, and only nodes with edges have a row. An edge takes 8
bytes: the row of its source in the table of nodes, and its weight. The columns ``target`` and ``source`` of 64-bit
integers are made when they are asked for; work on large graphs goes over ``chunks`` of rows instead, which need little
memory and stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from open_clt.errors import AttributionError
from open_clt.short_repr import short_repr

_CHUNK = 2**18
"""Number of edges of a chunk: a few MB with the intermediate results, which the cache of a processor holds."""
_INTEGERS = (torch.int16, torch.int32, torch.int64)
"""Data types of the numbers of nodes that edges are made of."""


class Chunk(NamedTuple):
    """Some rows of edges, as arrays that share the memory of the edges where these rows follow each other."""

    rows: npt.NDArray[np.int64]
    """Numbers of the rows among all rows."""
    starts: npt.NDArray[np.int64]
    """First edge of each row within the chunk, and the number of edges."""
    edges: slice | npt.NDArray[np.int64]
    """Place of the chunk's edges among all edges."""
    sources: npt.NDArray[np.int32]
    """Source of each edge."""
    weight: npt.NDArray[np.float32]
    """Weight of each edge."""

    def matrix(self, n_nodes: int, *, signed: bool = False) -> csr_array:
        """Return the rows as a sparse matrix of absolute weights, or of weights with their signs, in float64."""
        weight = (self.weight if signed else np.abs(self.weight)).astype(np.float64)
        shape = len(self.rows), n_nodes
        return csr_array((weight, self.sources, self.starts.astype(np.int32)), shape=shape)

    def sums(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the sum of each row's values; ``values`` has an entry for each edge of the chunk."""
        return np.add.reduceat(values.astype(np.float64), self.starts[:-1])

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the value of its row for each edge; ``values`` has an entry for each row of the chunk."""
        return np.repeat(values, np.diff(self.starts))

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False, init=False)
class Edges:
    """Weighted edges between the nodes of a graph, sorted by target.

    Its three columns ``target``, ``source`` and ``weight`` have one entry per edge, and iterating over ``Edges`` yields
    them in this order. Only ``weight`` shares memory with the edges.
    """

    rows: Int[Tensor, "row"]
    """Node that the edges of each row lead to, in ascending order; a node without edges has no row."""
    starts: Int[Tensor, "row_plus_1"]
    """First edge of each row, and the number of edges."""
    sources: Int[Tensor, "edge"]
    """Row of the node that each edge comes from, in 32 bits."""
    weight: Float[Tensor, "edge"]
    """Signed part of the target's pre-activation (or logit) that the source contributes."""
    _fields: ClassVar = ("target", "source", "weight")

    def __init__(self, target: Int[Tensor, "edge"], source: Int[Tensor, "edge"], weight: Float[Tensor, "edge"]) -> None:
        """Sort edges by their targets; edges into the same target keep their order.

        Raises AttributionError if the columns do not have the same length, or do not hold numbers of nodes and weights.
        """
        _check_columns({"target": target, "source": source, "weight": weight})
        if not bool((target[1:] >= target[:-1]).all()):
            order = torch.argsort(target, stable=True)
            target, source, weight = target[order], source[order], weight[order]
        rows, counts = torch.unique_consecutive(target, return_counts=True)
        self._set(rows.long(), torch.nn.functional.pad(counts.cumsum(0), (1, 0)), source.int(), weight)

    @staticmethod
    def of_rows(
        rows: Int[Tensor, "row"],
        starts: Int[Tensor, "row_plus_1"],
        sources: Int[Tensor, "edge"],
        weight: Float[Tensor, "edge"],
    ) -> Edges:
        """Make edges of the four tensors that they are stored as; rows without edges are left out."""
        has_edges = starts[1:] > starts[:-1]
        edges = object.__new__(Edges)
        edges._set(rows[has_edges], torch.cat([starts[:-1][has_edges], starts[-1:]]), sources, weight)
        return edges

    def _set(self, *tensors: Tensor) -> None:
        for name, tensor in zip(("rows", "starts", "sources", "weight"), tensors, strict=True):
            object.__setattr__(self, name, tensor)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the columns: targets, sources, weights."""
        return iter((self.target, self.source, self.weight))

    @property
    def target(self) -> Int[Tensor, "edge"]:
        """Row of the node that each edge leads to."""
        return self.rows.repeat_interleave(self.counts)

    @property
    def source(self) -> Int[Tensor, "edge"]:
        """Row of the node that each edge comes from."""
        return self.sources.long()

    @property
    def counts(self) -> Int[Tensor, "row"]:
        """Number of edges of each row."""
        return self.starts.diff()

    def _replace(self, **columns: Tensor) -> Edges:
        """Return the same edges with other columns, as a named tuple does."""
        return Edges(**{**self._asdict(), **columns})

    def _asdict(self) -> Mapping[str, Tensor]:
        """Return the columns by their names."""
        return dict(zip(self._fields, self, strict=True))

    def sources_of(self, target: int) -> Int[Tensor, "some"]:
        """Return the nodes that edges lead from to one node."""
        return self.sources[self._row(target)].long()

    def weights_of(self, target: int) -> Float[Tensor, "some"]:
        """Return the weights of the edges that lead to one node, in the order of ``sources_of``."""
        return self.weight[self._row(target)]

    def _row(self, target: int) -> slice:
        """The edges that lead to one node."""
        row = int(torch.searchsorted(self.rows, target))
        if row == len(self.rows) or int(self.rows[row]) != target:
            return slice(0, 0)
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def part(self, kept: Bool[Tensor, "edge"]) -> Edges:
        """Return the edges of a mask."""
        chosen = kept.nonzero().flatten()
        starts = torch.searchsorted(chosen, self.starts)
        return Edges.of_rows(self.rows, starts, self.sources[chosen], self.weight[chosen])

    def renumbered(self, new: Int[Tensor, "node"]) -> Edges:
        """Return the same edges between nodes with other numbers, which have the same order."""
        return Edges.of_rows(new[self.rows], self.starts, new[self.sources].int(), self.weight)

    def stored(self) -> Mapping[str, Tensor]:
        """Return the columns by their names, for a file; numbers of nodes have the narrowest type that holds them."""
        largest = max((int(numbers.max()) for numbers in (self.rows, self.sources) if numbers.numel()), default=0)
        narrow = next(dtype for dtype in _INTEGERS if largest <= torch.iinfo(dtype).max)
        target = self.rows.to(narrow).repeat_interleave(self.counts)
        return {"target": target, "source": self.sources.to(narrow), "weight": self.weight}

    def between(self, nodes: Bool[Tensor, "node"]) -> Bool[Tensor, "edge"]:
        """Return a mask of the edges whose source and target are among some nodes."""
        mask, chosen = torch.zeros(len(self.sources), dtype=torch.bool), nodes.numpy()
        has_row = nodes[self.rows].nonzero().flatten().numpy()
        for chunk in self.chunks(has_row):
            mask.numpy()[chunk.edges] = chosen[chunk.sources]
        return mask

    def chunks(self, chosen: npt.NDArray[np.int64] | None = None) -> Iterator[Chunk]:
        """Yield all rows, or the rows with the numbers ``chosen``, in chunks of about as many edges each."""
        starts = self.starts.numpy()
        chosen = np.arange(len(self.rows)) if chosen is None else chosen
        ends = np.cumsum(starts[chosen + 1] - starts[chosen])
        first = 0
        while first < len(chosen):
            done = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
            rows = chosen[first:end]
            lengths = np.concatenate([[0], ends[first:end] - done])
            if rows[-1] - rows[0] + 1 == len(rows):
                edges = slice(int(starts[rows[0]]), int(starts[rows[-1] + 1]))
            else:
                edges = np.repeat(starts[rows] - lengths[:-1], np.diff(lengths)) + np.arange(lengths[-1])
            yield Chunk(rows, lengths, edges, self.sources.numpy()[edges], self.weight.numpy()[edges])
            first = end

    __repr__ = short_repr


def _check_columns(columns: Mapping[str, Tensor]) -> None:
    """Raise AttributionError if the columns of edges cannot be those of a graph."""
    for name, column in columns.items():
        is_weight = name == "weight"
        if column.dtype not in ((torch.float32,) if is_weight else _INTEGERS):
            expected = torch.float32 if is_weight else torch.int64
            raise AttributionError(f"edges.{name} has the data type {column.dtype}; it must be {expected}.")
        if column.ndim != 1 or column.shape != columns["target"].shape:
            raise AttributionError(
                f"edges.{name} has the shape {tuple(column.shape)}, but edges.target {tuple(columns['target'].shape)}."
            )
        if column.numel() and not is_weight:
            smallest, largest = (int(value) for value in torch.aminmax(column))
            if smallest < 0 or largest >= 2**31:
                value = smallest if smallest < 0 else largest
                raise AttributionError(f"edges.{name} holds {value}, which is not the number of a node.")
