"""Which rows to compute: all of them, or those that a budget allows, most influential first.

The graph is grown from its targets. Before each part of the budget is spent, influence is computed over the rows that
are known; a feature without a row ends its paths, as an error does, and the most influential of those are next. What is
left when the budget is spent is folded into the error node of its layer and position.

Rows wait in blocks, one per batch, cropped to the features of the positions that the batch can see: at most 4 bytes for
every row and column. They become edges at the end, when it is known which features have rows. So memory is bounded by
the budget and the batch, beside at most 512 MB of decoder rows (``sources.py``): measured at GPT-2's shape, 0.3 GB for
1,024 of 5,520 features on 24 tokens and 0.9 GB for 2,048 of 26,907 on 128 (``benchmarks/attribution.py``).
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

_ROUNDS = 4
"""Parts that a budget is spent in. More of them find no more influence: on the embedded model four find 99.5 % or more
of what the same number of the most influential features hold, one 96 % or more; and larger parts are faster."""


class Explored(NamedTuple):
    """Edges into the targets and the explored features, numbered by column, the targets after the last column."""

    edges: Edges
    mask: Bool[Tensor, "feature"]
    """Which active features have a row."""
    totals: Float[Tensor, "feature"]
    """What their complete rows add up to."""


class Block(NamedTuple):
    """Rows of one batch, highest level first, on the CPU."""

    numbers: Int[Tensor, "target"]
    """Columns of the targets; those that are no column themselves are numbered after the last."""
    level: Int[Tensor, "target"]
    features: Float[Tensor, "target seen"]
    """The first feature columns: those of positions after the batch's last are zero and left out."""
    others: Float[Tensor, "target other"]
    """All columns after the features', as far as they are asked for."""
    mass: Float[Tensor, "target"]
    """Absolute sum of each row."""


def explore(sources: Sources, resolved: Resolved, budget: int | None, *, batch_size: int, compatible: bool) -> Explored:
    """Compute the targets' rows, then those of active features until the budget is spent."""
    active = sources.features.value.shape[0]
    budget = active if budget is None else min(budget, active)
    mask, totals = torch.zeros(active, dtype=torch.bool), torch.full((active,), torch.nan)
    outputs = torch.cat([torch.zeros(sources.n_columns), resolved.nodes.weight])
    numbers = sources.n_columns + torch.arange(len(resolved.seeds))
    blocks = list(_blocks(sources, resolved.seeds, numbers, batch_size, compatible))
    part = budget if budget == active else -(-budget // _ROUNDS)
    while (left := budget - int(mask.sum())) > 0:
        chosen = torch.arange(active) if part == active else _next(blocks, outputs, mask, min(part, left))
        seeds = _seeds(sources, chosen)
        mask[chosen], totals[chosen] = True, seeds.total.cpu()
        blocks += _blocks(sources, seeds, chosen, batch_size, compatible)
    return Explored(_edges(sources, blocks, mask), mask, totals)


def _seeds(sources: Sources, chosen: Int[Tensor, "some"]) -> Seeds:
    features = sources.features
    chosen = chosen.to(features.layer.device)
    return feature_seeds(sources, features.layer[chosen], features.position[chosen], features.index[chosen])


def _blocks(
    sources: Sources, seeds: Seeds, numbers: Int[Tensor, "target"], batch_size: int, compatible: bool
) -> Iterator[Block]:
    """The seeds' rows, a batch at a time; a compatible graph stops after the embeddings."""
    columns = sources.columns
    others = slice(columns.errors.start, columns.embeddings.stop if compatible else sources.n_columns)
    for batch in attribute_rows(sources, seeds, batch_size=batch_size):
        seen = int(sources.starts[int(seeds.position[batch.targets].max()), -1])
        # Copies, so that the batch's whole rows are let go.
        features, rest = batch.rows[:, :seen].cpu().clone(), batch.rows[:, others].cpu().clone()
        mass = features.abs().sum(1) + rest.abs().sum(1)
        targets = batch.targets.cpu()
        yield Block(numbers[targets], seeds.level[batch.targets].cpu(), features, rest, mass)


def _next(
    blocks: Sequence[Block], outputs: Float[Tensor, "node"], mask: Bool[Tensor, "feature"], count: int
) -> Int[Tensor, "some"]:
    """The most influential features that have no row yet."""
    scores = block_influence(blocks, outputs)[: mask.shape[0]]
    return torch.topk(scores.masked_fill(mask, -1.0), count).indices


def block_influence(blocks: Sequence[Block], outputs: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """Influence of every feature on the outputs, whose own weights (at their numbers) it also holds.

    The sum over paths that ``influence`` takes over edges, here over rows as they stand: no edge is listed or sorted.
    """
    reaching = outputs.clone()
    highest = max(int(block.level[0]) for block in blocks)
    for level in reversed(range(highest + 1)):
        for block in blocks:
            rows = _at_level(block, level)
            share = reaching[block.numbers[rows]] / block.mass[rows].clamp(min=1e-30)
            reaching[: block.features.shape[1]] += share @ block.features[rows].abs()
    return reaching


def _at_level(block: Block, level: int) -> slice:
    """Where the rows of one level stand in a block."""
    above, until = int((block.level > level).sum()), int((block.level >= level).sum())
    return slice(above, until)


def _edges(sources: Sources, blocks: list[Block], mask: Bool[Tensor, "feature"]) -> Edges:
    """Non-zero entries of all rows; unexplored features count as errors of their layer and position.

    Blocks are let go as they are read.
    """
    features = sources.features
    cells = (features.layer * sources.path.n_positions + features.position).cpu()
    pieces: list[Edges] = []
    while blocks:
        block = blocks.pop()
        seen = mask[: block.features.shape[1]]
        explored, folded = seen.nonzero().flatten(), (~seen).nonzero().flatten()
        block.others.T.index_add_(0, cells[folded], block.features.T[folded])
        rows = torch.cat([block.features[:, explored], block.others], dim=1)
        others = sources.columns.errors.start + torch.arange(block.others.shape[1])
        target, source = rows.nonzero(as_tuple=True)
        pieces.append(Edges(block.numbers[target], torch.cat([explored, others])[source], rows[target, source]))
    return Edges(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))
