"""Checks that several layouts of stored transcoders share."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from open_clt.errors import CheckpointError


def check_thresholds(thresholds: Float[Tensor, "feature"] | None, layer: int, place: Path) -> None:
    """Raise CheckpointError if a threshold of a layer is negative or not finite; ``place`` holds the transcoder."""
    if thresholds is None:
        return
    legal = (thresholds >= 0) & thresholds.isfinite()
    if not bool(legal.all()):
        feature = int((~legal).int().argmax())
        raise CheckpointError(
            f"Feature {feature} of layer {layer} in {place} has the threshold {float(thresholds[feature])}; thresholds "
            "must be finite and at least 0."
        )
