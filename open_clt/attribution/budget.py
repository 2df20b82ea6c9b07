"""The budget: the choice of features whose rows are computed, most influential first.

The graph grows from its targets. The budget is spent in parts. Before each part, influence is computed over the rows
that are known, where a feature without a row ends its paths as an error does; the most influential features without a
row come next. When the budget is spent, the remaining features are folded into the error node of their layer and
position.

Rows are kept in blocks, one per batch, cropped to the features at positions that the batch can see; they take at most
4 bytes per entry. Rows become edges at the end, when it is known which features have rows. Memory is thus bounded by
the budget and the batch size, besides at most 512 MB of decoder rows (``sources.py``). Measured with GPT-2's shape, it
is 0.3 GB for 1,024 of 5,520 features on 24 tokens, and 0.9 GB for 2,048 of 26,907 features on 128 tokens
(``benchmarks/attribution.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.attribution.adjoint import Seeds, attribute_rows, feature_seeds
from open_clt.attribution.sources import Sources
from open_clt.attribution.targets import Resolved
from open_clt.graphs.influence import Edges
from open_clt.memory import check_memory
from open_clt.short_repr import short_repr

MEMORY_WAYS = "use a smaller max_feature_nodes (--max-feature-nodes), or a shorter prompt"
"""What a user can do if a graph does not fit into memory."""
_ROUNDS = 4
"""Number of parts in which a budget is spent.

Larger parts are faster, and more of them do not find more influence. On the embedded model, the features found in four
parts hold at least 99.5 % of the influence of the same number of most influential features; found in one part, at
least 96 %."""


class Explored(NamedTuple):
    """The edges into the targets and the explored features.

    Nodes are numbered by their columns; the targets have the numbers after the last column.
    """

    edges: Edges
    """All edges with a non-zero weight."""
    mask: Bool[Tensor, "feature"]
    """True for each active feature that has a row."""
    totals: Float[Tensor, "feature"]
    """Value that the entries of each explored feature's complete row add up to; NaN for other features."""

    __repr__ = short_repr


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


def explore(sources: Sources, resolved: Resolved, budget: int | None, *, batch_size: int, compatible: bool) -> Explored:
    """Compute the rows of the targets, then rows of active features until the budget is spent."""
    active = sources.features.value.shape[0]
    budget = active if budget is None else min(budget, active)
    _check_memory(sources, budget)
    mask, totals = torch.zeros(active, dtype=torch.bool), torch.full((active,), torch.nan)
    outputs = torch.cat([torch.zeros(sources.n_columns), resolved.nodes.weight])
    numbers = sources.n_columns + torch.arange(len(resolved.seeds))
    blocks = list(_blocks(sources, resolved.seeds, numbers, batch_size, compatible))
    part = budget if budget == active else -(-budget // _ROUNDS)
    while (remaining := budget - int(mask.sum())) > 0:
        count = min(part, remaining)
        chosen = torch.arange(active) if count == active else _most_influential(blocks, outputs, mask, count)
        seeds = _seeds(sources, chosen)
        mask[chosen], totals[chosen] = True, seeds.total.cpu()
        blocks += _blocks(sources, seeds, chosen, batch_size, compatible)
    return Explored(_edges(sources, blocks, mask), mask, totals)


def _check_memory(sources: Sources, budget: int) -> None:
    """Raise ResourceError if even the smallest rows that the budget allows do not fit into memory."""
    visible = sources.starts[sources.features.position.cpu(), -1]
    needed = int(visible.sort().values[:budget].sum()) * torch.float32.itemsize
    check_memory(f"An attribution graph with rows of {budget:,} features", needed, MEMORY_WAYS)


def _seeds(sources: Sources, chosen: Int[Tensor, "chosen"]) -> Seeds:
    """Seeds of the chosen active features."""
    features = sources.features
    chosen = chosen.to(features.layer.device)
    return feature_seeds(sources, features.layer[chosen], features.position[chosen], features.index[chosen])


def _blocks(
    sources: Sources, seeds: Seeds, numbers: Int[Tensor, "target"], batch_size: int, compatible: bool
) -> Iterator[Block]:
    """Rows of the seeds, batch by batch; those of a compatible graph stop after the embeddings."""
    columns = sources.columns
    others = slice(columns.errors.start, columns.embeddings.stop if compatible else sources.n_columns)
    for batch in attribute_rows(sources, seeds, batch_size=batch_size):
        n_visible = int(sources.starts[int(seeds.position[batch.targets].max()), -1])
        # Views would keep the batch's whole rows in memory, so these are copies.
        from_features, from_others = batch.rows[:, :n_visible].cpu().clone(), batch.rows[:, others].cpu().clone()
        mass = from_features.abs().sum(1) + from_others.abs().sum(1)
        targets = batch.targets.cpu()
        yield Block(numbers[targets], seeds.level[batch.targets].cpu(), from_features, from_others, mass)


def _most_influential(
    blocks: Sequence[Block], outputs: Float[Tensor, "node"], mask: Bool[Tensor, "feature"], count: int
) -> Int[Tensor, "chosen"]:
    """The ``count`` most influential features without a row."""
    scores = block_influence(blocks, outputs)[: mask.shape[0]]
    return torch.topk(scores.masked_fill(mask, -1.0), count).indices


def block_influence(blocks: Sequence[Block], outputs: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """Influence of every feature on the outputs, followed by the weights of the outputs themselves.

    This is the same sum over paths as ``influence`` computes from edges, but it is computed from dense rows, so edges
    do not have to be listed or sorted.
    """
    scores = outputs.clone()
    highest = max(int(block.level[0]) for block in blocks)
    for level in reversed(range(highest + 1)):
        for block in blocks:
            rows = _at_level(block, level)
            share = scores[block.numbers[rows]] / block.mass[rows].clamp(min=1e-30)
            scores[: block.features.shape[1]] += share @ block.features[rows].abs()
    return scores


def _at_level(block: Block, level: int) -> slice:
    """The slice of a block that holds the rows of one level."""
    start, end = int((block.level > level).sum()), int((block.level >= level).sum())
    return slice(start, end)


def _edges(sources: Sources, blocks: list[Block], mask: Bool[Tensor, "feature"]) -> Edges:
    """The edges of all rows; unexplored features are added to the error of their layer and position.

    Removes each block from ``blocks`` as it is read, so that its memory is freed.
    """
    features = sources.features
    cells = (features.layer * sources.path.n_positions + features.position).cpu()
    pieces: list[Edges] = []
    while blocks:
        block = blocks.pop()
        has_row = mask[: block.features.shape[1]]
        explored, folded = has_row.nonzero().flatten(), (~has_row).nonzero().flatten()
        block.others.T.index_add_(0, cells[folded], block.features.T[folded])
        rows = torch.cat([block.features[:, explored], block.others], dim=1)
        others = sources.columns.errors.start + torch.arange(block.others.shape[1])
        target, source = rows.nonzero(as_tuple=True)
        pieces.append(Edges(block.numbers[target], torch.cat([explored, others])[source], rows[target, source]))
    return Edges(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))
