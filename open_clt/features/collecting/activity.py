"""Sketches of activity: which features are active on the same tokens, in a fixed number of numbers per feature.

The activity of a feature is 1 at the tokens on which it is active, and 0 elsewhere. Its projection to random directions
of ones and minus ones has the same length and the same angles to others, up to about ``1 / sqrt(directions)``
(Achlioptas, 2003). Sums of ones are exact, so they do not depend on the order of the contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

_DIRECTIONS = 256
_NOISE = 3 / _DIRECTIONS**0.5
"""Cosines below three standard deviations of the projection's error are not told from 0."""


@final
class ActivitySketch:
    """Random projections of the activity of features over tokens."""

    def __init__(self, n_features: int) -> None:
        self.sums = torch.zeros(n_features, _DIRECTIONS)

    def add(
        self,
        first_feature: int,
        tokens: Int[Tensor, "entry"],
        offsets: Int[Tensor, "feature_plus_1"],
        signs: Float[Tensor, "token direction"],
    ) -> None:
        """Add the activity of features from ``first_feature`` on; ``offsets`` gives each one's part of ``tokens``."""
        sums = functional.embedding_bag(tokens, signs, offsets, mode="sum", include_last_offset=True)
        self.sums[first_feature : first_feature + len(sums)] += sums

    def merge(self, tensors: Sequence[Tensor]) -> None:
        """Add the activity on other tokens."""
        self.sums += tensors[0]

    def cosines(
        self, features: Int[Tensor, "chosen"], counts: Int[Tensor, "feature"]
    ) -> Float[Tensor, "chosen feature"]:
        """Cosines of the activity of some features with that of all; 0 where it cannot be told from 0.

        ``counts`` is the number of tokens on which each feature is active.
        """
        lengths = counts.float().sqrt().clamp(min=1)
        scaled = self.sums / lengths[:, None]
        cosines = (scaled[features] @ scaled.T / _DIRECTIONS).clamp(max=1)
        return cosines.masked_fill(cosines < _NOISE, 0)

    def tensors(self) -> list[Tensor]:
        """The tensors that ``merge`` takes."""
        return [self.sums]


def random_signs(n_tokens: int, seed: int) -> Float[Tensor, "token direction"]:
    """Ones and minus ones for the tokens of a batch; ``seed`` is different for each batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n_tokens, _DIRECTIONS), generator=generator).float() * 2 - 1
