"""Rows of an attribution, without autograd: the linear path, walked down from each target by the adjoint of each step.

A target is a linear function of the residual stream at one level and position: a feature's encoder row, or an
unembedding direction through the final norm. Walking down, the function ("cotangent") spreads over earlier positions
through the attention's adjoint; at every level its products with what is added there are the target's edges (Ameisen et
al., 2025, "Attribution graphs"; the adjoint is written out in ``LinearBlock.attention_adjoint``).

Targets that look at nearby positions share a batch, so that no position after the last of them is computed, and enter
the walk at their own level.
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

_BATCH_NUMBERS = 2**24
"""Numbers in one batch's cotangents (64 MB in float32); the walk needs a few times as much."""


@final
@dataclass(frozen=True, eq=False)
class Seeds:
    """Targets as linear functions of the residual stream."""

    level: Int[Tensor, "target"]
    """Where the function looks: what block ``level`` encodes, or, at ``n_layers``, the stream after the last block."""
    position: Int[Tensor, "target"]
    cotangent: Float[Tensor, "target d_model"]
    bias: Float[Tensor, "target"]
    """Constant that enters after the last block: the final norm's bias and the unembedding's."""
    total: Float[Tensor, "target"]
    """What a complete row adds up to."""

    def __len__(self) -> int:
        return self.level.shape[0]

    def __getitem__(self, chosen: Tensor) -> Seeds:
        """Some of the targets."""
        return Seeds(
            self.level[chosen],
            self.position[chosen],
            self.cotangent[chosen],
            self.bias[chosen],
            self.total[chosen],
        )


class Batch(NamedTuple):
    """Rows of some targets, dense."""

    targets: Int[Tensor, "target"]
    rows: Float[Tensor, "target column"]


def feature_seeds(sources: Sources, layer: Tensor, position: Tensor, index: Tensor) -> Seeds:
    """Features as targets: encoder rows, through the frozen norm if the encoder reads the normalised stream.

    The total is ``pre - b_enc``; the features need not be active.
    """
    cotangent = sources.errors.new_empty(layer.shape[0], sources.path.d_model)
    total = sources.errors.new_empty(layer.shape[0])
    for number in layer.unique().tolist():
        chosen = layer == number
        rows, where = sources.encoder_rows(number, index[chosen]), position[chosen]
        total[chosen] = (rows * sources.path.inputs[number, where]).sum(-1)
        reader = sources.path.blocks[number].reader
        cotangent[chosen] = rows if reader is None else reader.adjoint_at(rows, where)
    return Seeds(layer, position, cotangent, torch.zeros_like(total), total)


