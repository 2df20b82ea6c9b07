"""The peaks of features in contexts: where, and how strongly, a feature is most active in each context."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import SparseFeatures


class Entries(NamedTuple):
    """The activations of one layer that are not zero, sorted by feature, then by context and position."""

    features: Int[Tensor, "entry"]
    """Index of the feature."""
    contexts: Int[Tensor, "entry"]
    """Index of the context in its batch."""
    positions: Int[Tensor, "entry"]
    """Position in the context."""
    tokens: Int[Tensor, "entry"]
    """Index of the encoded token in the batch: positions that are not encoded do not count."""
    values: Float[Tensor, "entry"]
    """Activation."""
    offsets: Int[Tensor, "feature_plus_1"]
    """First entry of each feature."""

    __repr__ = short_repr


class Peaks(NamedTuple):
    """Pairs of a feature and a context in which it is active, sorted by feature, then by context."""

    features: Int[Tensor, "pair"]
    """Index of the feature."""
    contexts: Int[Tensor, "pair"]
    """Index of the context in its batch."""
    values: Float[Tensor, "pair"]
    """Activation with the largest size, with its sign."""
    positions: Int[Tensor, "pair"]
    """Position of that activation; the first one if several are as large."""
    offsets: Int[Tensor, "pair_plus_1"]
    """First entry of each pair."""

    __repr__ = short_repr


def entries_of(active: SparseFeatures, length: int, first_position: int) -> Entries:
    """The entries of a batch of contexts, of which ``length`` tokens each are encoded, from ``first_position`` on."""
    is_active = active.values != 0
    active = active if bool(is_active.all()) else active.kept(is_active)
    entries = active.transposed
    return Entries(
        features=entries.features,
        contexts=entries.rows // length,
        positions=entries.rows % length + first_position,
        tokens=entries.rows,
        values=active.values[entries.order].float(),
        offsets=entries.offsets,
    )


def peaks_of(entries: Entries, n_contexts: int) -> Peaks:
    """The peak of every feature in every context in which it is active."""
    pairs = entries.features * n_contexts + entries.contexts
    _, pair_of_entry, counts = torch.unique_consecutive(pairs, return_inverse=True, return_counts=True)
    offsets = functional.pad(counts.cumsum(0), (1, 0))
    # Positive floats are in the order of their bits; of equal ones, the first has the larger number.
    index = torch.arange(len(pairs), device=pairs.device)
    ranks = (entries.values.abs().view(torch.int32).long() << 32) + (2**31 - 1 - index)
    best = torch.full((len(counts),), -1, device=pairs.device).scatter_reduce(0, pair_of_entry, ranks, "amax")
    peaks = 2**31 - 1 - (best & (2**32 - 1))
    return Peaks(
        features=entries.features[peaks],
        contexts=entries.contexts[peaks],
        values=entries.values[peaks],
        positions=entries.positions[peaks],
        offsets=offsets,
    )
