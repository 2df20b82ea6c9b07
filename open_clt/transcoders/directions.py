"""Decoder directions: what features write into the residual stream, per unit of activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder


@torch.no_grad()
def decoder_directions(transcoder: Transcoder, chosen: Sequence[Feature]) -> Float[Tensor, "some d_model"]:
    """What each of some features writes per unit of activation, raw, summed over the layers it writes to.

    Raises ConfigError for a mixture of transforms, where that depends on the input.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise ConfigError("The transforms of a MOLT have no fixed directions; use a transcoder with decoders.")
    directions = torch.zeros(len(chosen), transcoder.config.d_model)
    for layer in {feature.layer for feature in chosen}:
        rows = [row for row, feature in enumerate(chosen) if feature.layer == layer]
        indices = torch.tensor([chosen[row].index for row in rows], device=transcoder.device)
        directions[rows] = transcoder.decoders(layer, indices).sum(1).float().cpu()
    return directions
