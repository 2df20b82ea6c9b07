"""Folded layers: the weights of one layer of a transcoder as other programs need them, without standardisation.

A layer is folded alone, so a transcoder that stays in its files is exported with one layer in memory at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.errors import CheckpointError
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.make import own_architecture
from open_clt.transcoders.nonlinearities import ReLU
from open_clt.transcoders.transcoder import Transcoder


class FoldedLayer(NamedTuple):
    """The weights of one layer, which read and write raw activations; stored types are kept if nothing is scaled."""

    W_enc: Float[Tensor, "feature d_model"]
    b_enc: Float[Tensor, "feature"]
    W_dec: Float[Tensor, "feature target d_model"]
    """What one unit of each feature writes; slice j goes to the layer that is j layers later."""
    b_dec: Float[Tensor, "d_model"]
    W_skip: Float[Tensor, "d_model d_model"] | None
    """Applied as ``x @ W_skip.T``; None if there is no skip path."""
    threshold: Float[Tensor, "feature"] | None
    """Thresholds of the pre-activations; None for ReLU and for nonlinearities that rank features."""

    __repr__ = short_repr


def exportable(transcoder: Transcoder, layout: str) -> CrossLayerTranscoder:
    """The same transcoder; raises CheckpointError unless it is a plain cross-layer transcoder of OpenCLT."""
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise CheckpointError(
            f"A {type(transcoder).__name__} cannot be written in the layout {layout}, which holds decoders only; save "
            "it in OpenCLT's layout."
        )
    if (own := own_architecture(transcoder)) is not None:
        raise CheckpointError(
            f"A {own.class_path} cannot be written in the layout {layout}, which holds plain transcoders only; save it "
            "in OpenCLT's layout."
        )
    return transcoder


@torch.no_grad()
def folded_layer(transcoder: CrossLayerTranscoder, layer: int, place: Path) -> FoldedLayer:
    """Fold the standardisation into the weights of one layer; raises CheckpointError if one is not finite.

    ``place`` is where the weights are written to, for the message.
    """
    stats, reach = transcoder.standardisation, transcoder.config.reach_of(layer)
    mean, scale = stats.input_mean[layer], stats.input_scale[layer]
    W_enc = _encoder(transcoder, layer)
    b_enc, b_dec = transcoder.b_enc[layer].detach(), transcoder.b_dec[layer].detach()
    if scale != 1:
        W_enc = W_enc.to(b_enc) / scale
    if bool(mean.any()):
        b_enc = b_enc - W_enc.to(b_enc) @ mean
    W_dec = _decoder(transcoder, layer)
    targets = stats.target_scale[layer : layer + reach]
    if not bool((targets == 1).all()):
        W_dec = W_dec.to(b_dec) * targets[:, None]
    b_dec = b_dec * stats.target_scale[layer] + stats.target_mean[layer]
    W_skip = None
    if transcoder.W_skip is not None:
        W_skip = transcoder.W_skip[layer].detach() * (stats.target_scale[layer] / scale)
        b_dec = b_dec - W_skip @ mean
    nonlinearity = transcoder.nonlinearity
    threshold = None if isinstance(nonlinearity, ReLU) else nonlinearity.threshold(layer)
    folded = FoldedLayer(W_enc, b_enc, W_dec, b_dec, W_skip, threshold)
    for name, tensor in folded._asdict().items():
        if tensor is not None:
            check_finite(tensor, f"The weight {name!r} of layer {layer} for {place}", error=CheckpointError)
    return folded


def _encoder(transcoder: CrossLayerTranscoder, layer: int) -> Tensor:
    if transcoder.stored is None:
        return transcoder.W_enc[layer].detach()
    return transcoder.stored.encoders[layer].read()


def _decoder(transcoder: CrossLayerTranscoder, layer: int) -> Tensor:
    if transcoder.stored is None:
        return transcoder.W_dec[layer].detach()
    return torch.cat([part.read() for part in transcoder.stored.decoders[layer]], dim=1)
