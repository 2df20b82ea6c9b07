"""Which rows to compute: all of them, or those that a budget allows, most influential first.

The graph is grown from its targets. Before each part of the budget is spent, influence is computed over the rows that
are known; a feature without a row ends its paths, as an error does, and the most influential of those are next. What is
left when the budget is spent is folded into the error node of its layer and position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.attribution.adjoint import Seeds, attribute_rows, feature_seeds
from open_clt.attribution.influence import Edges, influence, input_shares
from open_clt.attribution.sources import Sources
from open_clt.attribution.targets import Resolved

_ROUNDS = 16
"""Parts that a budget is spent in."""


class Explored(NamedTuple):
    """Edges into the targets and the explored features, numbered by column, the targets after the last column."""

    edges: Edges
    mask: Bool[Tensor, "feature"]
    """Which active features have a row."""
    totals: Float[Tensor, "feature"]
    """What their complete rows add up to."""


def explore(sources: Sources, resolved: Resolved, budget: int | None, *, batch_size: int, compatible: bool) -> Explored:
    """Compute the targets' rows, then those of active features until the budget is spent."""
    active = sources.features.value.shape[0]
    budget = active if budget is None else min(budget, active)
    mask, totals = torch.zeros(active, dtype=torch.bool), torch.full((active,), torch.nan)
    numbers = sources.n_columns + torch.arange(len(resolved.seeds))
    outputs = torch.cat([torch.zeros(sources.n_columns), resolved.nodes.weight])
    level = torch.full(outputs.shape, sources.n_layers)
    level[:active] = sources.features.layer.cpu()
    pieces = _edges(sources, resolved.seeds, numbers, batch_size, compatible)
    part = budget if budget == active else max(batch_size // 4, -(-budget // _ROUNDS))
    while (left := budget - int(mask.sum())) > 0:
        chosen = (
            torch.arange(active) if part == active else _next(_joined(pieces), outputs, level, mask, min(part, left))
        )
        seeds = _seeds(sources, chosen)
        mask[chosen], totals[chosen] = True, seeds.total.cpu()
        pieces += _edges(sources, seeds, chosen, batch_size, compatible)
    return Explored(_folded(sources, _joined(pieces), mask), mask, totals)


def _seeds(sources: Sources, chosen: Int[Tensor, "some"]) -> Seeds:
    features = sources.features
    chosen = chosen.to(features.layer.device)
    return feature_seeds(sources, features.layer[chosen], features.position[chosen], features.index[chosen])


def _edges(
    sources: Sources, seeds: Seeds, numbers: Int[Tensor, "target"], batch_size: int, compatible: bool
) -> list[Edges]:
    """Non-zero entries of the seeds' rows, a batch at a time; a compatible graph stops after the embeddings."""
    width = sources.columns.embeddings.stop if compatible else sources.n_columns
    pieces: list[Edges] = []
    for batch in attribute_rows(sources, seeds, batch_size=batch_size):
        rows = batch.rows[:, :width].cpu()
        target, source = rows.nonzero(as_tuple=True)
        pieces.append(Edges(numbers[batch.targets.cpu()[target]], source, rows[target, source]))
    return pieces


def _joined(pieces: list[Edges]) -> Edges:
    """One table of edges; the list shrinks to it, so that no edge is kept twice."""
    pieces[:] = [Edges(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))]
    return pieces[0]


def _next(
    edges: Edges,
    outputs: Float[Tensor, "node"],
    level: Int[Tensor, "node"],
    mask: Bool[Tensor, "feature"],
    count: int,
) -> Int[Tensor, "some"]:
    """The most influential features that have no row yet."""
    scores = influence(edges, input_shares(edges, torch.zeros_like(outputs)), outputs, level)[: mask.shape[0]]
    return torch.topk(scores.masked_fill(mask, -1.0), count).indices


def _folded(sources: Sources, edges: Edges, mask: Bool[Tensor, "feature"]) -> Edges:
    """Let unexplored features count as errors of their layer and position, and add up what then coincides."""
    if bool(mask.all()):
        return edges
    features, columns = sources.features, sources.columns
    cells = columns.errors.start + features.layer * sources.path.n_positions + features.position
    column = torch.arange(sources.n_columns)
    column[columns.features] = torch.where(mask, column[columns.features], cells.cpu())
    key = edges.target * sources.n_columns + column[edges.source]
    unique, inverse = key.unique(return_inverse=True)
    weight = torch.zeros(unique.shape[0]).index_add(0, inverse, edges.weight)
    return Edges(unique // sources.n_columns, unique % sources.n_columns, weight)
