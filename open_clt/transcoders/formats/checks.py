"""Checks that several layouts of stored transcoders share."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.transcoders.transcoder import Transcoder


def check_all(transcoder: Transcoder, place: Path) -> None:
    """Raise CheckpointError unless all weights, thresholds and scales of a transcoder are legal; ``place`` has it."""
    files.check_weights(transcoder.state_dict(), place, transcoder.config.n_layers)
    check_numbers(transcoder, place)


def check_numbers(transcoder: Transcoder, place: Path) -> None:
    """Raise CheckpointError if a threshold or a scale is illegal in its type or in float32; names the layer."""
    for layer in range(transcoder.config.n_layers):
        check_thresholds(transcoder.nonlinearity.threshold(layer), layer, place)
    for name in ("input_scale", "target_scale"):
        scales = getattr(transcoder.standardisation, name).float()
        if not bool((scales > 0).all()):
            layer = int((scales > 0).int().argmin())
            raise CheckpointError(
                f"The {name} of layer {layer} in {place} is {float(scales[layer])}; it must be above 0."
            )


def check_thresholds(thresholds: Float[Tensor, "feature"] | None, layer: int, place: Path) -> None:
    """Raise CheckpointError if a threshold of a layer is negative or not finite; ``place`` holds the transcoder."""
    if thresholds is None:
        return
    legal = (thresholds >= 0) & thresholds.float().isfinite()
    if not bool(legal.all()):
        feature = int((~legal).int().argmax())
        raise CheckpointError(
            f"Feature {feature} of layer {layer} in {place} has the threshold {float(thresholds[feature])}; thresholds "
            "must be finite and at least 0."
        )


def log_thresholds(thresholds: Float[Tensor, "layer feature"], place: Path) -> Float[Tensor, "layer feature"]:
    """The logarithms of thresholds, which JumpReLU stores; raises CheckpointError if one is illegal."""
    for layer, of_layer in enumerate(thresholds):
        check_thresholds(of_layer, layer, place)
    # The logarithm of 0 is not finite; no pre-activation lies between 0 and the smallest positive number.
    return torch.where(thresholds == 0, torch.finfo(thresholds.dtype).tiny, thresholds).log()