def attribute_rows(sources: Sources, seeds: Seeds, *, batch_size: int) -> Iterator[Batch]:
    """Rows of all seeds, some at a time: neighbours in position share a batch, ``batch_size`` of them at most."""
    order = torch.argsort(seeds.position, stable=True)
    positions = seeds.position[order].tolist()
    start = 0
    while start < len(positions):
        # Every seed of a batch is walked over all positions up to the last one's: a batch must not span many.
        limit = positions[start] + max(2, positions[start] // 4)
        most = min(batch_size, max(1, _BATCH_NUMBERS // ((limit + 1) * sources.path.d_model)))
        end = min(bisect_right(positions, limit), start + most)
        chosen = order[start:end]
        chosen = chosen[torch.argsort(seeds.level[chosen], descending=True, stable=True)]
        yield Batch(chosen, _walk(sources, seeds[chosen]))
        start = end


def _walk(sources: Sources, seeds: Seeds) -> Float[Tensor, "target column"]:
    """Rows of some seeds, highest level first."""
    every = torch.arange(len(seeds), device=seeds.level.device)
    cotangents = sources.errors.new_zeros(len(seeds), int(seeds.position.max()) + 1, sources.path.d_model)
    cotangents[every, seeds.position] = seeds.cotangent
    entries = torch.where(seeds.level < sources.n_layers, read_by(seeds.level), before(seeds.level))
    rows = walk(sources, cotangents, entries, positions=seeds.position)
    _grid(rows, sources.columns.biases, sources.path.n_positions)[every, -1, seeds.position] += seeds.bias
    return rows


Place = TypeVar("Place", int, Tensor)


def before(level: Place) -> Place:
    """Where a cotangent may enter the walk: the stream before block ``level`` (``n_layers``: after the last)."""
    return 2 * level


def read_by(level: Place) -> Place:
    """Where a cotangent may enter the walk: what the encoder of block ``level`` reads."""
    return 2 * level + 1


def walk(
    sources: Sources,
    cotangents: Float[Tensor, "target position d_model"],
    entries: Int[Tensor, "target"],
    *,
    positions: Int[Tensor, "target"] | None = None,
    through_attention: bool = True,
) -> Float[Tensor, "target column"]:
    """Products of linear functions of the stream with everything that is added below their entries.

    ``entries`` (``before`` or ``read_by``) descend, so that those that have entered are always the first ones.
    ``cotangents`` are overwritten. If each enters at one position, ``positions`` says so, and its first attention is
    cheap. ``through_attention=False`` follows the residual stream (and skip paths) alone; attention's biases are met
    all the same.
    """
    rows = sources.errors.new_zeros(cotangents.shape[0], sources.n_columns)
    spread = 0  # those that attention has spread over positions: again the first ones
    for level in reversed(range(sources.n_layers)):
        parallel = sources.path.blocks[level].parallel
        above = int((entries >= before(level + 1)).sum())
        attended = above if parallel else int((entries >= read_by(level)).sum())
        _meet_mlp(sources, level, cotangents[:above], rows[:above])
        skipped = _skipped(sources, level, cotangents[:above])
        if skipped is not None and not parallel:
            cotangents[:above] += skipped
        _meet_attention_bias(sources, level, cotangents[:attended], rows[:attended])
        if through_attention:
            single = entries[:0] if positions is None else positions[spread:attended]
            _attend(sources, level, cotangents[:attended], single, rows[:attended])
            spread = attended
        if skipped is not None and parallel:
            cotangents[:above] += skipped
    _meet_embeddings(sources, rows, cotangents, sources.path.embedding, sources.path.positional)
    return rows


def _meet_mlp(
    sources: Sources,
    level: int,
    cotangents: Float[Tensor, "target position d_model"],
    rows: Float[Tensor, "target column"],
) -> None:
    """Products with what is added after one block: features, errors and decoder bias, or a whole MLP output."""
    first, positions, columns = sources.first, cotangents.shape[1], sources.columns
    written, spans = sources.written(level)
    begin = 0
    for position, span in enumerate(spans[:positions]):
        end = begin + span.stop - span.start
        # Other levels have their own terms in the same columns: a feature writes to many layers.
        rows[:, span] += cotangents[:, position] @ written[begin:end].T
        begin = end
    used = cotangents[:, first:]
    errors = torch.einsum("bpd,pd->bp", used, sources.errors[level, first:positions])
    _grid(rows, columns.errors, sources.path.n_positions)[:, level, first:positions] = errors
    biases = _grid(rows, columns.biases, sources.path.n_positions)
    biases[:, level, first:positions] += used @ sources.b_dec[level]
    if first:
        whole = torch.einsum("bpd,pd->bp", cotangents[:, :first], sources.path.blocks[level].mlp_output[:first])
        _grid(rows, columns.mlp_outputs, first)[:, level] = whole


def _meet_attention_bias(
    sources: Sources,
    level: int,
    cotangents: Float[Tensor, "target position d_model"],
    rows: Float[Tensor, "target column"],
) -> None:
    """Products with the biases that attention adds."""
    positions = cotangents.shape[1]
    bias = torch.einsum("bpd,pd->bp", cotangents, sources.attention_bias[level, :positions])
    _grid(rows, sources.columns.biases, sources.path.n_positions)[:, level, :positions] += bias


def _attend(
    sources: Sources,
    level: int,
    cotangents: Float[Tensor, "target position d_model"],
    single: Int[Tensor, "some"],
    rows: Float[Tensor, "target column"],
) -> None:
    """Add the cotangents' way back through one attention layer; the last ones look at ``single`` positions.

    Under the first attention there are the embeddings alone: their products are taken with its values, which spares
    half of the way.
    """
    block, path, length = sources.path.blocks[level], sources.path, cotangents.shape[1]
    first = cotangents.shape[0] - single.shape[0]
    many, few = cotangents[:first], cotangents[first:]
    looking = few[torch.arange(single.shape[0], device=single.device), single]
    if level:
        many += block.attention_adjoint(many)
        few += block.attention_adjoint_at(looking, single, length)
        return
    values = torch.cat([block.values_adjoint(many), block.values_adjoint_at(looking, single, length)])
    positional = None if path.positional is None else block.values_of(path.positional[:length])
    _meet_embeddings(sources, rows, values, block.values_of(path.embedding[:length]), positional)


def _meet_embeddings(
    sources: Sources,
    rows: Float[Tensor, "target column"],
    functions: Float[Tensor, "target position width"],
    embedding: Float[Tensor, "seen width"],
    positional: Float[Tensor, "seen width"] | None,
) -> None:
    """Products with the embeddings, or with the values that the first attention makes of them."""
    columns, length = sources.columns, functions.shape[1]
    rows[:, columns.embeddings][:, :length] += torch.einsum("bpd,pd->bp", functions, embedding[:length])
    if positional is not None:
        rows[:, columns.positional][:, :length] += torch.einsum("bpd,pd->bp", functions, positional[:length])


def add_skipped(sources: Sources, level: int, cotangents: Float[Tensor, "target position d_model"]) -> None:
    """Add the cotangents' way back along a block's skip path, from what it writes to what the encoder reads."""
    skipped = _skipped(sources, level, cotangents)
    if skipped is not None:
        cotangents += skipped


def _skipped(
    sources: Sources, level: int, cotangents: Float[Tensor, "target position d_model"]
) -> Float[Tensor, "target position d_model"] | None:
    """The cotangents' way back along a block's skip path, if it has one."""
    if sources.W_skip is None:
        return None
    first, reader = sources.first, sources.path.blocks[level].reader
    skipped = cotangents @ sources.W_skip[level]
    skipped = skipped if reader is None else reader.adjoint(skipped)
    skipped[:, :first] = 0  # features are not used there, and neither is their skip path
    return skipped


def _grid(rows: Float[Tensor, "target column"], columns: slice, width: int) -> Float[Tensor, "target layer position"]:
    """Columns of a (layer, position) kind as a grid: a view."""
    return rows[:, columns].unflatten(1, (-1, width))
