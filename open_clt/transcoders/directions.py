"""Decoder directions: the vectors that features write into the residual stream per unit of activation."""

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
def decoder_directions(transcoder: Transcoder, chosen: Sequence[Feature]) -> Float[Tensor, "chosen d_model"]:
    """What each chosen feature writes per unit of activation, in raw units, summed over the layers it writes to.

    Raises ConfigError for a mixture of linear transforms, whose features write what depends on the input.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise ConfigError("A feature of a MOLT has no fixed decoder direction; use a transcoder with decoders.")
    directions = torch.zeros(len(chosen), transcoder.config.d_model)
    for layer in {feature.layer for feature in chosen}:
        rows = [row for row, feature in enumerate(chosen) if feature.layer == layer]
        indices = torch.tensor([chosen[row].index for row in rows], device=transcoder.device)
        directions[rows] = transcoder.decoders(layer, indices).sum(1).float().cpu()
    return directions
