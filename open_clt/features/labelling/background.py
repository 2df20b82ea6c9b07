"""Background: windows of text with the features that are active in each, from which a label must tell a feature's own.

It is a bounded sample, so labels of all features of a large transcoder need no second pass over the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.config.arguments import Count, Seed, checked_arguments
from open_clt.features.firing import FeatureActivations, feature_activations
from open_clt.features.labelling.rules import LONGEST_WINDOW, Windows
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder


@final
class Background:
    """Windows of text, each with the features that are active in it; every second window is held out.

    ``active`` has one row (window, layer, feature) for each window and each feature that is active in it; a row may
    occur more than once.
    """

    def __init__(self, windows: Sequence[Sequence[str]], active: Int[Tensor, "entry 3"]) -> None:
        self._halves = Windows(windows[::2]), Windows(windows[1::2])
        rows, layers, features = (column.numpy() for column in active.long().cpu().unbind(1))
        self._n_features = int(features.max(initial=0)) + 1
        keys = layers * self._n_features + features
        order = np.argsort(keys, kind="stable")
        self._keys, self._rows = keys[order], rows[order]

    def __len__(self) -> int:
        return sum(map(len, self._halves))

    @property
    def length(self) -> int:
        """Number of tokens of the longest window."""
        return max(len(tokens) for half in self._halves for tokens in half.tokens)

    def windows(self, *, held_out: bool) -> Windows:
        """Half of the windows."""
        return self._halves[held_out]

    def inactive(self, feature: Feature, *, held_out: bool) -> npt.NDArray[np.bool_]:
        """Whether a feature is inactive at all positions of each window of a half."""
        inactive = np.ones(len(self), dtype=np.bool_)
        if feature.index < self._n_features:
            key = feature.layer * self._n_features + feature.index
            inactive[self._rows[slice(*np.searchsorted(self._keys, [key, key + 1]))]] = False
        return inactive[held_out::2]


@checked_arguments
def background_of(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    *,
    n_windows: Count = 400,
    window: Count = 32,
    seed: Seed = 0,
) -> Background:
    """Draw windows of ``window`` tokens, but at most 64, from contexts, and encode them.

    Each context that is drawn is encoded whole, and is cut into windows from a random token on. There are fewer than
    ``n_windows`` windows if the contexts do not hold more.
    """
    length = contexts.shape[1]
    window = min(window, LONGEST_WINDOW, length)
    generator = torch.Generator().manual_seed(seed)
    windows: list[tuple[str, ...]] = []
    active: list[Tensor] = []
    for row in torch.randperm(len(contexts), generator=generator).tolist():
        if len(windows) >= n_windows:
            break
        activations = feature_activations(model, transcoder, contexts[row])
        first = int(torch.randint(length % window + 1, (1,), generator=generator))
        starts = range(first, length - window + 1, window)[: n_windows - len(windows)]
        active.append(_entries(activations, first, window, len(windows), len(windows) + len(starts)))
        windows += [activations.tokens[start : start + window] for start in starts]
    return Background(windows, torch.cat(active) if active else torch.zeros(0, 3, dtype=torch.long))


def _entries(activations: FeatureActivations, first: int, window: int, begin: int, end: int) -> Int[Tensor, "entry 3"]:
    """The features of each of the windows ``begin`` to ``end``, which are cut from one context at token ``first``."""
    entries: list[Tensor] = []
    for layer, features in enumerate(activations.layers):
        of_window = begin + (features.rows - first).div(window, rounding_mode="floor")
        kept = (features.values != 0) & (of_window >= begin) & (of_window < end)
        columns = of_window[kept], torch.full_like(of_window[kept], layer), features.features[kept]
        entries.append(torch.stack(columns, dim=1).cpu().unique(dim=0))
    return torch.cat(entries)
