"""Sparse features: the features of a batch of tokens as a CSR matrix. ``products.py`` computes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.short_repr import short_repr

DENSE_ABOVE = 1 / 5
"""Share of active features above which dense products are faster than sparse ones.

Measured on one CPU core in fp32, for decoding with both gradients: sparse products are 20 times as fast at 0.2 %,
4 times at 3 %, twice at 12 %, and not faster at 25 %, for all shapes.
"""


class Transposed(NamedTuple):
    """Active entries sorted by feature: the features as a (feature, batch) CSR matrix."""

    order: Int[Tensor, "active"]
    features: Int[Tensor, "active"]
    rows: Int[Tensor, "active"]
    offsets: Int[Tensor, "features_plus_1"]

    __repr__ = short_repr


@final
class _Entries:
    """The indices of a batch's active entries, and tensors that follow from them, computed once for all values."""

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

    A value may be zero: a TopK entry whose pre-activation is negative, or a JumpReLU entry just below its threshold
    that needs a gradient. An entry of value zero is not an active feature.
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
        """Shape of the dense tensor: (batch, feature)."""
        return self.batch, self.n_features

    @property
    def density(self) -> float:
        """Share of the dense tensor's entries that are stored."""
        return self.values.shape[0] / max(1, self.batch * self.n_features)

    @property
    def rows(self) -> Int[Tensor, "active"]:
        """Index of each entry's token in the batch."""
        return self._entries.rows

    @property
    def transposed(self) -> Transposed:
        """The same entries sorted by feature."""
        return self._entries.transposed

    def with_values(self, values: Float[Tensor, "active"]) -> SparseFeatures:
        """The same entries with other values."""
        features = SparseFeatures(values, self.features, self.offsets, self.n_features)
        object.__setattr__(features, "_entries", self._entries)
        return features

    def kept(self, mask: Bool[Tensor, "active"]) -> SparseFeatures:
        """Only the entries where ``mask`` is true."""
        counts = torch.bincount(self.rows[mask], minlength=self.batch)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
        return SparseFeatures(self.values[mask], self.features[mask], offsets, self.n_features)

    def dense(self) -> Float[Tensor, "batch feature"]:
        """The dense tensor, differentiable in the values."""
        flat = self.values.new_zeros(self.batch * self.n_features)
        return flat.index_add(0, self.rows * self.n_features + self.features, self.values).view(self.shape)

    @staticmethod
    def from_dense(dense: Float[Tensor, "batch feature"]) -> SparseFeatures:
        """The non-zero entries of a dense tensor."""
        return SparseFeatures.from_mask(dense, dense != 0)

    @staticmethod
    def from_mask(dense: Float[Tensor, "batch feature"], mask: Tensor) -> SparseFeatures:
        """The entries of a dense tensor where ``mask`` is true."""
        rows, features = mask.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=dense.shape[0])
        return SparseFeatures(dense[rows, features], features, functional.pad(counts.cumsum(0), (1, 0)), dense.shape[1])

    __repr__ = short_repr


LayerFeatures: TypeAlias = SparseFeatures | Tensor
"""One layer's features: sparse, or a dense (batch, feature) tensor if too many of them are active."""


def dense(features: LayerFeatures) -> Float[Tensor, "batch feature"]:
    """The features as a dense tensor."""
    return features.dense() if isinstance(features, SparseFeatures) else features


def active_counts(features: LayerFeatures) -> Int[Tensor, "feature"]:
    """Number of tokens of the batch on which each feature is active: its value is not zero."""
    if isinstance(features, SparseFeatures):
        return torch.bincount(features.features[features.values != 0], minlength=features.n_features)
    return (features != 0).sum(0)


def weighted(features: LayerFeatures, weights: Float[Tensor, "feature"]) -> Tensor:
    """Each entry times its feature's weight, of shape ``(active,)`` if sparse and ``(batch, feature)`` if dense."""
    if isinstance(features, SparseFeatures):
        return features.values * weights[features.features]
    return features * weights
