"""Decoder directions: the vectors that features write into the residual stream per unit of activation; their norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.progress import report_progress
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_AT_ONCE = 4096
"""Number of features whose decoders are in memory at once."""


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


@torch.no_grad()
def decoder_norms_between_layers(transcoder: Transcoder) -> Float[Tensor, "source target"]:
    """Mean norm of the decoders of each source layer to each target layer, in raw units; 0 where it has none.

    Raises ConfigError for a mixture of linear transforms, whose features write what depends on the input.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise ConfigError("A feature of a MOLT has no decoders; use a transcoder with decoders.")
    config = transcoder.config
    norms = torch.zeros(config.n_layers, config.n_layers)
    for source in range(config.n_layers):
        sums = torch.zeros(0, dtype=torch.double)
        for features in torch.arange(config.n_features, device=transcoder.device).split(_AT_ONCE):
            report_progress("measuring decoders", source, config.n_layers)
            part = transcoder.decoders(source, features).double().norm(dim=-1).sum(0).cpu()
            sums = part if not len(sums) else sums + part
        norms[source, source : source + len(sums)] = (sums / config.n_features).float()
    return norms
