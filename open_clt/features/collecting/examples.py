"""Tables of examples: for each feature, the contexts with the highest keys, with a window of tokens around the peak.

The key of a context decides which contexts stay: if it is the size of the peak, they are those with the largest
activations; if it is a hash, they are a random sample. Keys do not depend on the order of the contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.features.collecting.peaks import Entries, Peaks
from open_clt.short_repr import short_repr

_EMPTY, _PADDING = -1, -2
_BEFORE = 3 / 4
"""Share of a window that lies before the peak, if the context has room there."""


class Windows(NamedTuple):
    """Parts of contexts around peaks."""

    values: Float[Tensor, "example"]
    """Activation at the peak."""
    peaks: Int[Tensor, "example"]
    """Position of the peak in the window."""
    tokens: Int[Tensor, "example window"]
    """Token at each position."""
    shares: Float[Tensor, "example window"]
    """Activation at each position, as a share of the peak's."""

    __repr__ = short_repr


@final
class ExampleTable:
    """The examples with the highest keys of each feature: at most ``n_slots`` of them, in any order."""

    def __init__(self, n_features: int, n_slots: int, window: int) -> None:
        self.keys = torch.full((n_features, n_slots), _EMPTY)
        self.windows = Windows(
            values=torch.zeros(n_features, n_slots),
            peaks=torch.zeros(n_features, n_slots, dtype=torch.int16),
            tokens=torch.zeros(n_features, n_slots, window, dtype=torch.int32),
            shares=torch.zeros(n_features, n_slots, window, dtype=torch.float16),
        )
        self._lowest = torch.full((n_features,), _EMPTY)

    def offer(
        self, features: Int[Tensor, "pair"], keys: Int[Tensor, "pair"], windows: Callable[[Tensor], Windows]
    ) -> None:
        """Take the pairs whose keys are among the highest of their features.

        ``features`` is sorted, and keys are not negative. ``windows`` returns the windows of pairs with given indices.
        """
        candidates = (keys > self._lowest[features]).nonzero()[:, 0]
        if not len(candidates):
            return
        rows, row_of, counts = torch.unique_consecutive(features[candidates], return_inverse=True, return_counts=True)
        rank = torch.arange(len(candidates)) - (counts.cumsum(0) - counts)[row_of]
        offered = torch.full((len(rows), int(counts.max())), _PADDING)
        offered[row_of, rank] = keys[candidates]
        pairs = torch.zeros_like(offered)
        pairs[row_of, rank] = candidates
        n_slots = self.keys.shape[1]
        every = torch.cat([self.keys[rows], offered], dim=1)
        kept = torch.zeros(every.shape, dtype=torch.bool).scatter(1, every.topk(n_slots, dim=1).indices, True)
        # Each row has as many slots to fill as pairs to fill them with, so both lists name the rows in the same order.
        row, slot = (~kept[:, :n_slots]).nonzero().unbind(1)
        won = kept[:, n_slots:]
        self.keys[rows[row], slot] = offered[won]
        for column, values in zip(self.windows, windows(pairs[won]), strict=True):
            column[rows[row], slot] = values.to(column.dtype)
        self._lowest[rows] = self.keys[rows].amin(1)

    @property
    def window(self) -> int:
        """Number of tokens in an example."""
        return self.windows.tokens.shape[2]

    def merge(self, tensors: Sequence[Tensor]) -> None:
        """Take the examples of another table whose keys are among the highest."""
        keys, *windows = tensors
        joined_keys = torch.cat([self.keys, keys], dim=1)
        top = joined_keys.topk(self.keys.shape[1], dim=1).indices
        self.keys = joined_keys.gather(1, top)
        for mine, theirs in zip(self.windows, windows, strict=True):
            joined = torch.cat([mine, theirs], dim=1)
            mine.copy_(joined.gather(1, top if joined.ndim == 2 else top[..., None].expand(-1, -1, joined.shape[2])))
        self._lowest = self.keys.amin(1)

    def of(self, feature: int) -> Windows:
        """The examples of a feature, highest key first."""
        order = self.keys[feature].argsort(descending=True)
        order = order[self.keys[feature][order] != _EMPTY]
        return Windows(*(column[feature][order] for column in self.windows))

    def tensors(self) -> list[Tensor]:
        """The tensors that ``merge`` takes."""
        return [self.keys, *self.windows]


def cut_windows(
    entries: Entries, peaks: Peaks, contexts: Int[Tensor, "context position"], size: int, pairs: Int[Tensor, "example"]
) -> Windows:
    """The parts of contexts, ``size`` tokens long, around the peaks of some pairs."""
    positions, values = peaks.positions[pairs], peaks.values[pairs]
    starts = (positions - int(_BEFORE * size)).clamp(min=0, max=contexts.shape[1] - size)
    columns = starts[:, None] + torch.arange(size)
    first, counts = peaks.offsets[pairs], peaks.offsets.diff()[pairs]
    example = torch.repeat_interleave(torch.arange(len(pairs)), counts)
    entry = torch.arange(len(example)) + (first - (counts.cumsum(0) - counts))[example]
    column = entries.positions[entry] - starts[example]
    inside = (column >= 0) & (column < size)
    shares = torch.zeros(len(pairs), size)
    shares[example[inside], column[inside]] = (entries.values[entry] / values[example])[inside]
    return Windows(
        values=values,
        peaks=positions - starts,
        tokens=contexts[peaks.contexts[pairs][:, None], columns],
        shares=shares,
    )


def size_keys(peaks: Peaks, context_numbers: Int[Tensor, "pair"]) -> Int[Tensor, "pair"]:
    """Keys in the order of the sizes of peaks; of equal peaks, the one in the earlier context has the higher key."""
    return (peaks.values.abs().view(torch.int32).long() << 32) + (2**31 - 1 - context_numbers)


def random_keys(features: Int[Tensor, "pair"], context_numbers: Int[Tensor, "pair"]) -> Int[Tensor, "pair"]:
    """Keys in a random order, which depends on feature and context alone (the mixing of MurmurHash3)."""
    mixed = features * 0x632BE59BD9B4E019 + context_numbers * 0x1E3779B97F4A7C15
    for factor in (-0x00AE502812AA7333, -0x3B314601E57A13AD):
        mixed = (mixed ^ ((mixed >> 33) & (2**31 - 1))) * factor
    return (mixed ^ ((mixed >> 33) & (2**31 - 1))) & (2**63 - 1)
