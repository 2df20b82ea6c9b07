"""The adjoint walk: rows of an attribution, computed by walking down from each target, without autograd.

A target is a linear function of the residual stream at one level and position: a feature's encoder row, or an
unembedding direction through the final norm. This function (the "cotangent") is carried down the frozen, linear model
by the adjoint of each step. Attention's adjoint spreads the cotangent over earlier positions. At every level, the
products of the cotangent with the vectors that are added to the stream there are the target's edges (Ameisen et al.,
2025, "Attribution graphs"; ``LinearBlock.add_attention_adjoint`` writes the adjoint out).

Targets at nearby positions share a batch, so that positions after the last target are not computed. Each target enters
the walk at its own level.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.attribution.sources import Sources
from open_clt.short_repr import short_repr

_BATCH_NUMBERS = 2**24
"""Largest number of entries in one batch's cotangents (64 MB in float32); the walk needs a few times as much memory."""
_CACHED_NUMBERS = 2**19
"""Number of entries of the cotangents that attention's adjoint takes at a time (2 MB in float32).

Intermediate results then stay in the processor's cache, and their memory is used again."""


@final
@dataclass(frozen=True, eq=False)
class Seeds:
    """Targets as linear functions of the residual stream."""

    level: Int[Tensor, "target"]
    """Level at which each function reads: block ``level``'s encoder input, or the final stream for ``n_layers``."""
    position: Int[Tensor, "target"]
    """Position at which each function reads."""
    cotangent: Float[Tensor, "target d_model"]
    """Coefficients of each function."""
    bias: Float[Tensor, "target"]
    """Constant that biases add to each target: those of the norm that it reads through, and of the unembedding."""
    total: Float[Tensor, "target"]
    """Value that the entries of each target's complete row add up to."""

    def __len__(self) -> int:
        return self.level.shape[0]

    def __getitem__(self, chosen: Tensor) -> Seeds:
        """The chosen targets."""
        return Seeds(
            self.level[chosen],
            self.position[chosen],
            self.cotangent[chosen],
            self.bias[chosen],
            self.total[chosen],
        )

    __repr__ = short_repr


class Batch(NamedTuple):
    """The dense rows of one batch of targets."""

    targets: Int[Tensor, "target"]
    """Indices of the batch's targets among all seeds."""
    rows: Float[Tensor, "target column"]
    """Row of each target in the batch."""

    __repr__ = short_repr


def feature_seeds(sources: Sources, layer: Tensor, position: Tensor, index: Tensor) -> Seeds:
    """Seeds of features: their encoder rows, taken through the frozen norm if the encoder reads the output of a norm.

    Each total is the pre-activation without the encoder bias; of a neuron, the activation without the bias's share. The
    features do not have to be active.
    """
    cotangent = sources.errors.new_empty(layer.shape[0], sources.path.d_model)
    bias, total = (sources.errors.new_empty(layer.shape[0]) for _ in range(2))
    for level in layer.unique().tolist():
        chosen = layer == level
        positions = position[chosen]
        rows = sources.target_rows(level, index[chosen], positions)
        total[chosen] = (rows * sources.path.inputs[level, positions]).sum(-1)
        reader = sources.path.readers[level]
        cotangent[chosen] = reader.adjoint_at(rows, positions)
        bias[chosen] = rows @ reader.bias if reader.bias is not None else 0.0
    return Seeds(layer, position, cotangent, bias, total)


