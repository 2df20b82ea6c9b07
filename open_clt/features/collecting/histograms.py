"""Histograms of activations: for each feature, counts in equal bins from 0 to a power of two.

When an activation lies above the range, the range doubles until it fits, and neighbouring bins are joined. The bins of
a range are parts of those of the next, so the counts do not depend on the order of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BINS = 256
_UNUSED = -(2**14)
"""Exponent of the range of a feature without activations."""


@final
class ActivationHistograms:
    """Counts of the sizes of activations; the range of feature ``f`` ends at ``2 ** exponents[f]``.

    Counts take memory from the first activation on.
    """

    def __init__(self, n_features: int) -> None:
        self._n_features = n_features
        self.counts: Int[Tensor, "feature bin"] = torch.zeros(0, _BINS, dtype=torch.int32)
        self.exponents: Int[Tensor, "feature"] = torch.full((n_features,), _UNUSED, dtype=torch.int32)

    def add(self, features: Int[Tensor, "entry"], sizes: Float[Tensor, "entry"]) -> None:
        """Count activations, whose sizes are positive."""
        self._begin()
        needed = torch.frexp(sizes).exponent  # size < 2 ** exponent
        highest = torch.full_like(self.exponents, _UNUSED).scatter_reduce(0, features, needed, "amax")
        self._widen(highest)
        bins = torch.ldexp(sizes.double() * _BINS, -self.exponents[features]).long()
        ones = torch.ones(1, dtype=torch.int32).expand(len(bins))
        self.counts.view(-1).index_add_(0, features * _BINS + bins, ones)

    def merge(self, tensors: Sequence[Tensor]) -> None:
        """Add the counts of other activations of the same features."""
        counts, exponents = tensors
        if len(counts) == 0:
            return
        other = ActivationHistograms(self._n_features)
        other.counts, other.exponents = counts, exponents
        self._begin()
        self._widen(exponents)
        other._widen(self.exponents)
        self.counts += other.counts

    def total(self, feature: int) -> int:
        """Number of activations of a feature."""
        return int(self.counts[feature].sum(dtype=torch.long)) if len(self.counts) else 0

    def cumulative(self, feature: int, limits: Float[Tensor, "limit"]) -> Float[Tensor, "limit"]:
        """Number of activations below each limit, spread evenly within bins."""
        counts = self.counts[feature].double()
        totals = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        place = (torch.ldexp(limits.double() * _BINS, -self.exponents[feature])).clamp(0, _BINS)
        low = place.long().clamp(max=_BINS - 1)
        return totals[low] + (place - low) * counts[low]

    def quantiles(self, feature: int, shares: Float[Tensor, "share"]) -> Float[Tensor, "share"]:
        """Sizes below which these shares of the activations lie."""
        counts = self.counts[feature].double()
        totals = counts.cumsum(0)
        wanted = shares.double() * totals[-1]
        low = torch.searchsorted(totals, wanted).clamp(max=_BINS - 1)
        inside = (wanted - (totals[low] - counts[low])) / counts[low].clamp(min=1)
        return torch.ldexp((low + inside.clamp(0, 1)) / _BINS, self.exponents[feature])

    def tensors(self) -> list[Tensor]:
        """The tensors that ``merge`` takes."""
        return [self.counts, self.exponents]

    def _begin(self) -> None:
        if len(self.counts) == 0:
            self.counts = torch.zeros(self._n_features, _BINS, dtype=torch.int32)

    def _widen(self, exponents: Int[Tensor, "feature"]) -> None:
        """Let the range of each feature end at ``2 ** exponents[feature]`` at least."""
        growth = exponents - self.exponents
        used = self.exponents != _UNUSED
        for doublings in growth[used & (growth > 0)].unique().tolist():
            rows = (used & (growth == doublings)).nonzero()[:, 0]
            joined = min(2**doublings, _BINS)
            counts = self.counts[rows].view(len(rows), _BINS // joined, joined).sum(2, dtype=torch.int32)
            self.counts[rows] = 0
            self.counts[rows, : _BINS // joined] = counts
        self.exponents = torch.maximum(self.exponents, exponents)
