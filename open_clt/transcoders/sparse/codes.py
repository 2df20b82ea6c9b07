"""Sparse features: the codes of a batch of tokens as a CSR matrix, and what is asked of them.

What is computed with them stands in ``products.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

DENSE_ABOVE = 1 / 5
"""Share of active features above which dense products are the faster ones.

Measured on one CPU core in fp32, decoding with both gradients: sparse is 20 times as fast at 0.2 %, 4 times at 3 %,
twice at 12 %, and no faster at 25 %, whatever the shape.
"""


class Transposed(NamedTuple):
    """Active entries sorted by feature: the codes as a (feature, batch) CSR matrix."""

    order: Int[Tensor, "active"]
    features: Int[Tensor, "active"]
    rows: Int[Tensor, "active"]
    offsets: Int[Tensor, "features_plus_1"]


@final
class _Entries:
    """Where a batch's active entries are; what follows from that is computed once, whatever values are put there."""

    def __init__(self, features: Int[Tensor, "active"], offsets: Int[Tensor, "batch_plus_1"], n_features: int) -> None:
        self.features, self.offsets, self.n_features = features, offsets, n_features

    @cached_property
    def rows(self) -> Int[Tensor, "active"]:
        tokens = torch.arange(self.offsets.shape[0] - 1, device=self.features.device)
        return torch.repeat_interleave(tokens, self.offsets.diff(), output_size=self.features.shape[0])

    @cached_property
    def transposed(self) -> Transposed:
        order = torch.argsort(self.features, stable=True)
        counts = torch.bincount(self.features, minlength=self.n_features)
        return Transposed(order, self.features[order], self.rows[order], functional.pad(counts.cumsum(0), (1, 0)))


@final
@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """One layer's features for a batch of tokens, as CSR: token ``b`` owns entries ``offsets[b]:offsets[b + 1]``.

    Values may be zero (a TopK slot whose pre-activation is negative, a JumpReLU entry just under its threshold that
    needs a gradient); a zero is no active feature.
    """

    values: Float[Tensor, "active"]
    features: Int[Tensor, "active"]
    offsets: Int[Tensor, "batch_plus_1"]
    n_features: int
    _entries: _Entries = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_entries", _Entries(self.features, self.offsets, self.n_features))

    @property
    def batch(self) -> int:
        """Number of tokens."""
        return self.offsets.shape[0] - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense tensor this stands for: (batch, feature)."""
        return self.batch, self.n_features

    @property
    def density(self) -> float:
        """Share of all entries that are stored."""
        return self.values.shape[0] / max(1, self.batch * self.n_features)

    @property
    def rows(self) -> Int[Tensor, "active"]:
        """Token of each entry."""
        return self._entries.rows

    @property
    def transposed(self) -> Transposed:
        """The same entries sorted by feature."""
        return self._entries.transposed

    def with_values(self, values: Float[Tensor, "active"]) -> SparseFeatures:
        """Other values on the same entries."""
        other = SparseFeatures(values, self.features, self.offsets, self.n_features)
        object.__setattr__(other, "_entries", self._entries)
        return other

    def kept(self, mask: Bool[Tensor, "active"]) -> SparseFeatures:
        """Only the entries where ``mask`` holds."""
        counts = torch.bincount(self.rows[mask], minlength=self.batch)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
        return SparseFeatures(self.values[mask], self.features[mask], offsets, self.n_features)

    def dense(self) -> Float[Tensor, "batch feature"]:
        """The dense tensor, differentiable in the values."""
        flat = self.values.new_zeros(self.batch * self.n_features)
        return flat.index_add(0, self.rows * self.n_features + self.features, self.values).view(self.shape)

    @staticmethod
    def from_dense(dense: Float[Tensor, "batch feature"]) -> SparseFeatures:
        """Keep the non-zero entries of a dense tensor."""
        return SparseFeatures.from_mask(dense, dense != 0)

    @staticmethod
    def from_mask(dense: Float[Tensor, "batch feature"], mask: Tensor) -> SparseFeatures:
        """Keep the entries of a dense tensor where ``mask`` holds."""
        rows, features = mask.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=dense.shape[0])
        return SparseFeatures(dense[rows, features], features, functional.pad(counts.cumsum(0), (1, 0)), dense.shape[1])


LayerFeatures: TypeAlias = SparseFeatures | Tensor
"""One layer's features: sparse, or a dense (batch, feature) tensor where sparsity would not pay."""


def dense(features: LayerFeatures) -> Float[Tensor, "batch feature"]:
    """The dense tensor of either form."""
    return features.dense() if isinstance(features, SparseFeatures) else features


def active_counts(features: LayerFeatures) -> Int[Tensor, "feature"]:
    """On how many tokens of the batch each feature is active (> 0)."""
    if isinstance(features, SparseFeatures):
        return torch.bincount(features.features[features.values > 0], minlength=features.n_features)
    return (features > 0).sum(0)


def weighted(features: LayerFeatures, weights: Float[Tensor, "feature"]) -> Tensor:
    """Each entry times its feature's weight: ``(active,)`` if sparse, ``(batch, feature)`` if dense."""
    if isinstance(features, SparseFeatures):
        return features.values * weights[features.features]
    return features * weights
