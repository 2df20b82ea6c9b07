"""Counts of tokens: on which tokens each feature is active, in a fixed number of buckets per feature.

A token belongs to one bucket in each of two rows, and its count is at most the smaller of the two buckets' counts (the
count-min sketch of Cormode and Muthukrishnan, 2005). With 256 buckets, the share of a token is too high by less than
1 % for most features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BUCKETS = 256
_FACTORS = (0x9E3779B1, 0x85EBCA77)


@final
class TokenCounts:
    """Counts of the tokens on which features are active."""

    def __init__(self, n_features: int) -> None:
        self.counts = torch.zeros(n_features, len(_FACTORS), _BUCKETS, dtype=torch.int32)

    def add(self, features: Int[Tensor, "entry"], tokens: Int[Tensor, "entry"]) -> None:
        """Count the tokens on which features are active."""
        ones = torch.ones(1, dtype=torch.int32).expand(len(tokens))
        for row, buckets in enumerate(_buckets(tokens)):
            self.counts.view(-1).index_add_(0, (features * len(_FACTORS) + row) * _BUCKETS + buckets, ones)

    def merge(self, tensors: Sequence[Tensor]) -> None:
        """Add the counts of other activations of the same features."""
        self.counts += tensors[0]

    def shares(self, feature: int, tokens: Int[Tensor, "token"]) -> Float[Tensor, "token"]:
        """Share of the feature's activations that fall on each of some tokens; too high where buckets are shared."""
        rows = self.counts[feature]
        counts = torch.stack([row[buckets] for row, buckets in zip(rows, _buckets(tokens), strict=True)]).amin(0)
        return counts / rows[0].sum().clamp(min=1)

    def tensors(self) -> list[Tensor]:
        """The tensors that ``merge`` takes."""
        return [self.counts]


def _buckets(tokens: Int[Tensor, "token"]) -> list[Int[Tensor, "token"]]:
    """The bucket of each token in each row."""
    return [(tokens.long() * factor & 0xFFFFFFFF) >> 24 for factor in _FACTORS]
