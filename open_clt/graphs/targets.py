"""Targets: what a graph explains, as a sum type.

A graph keeps its targets in resolved form: tokens are ids, and positions count from the prompt's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class SalientLogits:
    """The likeliest tokens: as few as hold ``probability``, and ``max_count`` at most."""

    max_count: int = 10
    probability: float = 0.95
    position: int = -1
    """Where the prediction is made; negative counts from the end."""
    kind: Literal["salient_logits"] = "salient_logits"


@final
@dataclass(frozen=True, kw_only=True)
class TokenLogits:
    """Given tokens, as texts (``" Paris"``, leading space and all) or ids."""

    tokens: tuple[str | int, ...]
    position: int = -1
    kind: Literal["token_logits"] = "token_logits"


@final
@dataclass(frozen=True, kw_only=True)
class LogitDifference:
    """The logit of one token less that of another."""

    positive: str | int
    negative: str | int
    position: int = -1
    kind: Literal["logit_difference"] = "logit_difference"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """Any direction in the space after the final norm, such as a probe: ``vector . final_norm(stream)``."""

    vector: Float[Tensor, "d_model"]
    name: str = "direction"
    position: int = -1
    kind: Literal["direction"] = "direction"

    def __eq__(self, other: object) -> bool:
        """Whether two directions have the same name, position and vector."""
        if not isinstance(other, Direction):
            return NotImplemented
        same = (self.name, self.position) == (other.name, other.position)
        return same and torch.equal(self.vector, other.vector)

    def __hash__(self) -> int:
        return hash((self.name, self.position))


@final
@dataclass(frozen=True, kw_only=True)
class FeaturePreactivation:
    """A feature's pre-activation, less its encoder bias; the feature need not be active."""

    layer: int
    feature: int
    position: int = -1
    kind: Literal["feature"] = "feature"


Target: TypeAlias = SalientLogits | TokenLogits | LogitDifference | Direction | FeaturePreactivation
