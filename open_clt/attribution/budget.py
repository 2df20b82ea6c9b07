"""The budget: the choice of features whose rows are computed, most influential first.

The graph grows from its targets. The budget is spent in parts. Before each part, influence is computed over the rows
that are known, where a feature without a row ends its paths as an error does; the most influential features without a
row come next. When the budget is spent, the remaining features are folded into the error node of their layer and
position.

Rows are kept in blocks, one per batch, cropped to the features at positions that the batch can see; they take at most
4 bytes per entry. Rows become edges at the end (``rows_to_edges.py``), when it is known which features have rows.
Memory is thus bounded by the budget and the batch size, besides at most 512 MB of decoder rows (``sources.py``). If
every active feature gets a row, no block is kept. Measured with GPT-2's shape, it
is 0.3 GB for 1,024 of 5,520 features on 24 tokens, and 0.9 GB for 2,048 of 26,907 features on 128 tokens
(``benchmarks/attribution.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.attribution.adjoint import Seeds, attribute_rows, feature_seeds
from open_clt.attribution.rows_to_edges import Block, edges_of_blocks
from open_clt.attribution.sources import Sources
from open_clt.attribution.targets import Resolved
from open_clt.graphs.edges import Edges
from open_clt.memory import check_memory
from open_clt.short_repr import short_repr
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.transcoder import Transcoder

MEMORY_WAYS = "use a smaller max_feature_nodes (--max-feature-nodes), or a shorter prompt"
"""What a user can do if a graph does not fit into memory."""
_ROUNDS = 4
"""Number of parts in which a budget is spent.

Larger parts are faster, and more of them do not find more influence. On the embedded model, the features found in four
parts hold at least 99.5 % of the influence of the same number of most influential features; found in one part, at
least 96 %."""


_NEURONS = 2048
"""Number of neurons that are attributed by default in the facade and in commands, because every neuron is active.

On nine tokens of the embedded model, with 22,887 neurons, these take 3 s and 0.8 GB, and all of them 20 s and 2 GB."""


def default_budget(transcoder: Transcoder) -> int | None:
    """The budget of callers that are given none: None, which is every active feature, but not for neurons."""
    return _NEURONS if isinstance(transcoder, NeuronTranscoder) else None


class Explored(NamedTuple):
    """The edges into the targets and the explored features."""

    edges: Edges
    """All edges with a non-zero weight, between the nodes of the graph."""
    columns: Int[Tensor, "node"]
    """Column of each node of the graph; the targets have the numbers after the last column."""
    mask: Bool[Tensor, "feature"]
    """True for each active feature that has a row."""
    totals: Float[Tensor, "feature"]
    """Value that the entries of each explored feature's complete row add up to; NaN for other features."""
    influence_left_out: float
    """Share of the influence that ends at active features without a row."""

    __repr__ = short_repr


def explore(sources: Sources, resolved: Resolved, budget: int | None, *, batch_size: int, compatible: bool) -> Explored:
    """Compute the rows of the targets, then rows of active features until the budget is spent."""
    active = sources.features.value.shape[0]
    budget = active if budget is None else min(budget, active)
    _check_memory(sources, budget)
    mask, totals = torch.zeros(active, dtype=torch.bool), torch.full((active,), torch.nan)
    outputs = torch.cat([torch.zeros(sources.n_columns), resolved.nodes.weight])
    numbers = sources.n_columns + torch.arange(len(resolved.seeds))

    def rows_of(chosen: Int[Tensor, "chosen"]) -> Iterator[Block]:
        seeds = _seeds(sources, chosen)
        mask[chosen], totals[chosen] = True, seeds.total.cpu()
        return _blocks(sources, seeds, chosen, batch_size, compatible)

    blocks, left_out = _blocks(sources, resolved.seeds, numbers, batch_size, compatible), 0.0
    if budget == active:
        # Every row is needed, so each batch of rows becomes edges as soon as it is computed.
        blocks = chain(blocks, rows_of(torch.arange(active)))
    else:
        kept, part = list(blocks), -(-budget // _ROUNDS)
        while (remaining := budget - int(mask.sum())) > 0:
            kept += rows_of(_most_influential(kept, outputs, mask, min(part, remaining)))
        ending = block_influence(kept, outputs)[:active].masked_fill(mask, 0.0)
        left_out = float(ending.sum() / outputs.sum().clamp(min=1e-30))
        blocks = _drained(kept)
    columns = node_columns(sources, mask, len(numbers), compatible=compatible)
    return Explored(edges_of_blocks(sources, blocks, columns, mask), columns, mask, totals, left_out)


def node_columns(
    sources: Sources, mask: Bool[Tensor, "feature"], n_targets: int, *, compatible: bool
) -> Int[Tensor, "node"]:
    """The columns of a graph's nodes: explored features by layer, position and index, other sources, targets."""
    columns = sources.columns
    # Columns are sorted by position first; a stable sort by layer orders them by layer, position and feature.
    by_layer = torch.argsort(sources.features.layer.cpu(), stable=True)
    others = torch.arange(columns.errors.start, columns.embeddings.stop if compatible else sources.n_columns)
    return torch.cat([by_layer[mask[by_layer]], others, sources.n_columns + torch.arange(n_targets)])


def _drained(blocks: list[Block]) -> Iterator[Block]:
    """The blocks of a list, each of which is removed from the list, so that its memory is freed."""
    while blocks:
        yield blocks.pop()


def _check_memory(sources: Sources, budget: int) -> None:
    """Raise ResourceError if even the smallest rows that the budget allows do not fit into memory."""
    features = sources.features
    position, layer = features.position.cpu(), features.layer.cpu()
    if budget == features.value.shape[0]:
        # Edges from the features of lower layers, of 8 bytes each.
        below = (sources.starts - sources.starts[:, :1]).cumsum(0)
        needed = 8 * int(below[position, layer].sum())
    else:
        visible = sources.starts[position, -1]
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
