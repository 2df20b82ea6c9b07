"""Nonlinearities, which turn pre-activations into features: ReLU, JumpReLU, fixed JumpReLU, TopK, BatchTopK.

A nonlinearity works in two steps, so that gradients are computed for active entries only:

    select   looks at dense pre-activations, without gradients, and selects the entries that may be active;
    values   turns the pre-activations of these entries into feature values, differentiably.

Each layer is selected from alone, except by TopK and BatchTopK across layers, which need all layers (``couple``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from open_clt.config import (
    BatchTopKConfig,
    FixedJumpReLUConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.transcoders.nonlinearities.across_layers import TopKAcrossLayers, select_above
from open_clt.transcoders.nonlinearities.base import Nonlinearity, all_candidates
from open_clt.transcoders.nonlinearities.ranks import BatchTopK, Largest, TopK, annealed_k, largest
from open_clt.transcoders.nonlinearities.thresholds import FixedJumpReLU, JumpReLU, ReLU

__all__ = [
    "KINDS",
    "BatchTopK",
    "FixedJumpReLU",
    "JumpReLU",
    "Largest",
    "Nonlinearity",
    "ReLU",
    "TopK",
    "TopKAcrossLayers",
    "all_candidates",
    "annealed_k",
    "largest",
    "make_nonlinearity",
    "select_above",
]


def _topk(config: TopKConfig, n_layers: int, n_features: int) -> Nonlinearity:
    return (TopKAcrossLayers if config.across_layers else TopK)(config, n_layers, n_features)


KINDS: dict[str, Callable[[Any, int, int], Nonlinearity]] = {
    ReLUConfig.kind: ReLU,
    JumpReLUConfig.kind: JumpReLU,
    FixedJumpReLUConfig.kind: FixedJumpReLU,
    TopKConfig.kind: _topk,
    BatchTopKConfig.kind: BatchTopK,
}
"""Every nonlinearity, by the ``kind`` of its config. A new one is a line here and in ``NonlinearityConfig``."""


def make_nonlinearity(config: NonlinearityConfig, n_layers: int, n_features: int) -> Nonlinearity:
    """Build the nonlinearity that a config describes."""
    return KINDS[config.kind](config, n_layers, n_features)
