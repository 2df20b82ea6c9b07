"""Checks that several layouts of stored transcoders share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt import files
from open_clt.config import FixedJumpReLUConfig, JumpReLUConfig
from open_clt.errors import CheckpointError, ConfigError
from open_clt.short_repr import short_repr
from open_clt.transcoders.nonlinearities import FixedJumpReLU, Nonlinearity
from open_clt.transcoders.stored_weights import tensors_in_memory
from open_clt.transcoders.transcoder import Transcoder

THRESHOLDS = "nonlinearity.thresholds"
"""Name of the tensor of thresholds as numbers; JumpReLU with learned thresholds stores their logarithms instead."""

OFFSETS = "nonlinearity.offsets"
"""Name of the tensor of offsets of TopK."""

SMALLEST_SCALE = 1e-20
"""Smallest scale of a standardisation; inputs that are divided by a smaller one may be infinite."""


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ConfigError unless a transcoder can have weights of this type."""
    if dtype not in files.WEIGHT_TYPES:
        legal = ", ".join(map(str, files.WEIGHT_TYPES))
        raise ConfigError(f"dtype is {dtype}; it must be one of {legal}.")


def check_all(transcoder: Transcoder, place: Path) -> None:
    """Raise CheckpointError unless all weights, thresholds and scales of a transcoder are legal; ``place`` has it."""
    config = transcoder.config
    files.check_weights(tensors_in_memory(transcoder), place, config.n_layers, config.layers)
    check_numbers(transcoder, place)


def check_numbers(transcoder: Transcoder, place: Path) -> None:
    """Raise CheckpointError if a threshold or a scale is illegal in its type or in float32; names the layer."""
    for layer in range(transcoder.config.n_layers):
        _check_thresholds(transcoder.nonlinearity, layer, place)
    for name in ("input_scale", "target_scale"):
        scales = getattr(transcoder.standardisation, name).float()
        if not bool((scales >= SMALLEST_SCALE).all()):
            layer = int((scales >= SMALLEST_SCALE).int().argmin())
            raise CheckpointError(
                f"The {name} of layer {layer} in {place} is {float(scales[layer])}; it must be at least "
                f"{SMALLEST_SCALE}."
            )


class JumpReLUTensors(NamedTuple):
    """The kind of JumpReLU that has some thresholds, and its tensors."""

    config: JumpReLUConfig | FixedJumpReLUConfig
    tensors: dict[str, Tensor]

    __repr__ = short_repr


def jumprelu_tensors(thresholds: Float[Tensor, "layer feature"], place: Path) -> JumpReLUTensors:
    """The JumpReLU that has these thresholds, fixed if one is negative; raises CheckpointError if one is not finite."""
    for layer, of_layer in enumerate(thresholds):
        _check(of_layer, of_layer.float().isfinite(), f"of layer {layer} in {place}", "finite")
    if bool((thresholds < 0).any()):
        return JumpReLUTensors(FixedJumpReLUConfig(), {THRESHOLDS: thresholds})
    # The logarithm of 0 is not finite; no pre-activation lies between 0 and the smallest positive number.
    positive = torch.where(thresholds == 0, torch.finfo(thresholds.dtype).tiny, thresholds)
    return JumpReLUTensors(JumpReLUConfig(), {"nonlinearity.log_threshold": positive.log()})


def _check_thresholds(nonlinearity: Nonlinearity, layer: int, place: Path) -> None:
    thresholds = nonlinearity.threshold(layer)
    if thresholds is None:
        return
    legal, rule = thresholds.float().isfinite(), "finite"
    if not isinstance(nonlinearity, FixedJumpReLU):
        legal, rule = legal & (thresholds >= 0), "finite and at least 0"
    _check(thresholds, legal, f"of layer {layer} in {place}", rule)


def _check(thresholds: Float[Tensor, "feature"], legal: Bool[Tensor, "feature"], of_layer: str, rule: str) -> None:
    if not bool(legal.all()):
        feature = int((~legal).int().argmax())
        raise CheckpointError(
            f"Feature {feature} {of_layer} has the threshold {float(thresholds[feature])}; thresholds must be {rule}."
        )