def attribute_rows(sources: Sources, seeds: Seeds, *, batch_size: int) -> Iterator[Batch]:
    """Rows of all seeds, in batches of at most ``batch_size`` seeds at neighbouring positions."""
    order = torch.argsort(seeds.position, stable=True)
    positions = seeds.position[order].tolist()
    start = 0
    while start < len(positions):
        # Every seed is walked over all positions up to its batch's last position, so a batch must not span many.
        last_position = positions[start] + max(2, positions[start] // 4)
        size = min(batch_size, max(1, _BATCH_NUMBERS // ((last_position + 1) * sources.path.d_model)))
        end = min(bisect_right(positions, last_position), start + size)
        chosen = order[start:end]
        chosen = chosen[torch.argsort(seeds.level[chosen], descending=True, stable=True)]
        yield Batch(chosen, _walk(sources, seeds[chosen]))
        start = end


def _walk(sources: Sources, seeds: Seeds) -> Float[Tensor, "target column"]:
    """Rows of one batch of seeds, which are sorted by level, highest first."""
    every_row = torch.arange(len(seeds), device=seeds.level.device)
    cotangents = sources.errors.new_zeros(len(seeds), int(seeds.position.max()) + 1, sources.path.d_model)
    cotangents[every_row, seeds.position] = seeds.cotangent
    entries = torch.where(seeds.level < sources.n_layers, read_by(seeds.level), before(seeds.level))
    rows = walk(sources, cotangents, entries, positions=seeds.position)
    _grid(rows, sources.columns.biases, sources.path.n_positions)[every_row, seeds.level, seeds.position] += seeds.bias
    return rows


Level = TypeVar("Level", int, Tensor)


def before(level: Level) -> Level:
    """The entry of a cotangent that reads the stream before block ``level``, or after the last block (``n_layers``)."""
    return 2 * level


def read_by(level: Level) -> Level:
    """The entry of a cotangent that reads the encoder input of block ``level``."""
    return 2 * level + 1


def walk(
    sources: Sources,
    cotangents: Float[Tensor, "target position d_model"],
    entries: Int[Tensor, "target"],
    *,
    positions: Int[Tensor, "target"] | None = None,
    through_attention: bool = True,
) -> Float[Tensor, "target column"]:
    """Products of linear functions of the stream with every vector that is added to the stream below their entries.

    ``entries`` come from ``before`` or ``read_by`` and must descend, so that the cotangents that have entered the walk
    are always the first ones. ``cotangents`` are overwritten. ``positions`` is given if each cotangent enters at a
    single position; the first attention on its way is then cheaper. With ``through_attention=False`` the walk follows
    only the residual stream and the skip paths, but still includes attention's biases.
    """
    rows = sources.errors.new_zeros(cotangents.shape[0], sources.n_columns)
    spread = 0  # how many cotangents attention has spread over positions; they are the first ones
    for level in reversed(range(sources.n_layers)):
        before_attention = sources.path.readers[level].before_attention
        above = int((entries >= before(level + 1)).sum())
        attended = above if before_attention else int((entries >= read_by(level)).sum())
        _add_mlp(sources, level, cotangents[:above], rows[:above])
        skipped = _skipped(sources, level, cotangents[:above])
        if skipped is not None and not before_attention:
            cotangents[:above] += skipped
        _add_attention_bias(sources, level, cotangents[:attended], rows[:attended])
        if through_attention:
            single = entries[:0] if positions is None else positions[spread:attended]
            _attend(sources, level, cotangents[:attended], single, rows[:attended])
            spread = attended
        if skipped is not None and before_attention:
            cotangents[:above] += skipped
    _add_embeddings(sources, rows, cotangents, sources.path.embedding, sources.path.positional)
    return rows


def _add_mlp(
    sources: Sources,
    level: int,
    cotangents: Float[Tensor, "target position d_model"],
    rows: Float[Tensor, "target column"],
) -> None:
    """Add the products with a block's features, errors and decoder bias, or with its whole MLP output, to the rows."""
    first, positions, columns = sources.first, cotangents.shape[1], sources.columns
    written, spans = sources.written(level)
    begin = 0
    for position, span in enumerate(spans[:positions]):
        end = begin + span.stop - span.start
        # A feature writes to several layers, so other levels add terms to the same columns.
        rows[:, span] += cotangents[:, position] @ written[begin:end].T
        begin = end
    used = cotangents[:, first:]
    errors = torch.einsum("bpd,pd->bp", used, sources.errors[level, first:positions])
    _grid(rows, columns.errors, sources.path.n_positions)[:, level, first:positions] = errors
    biases = _grid(rows, columns.biases, sources.path.n_positions)
    biases[:, level, first:positions] += torch.einsum("bpd,pd->bp", used, sources.constants[level, first:positions])
    if first:
        whole = torch.einsum("bpd,pd->bp", cotangents[:, :first], sources.path.blocks[level].mlp_output[:first])
        _grid(rows, columns.mlp_outputs, first)[:, level] = whole


def _add_attention_bias(
    sources: Sources,
    level: int,
    cotangents: Float[Tensor, "target position d_model"],
    rows: Float[Tensor, "target column"],
) -> None:
    """Add the products with attention's biases to the rows."""
    positions = cotangents.shape[1]
    bias = torch.einsum("bpd,pd->bp", cotangents, sources.attention_bias[level, :positions])
    _grid(rows, sources.columns.biases, sources.path.n_positions)[:, level, :positions] += bias


def _attend(
    sources: Sources,
    level: int,
    cotangents: Float[Tensor, "target position d_model"],
    single: Int[Tensor, "single"],
    rows: Float[Tensor, "target column"],
) -> None:
    """Add the adjoint of one attention layer to the cotangents, the last of which read only one position each.

    ``single`` holds these positions. Below the first attention layer only the embeddings remain, so the products are
    taken between the attention's values and the embeddings; this saves half of the computation.
    """
    block, path, length = sources.path.blocks[level], sources.path, cotangents.shape[1]
    n_spread = cotangents.shape[0] - single.shape[0]
    spread, entered = cotangents[:n_spread], cotangents[n_spread:]
    at_single = entered[torch.arange(single.shape[0], device=single.device), single]
    size = max(1, _CACHED_NUMBERS // (length * path.d_model))
    if level:
        for part in spread.split(size):
            block.add_attention_adjoint(part)
        for part, stream, positions in zip(*(whole.split(size) for whole in (entered, at_single, single)), strict=True):
            part += block.attention_adjoint_at(stream, positions, length)
        return
    embedding = block.values_of(path.embedding[:length])
    positional = None if path.positional is None else block.values_of(path.positional[:length])
    for part, part_rows in zip(spread.split(size), rows[:n_spread].split(size), strict=True):
        _add_embeddings(sources, part_rows, block.values_adjoint(part), embedding, positional)
    columns = (at_single, single, rows[n_spread:])
    for stream, positions, part_rows in zip(*(whole.split(size) for whole in columns), strict=True):
        values = block.values_adjoint_at(stream, positions, length)
        _add_embeddings(sources, part_rows, values, embedding, positional)


def _add_embeddings(
    sources: Sources,
    rows: Float[Tensor, "target column"],
    functions: Float[Tensor, "target position width"],
    embedding: Float[Tensor, "embedded width"],
    positional: Float[Tensor, "embedded width"] | None,
) -> None:
    """Add the products with the embeddings, or with the first attention's values of them, to the rows."""
    columns, length = sources.columns, functions.shape[1]
    rows[:, columns.embeddings][:, :length] += torch.einsum("bpd,pd->bp", functions, embedding[:length])
    if positional is not None:
        rows[:, columns.positional][:, :length] += torch.einsum("bpd,pd->bp", functions, positional[:length])


def add_skipped(sources: Sources, level: int, cotangents: Float[Tensor, "target position d_model"]) -> None:
    """Add the adjoint of a block's skip path, from the MLP's output back to the encoder's input, to the cotangents."""
    skipped = _skipped(sources, level, cotangents)
    if skipped is not None:
        cotangents += skipped


def _skipped(
    sources: Sources, level: int, cotangents: Float[Tensor, "target position d_model"]
) -> Float[Tensor, "target position d_model"] | None:
    """The adjoint of a block's skip path applied to the cotangents, or None without a skip path."""
    if level not in sources.W_skip:
        return None
    first = sources.first
    skipped = sources.path.readers[level].adjoint(cotangents @ sources.W_skip[level])
    skipped[:, :first] = 0  # neither features nor skip paths are used at these positions
    return skipped


def _grid(rows: Float[Tensor, "target column"], columns: slice, width: int) -> Float[Tensor, "target layer position"]:
    """A view of the columns of one kind as a grid of layers and positions."""
    return rows[:, columns].unflatten(1, (-1, width))
