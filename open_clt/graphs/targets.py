"""Targets: the outputs that a graph explains, with a class for each kind.

A graph stores its targets in resolved form: tokens are ids, and positions count from the prompt's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr


@final
@dataclass(frozen=True, kw_only=True)
class SalientLogits(CheckedConfig):
    """The logits of the likeliest tokens: as few as hold ``probability`` together, and at most ``max_count``."""

    max_count: int = 10
    """Largest number of tokens."""
    probability: float = 0.95
    """Probability that the tokens hold together, if ``max_count`` tokens are enough for it."""
    position: int = -1
    """Position of the prediction; negative positions count from the prompt's end."""
    kind: Literal["salient_logits"] = "salient_logits"
    """Name of this kind of target in files."""


@final
@dataclass(frozen=True, kw_only=True)
class TokenLogits(CheckedConfig):
    """The logits of given tokens."""

    tokens: tuple[str | int, ...]
    """Tokens, as texts with their leading space (``" Paris"``) or as ids."""
    position: int = -1
    """Position of the prediction; negative positions count from the prompt's end."""
    kind: Literal["token_logits"] = "token_logits"
    """Name of this kind of target in files."""


@final
@dataclass(frozen=True, kw_only=True)
class LogitDifference(CheckedConfig):
    """The logit of one token less the logit of another."""

    positive: str | int
    """Token whose logit counts positively, as a text with its leading space or as an id."""
    negative: str | int
    """Token whose logit is subtracted, as a text with its leading space or as an id."""
    position: int = -1
    """Position of the prediction; negative positions count from the prompt's end."""
    kind: Literal["logit_difference"] = "logit_difference"
    """Name of this kind of target in files."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Direction(CheckedConfig):
    """A direction in the space after the final norm, such as a probe: ``vector . final_norm(stream)``."""

    vector: Float[Tensor, "d_model"]
    """The direction."""
    name: str = "direction"
    """Name of the target in the graph."""
    position: int = -1
    """Position of the residual stream; negative positions count from the prompt's end."""
    kind: Literal["direction"] = "direction"
    """Name of this kind of target in files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.vector, f"The vector of the direction {self.name!r}", error=ConfigError)

    def __eq__(self, other: object) -> bool:
        """Whether two directions have the same name, position and vector."""
        if not isinstance(other, Direction):
            return NotImplemented
        same = (self.name, self.position) == (other.name, other.position)
        return same and torch.equal(self.vector, other.vector)

    def __hash__(self) -> int:
        return hash((self.name, self.position))

    __repr__ = short_repr


@final
@dataclass(frozen=True, kw_only=True)
class FeaturePreactivation(CheckedConfig):
    """The pre-activation of a feature, less its encoder bias; the feature need not be active."""

    layer: int
    """Layer of the feature."""
    feature: int
    """Index of the feature in its layer."""
    position: int = -1
    """Position of the pre-activation; negative positions count from the prompt's end."""
    kind: Literal["feature"] = "feature"
    """Name of this kind of target in files."""


Target: TypeAlias = SalientLogits | TokenLogits | LogitDifference | Direction | FeaturePreactivation
"""An output that a graph explains."""
