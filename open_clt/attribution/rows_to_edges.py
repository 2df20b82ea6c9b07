"""Rows to edges: blocks of dense rows become the edges of a graph, without a sort.

The targets of a block at the same level and position have edges from the same sources: the features of lower layers at
this and earlier positions, and what else the block's rows reach. So these columns are chosen once for all of them, in
the order of the graph's nodes, and their rows stay dense until the number of edges of every row is known. Then each row
is copied to its place among all edges. An edge takes 4 bytes in such a piece and 8 bytes in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.attribution.sources import Sources
from open_clt.graphs.edges import Edges
from open_clt.short_repr import short_repr


class Block(NamedTuple):
    """The rows of one batch of targets, highest level first, on the CPU."""

    numbers: Int[Tensor, "target"]
    """Column of each target; outputs, which are not columns, have the numbers after the last column."""
    level: Int[Tensor, "target"]
    """Level of each target."""
    features: Float[Tensor, "target visible"]
    """Feature columns up to the batch's last position; the later ones are zero and left out."""
    others: Float[Tensor, "target other"]
    """All requested columns after the feature columns."""
    mass: Float[Tensor, "target"]
    """Absolute sum of each row."""

    __repr__ = short_repr


class _Piece(NamedTuple):
    """Dense rows of targets that have edges from the same sources."""

    nodes: Int[Tensor, "target"]
    """Node of each target."""
    sources: Int[Tensor, "source"]
    """Node of each source, in ascending order."""
    weight: Float[Tensor, "target source"]
    """Weight of each edge; a weight of zero means that the graph lacks the edge."""

    __repr__ = short_repr


def edges_of_blocks(
    sources: Sources, blocks: Iterator[Block], columns: Int[Tensor, "node"], mask: Bool[Tensor, "feature"]
) -> Edges:
    """The edges of all rows, between the nodes with the given ``columns``; ``mask`` has the features that have rows.

    The other features are added to the error of their layer and position.
    """
    node_of = torch.full((int(columns.max()) + 1,), -1)
    node_of[columns] = torch.arange(len(columns))
    counts, pieces = torch.zeros(len(columns), dtype=torch.long), list[_Piece]()
    for block in blocks:
        _fold(sources, block, mask)
        for piece in _pieces(sources, block, columns[: int(mask.sum())], node_of):
            counts[piece.nodes] = piece.weight.count_nonzero(dim=1)
            pieces.append(piece)
    return _joined(pieces, counts)


def _fold(sources: Sources, block: Block, mask: Bool[Tensor, "feature"]) -> None:
    """Add the features without rows to the errors of their layers and positions."""
    folded = (~mask[: block.features.shape[1]]).nonzero().flatten()
    if len(folded):
        features = sources.features
        cells = (features.layer * sources.path.n_positions + features.position).cpu()
        block.others.T.index_add_(0, cells[folded], block.features.T[folded])


def _pieces(
    sources: Sources, block: Block, explored: Int[Tensor, "explored"], node_of: Int[Tensor, "column"]
) -> Iterator[_Piece]:
    """The rows of a block, by level and position; ``explored`` has the columns of the features with rows."""
    features, n_features = sources.features, sources.features.value.shape[0]
    layer = features.layer.cpu()[explored]
    is_feature = block.numbers < n_features
    # Outputs may be at any position, so they are given the last one of the block.
    position = torch.full_like(block.numbers, -1)
    position[is_feature] = features.position.cpu()[block.numbers[is_feature]]
    _, lengths = torch.unique_consecutive(torch.stack([block.level, position]), dim=1, return_counts=True)
    for end, length in zip(lengths.cumsum(0).tolist(), lengths.tolist(), strict=True):
        rows = slice(end - length, end)
        n_visible = block.features.shape[1]
        if (at := int(position[end - 1])) >= 0:
            n_visible = min(n_visible, int(sources.starts[at, -1]))
        from_features = ((layer < block.level[end - 1]) & (explored < n_visible)).nonzero().flatten()
        from_others = (block.others[rows] != 0).any(0).nonzero().flatten()
        weight = torch.cat(
            [block.features[rows].index_select(1, explored[from_features]), block.others[rows][:, from_others]], dim=1
        )
        nodes = torch.cat([from_features, len(explored) + from_others])
        yield _Piece(node_of[block.numbers[rows]], nodes.int(), weight)


def _joined(pieces: list[_Piece], counts: Int[Tensor, "node"]) -> Edges:
    """The rows of all pieces, sorted by target; removes each piece from ``pieces``, so that its memory is freed."""
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    source, weight = torch.empty(int(starts[-1]), dtype=torch.int32), torch.empty(int(starts[-1]))
    to_source, to_weight = source.numpy(), weight.numpy()
    while pieces:
        piece = pieces.pop()
        nodes, sources, rows = (column.numpy() for column in piece)
        for begin, end, row in zip(starts[nodes].tolist(), starts[nodes + 1].tolist(), rows, strict=True):
            kept = slice(None) if end - begin == len(sources) else np.flatnonzero(row)
            to_source[begin:end], to_weight[begin:end] = sources[kept], row[kept]
    return Edges.of_rows(torch.arange(len(counts)), starts, source, weight)
