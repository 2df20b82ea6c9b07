"""Records and backgrounds of features whose rule is known, made of drawn tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from open_clt.features.labelling.background import Background
from open_clt.features.records import ExampleGroup, FeatureExample, FeatureRecord, TokenEffect
from open_clt.transcoders.feature import Feature

WORDS = [" the", " cat", " sat", " of", " on", " Texas", " Dallas", " 12", ",", "ing", " capital", " is"]
LENGTH = 16
Fires = Callable[[Sequence[str], int], bool]
"""Whether a made feature is active at a position of some tokens."""


def drawn_windows(count: int, seed: int) -> list[tuple[str, ...]]:
    """Windows of tokens; the frequent ones come often, the rare ones in few windows."""
    rng = random.Random(seed)
    weights = [8, 6, 6, 2, 5, 0.3, 0.3, 0.3, 2, 0.4, 0.3, 2]
    return [tuple(rng.choices(WORDS, weights, k=LENGTH)) for _ in range(count)]


def background_for(features: Sequence[tuple[Feature, Fires]], count: int = 400) -> Background:
    """A background in which the features are active where their functions say so."""
    windows = drawn_windows(count, seed=1)
    active = [
        (row, *feature)
        for row, window in enumerate(windows)
        for feature, fires in features
        if any(fires(window, position) for position in range(len(window)))
    ]
    return Background(windows, torch.tensor(active or [(0, 9, 9)]))


def record_for(feature: Feature, fires: Fires, *, raises: Sequence[str] = (), n_groups: int = 8) -> FeatureRecord:
    """A record whose examples are windows in which the feature is active, in groups of four."""
    examples: list[FeatureExample] = []
    for window in drawn_windows(4000, seed=2):
        positions = [position for position in range(len(window)) if fires(window, position)]
        if positions and len(examples) < 4 * n_groups:
            activations = torch.zeros(len(window))
            activations[positions] = 1.0
            examples.append(FeatureExample(window, activations, positions[0]))
    groups = [ExampleGroup(f"peaks {row}", tuple(examples[row::n_groups])) for row in range(n_groups)]
    effects = tuple(TokenEffect(token, 1.0) for token in raises)
    return FeatureRecord(feature, 0.01, 1.0, tuple(examples[:4]), effects, (), groups=tuple(groups))
