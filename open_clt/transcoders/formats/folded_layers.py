"""Folded layers: the weights of a transcoder layer by layer, as layouts without a standardisation hold them.

The standardisation is folded into the weights, in blocks of features. So a transcoder whose encoders and decoders stay
in their files is written to other files with little memory. Numbers that folding does not change keep the type in which
they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from open_clt.config import TranscoderConfig
from open_clt.errors import CheckpointError
from open_clt.files import TensorBlocks
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.make import own_architecture
from open_clt.transcoders.nonlinearities import ReLU
from open_clt.transcoders.transcoder import Transcoder

_BLOCK_NUMBERS = 2**22
"""Number of weights that are in memory at once (16 MB in float32)."""


class FoldedLayer(NamedTuple):
    """The weights of one layer, which read and write raw activations."""

    encoder: TensorBlocks
    """(feature, d_model)"""
    decoder: TensorBlocks
    """(feature, target, d_model)"""
    b_enc: Float[Tensor, "feature"]
    b_dec: Float[Tensor, "d_model"]
    threshold: Float[Tensor, "feature"] | None
    """Thresholds of JumpReLU, or of BatchTopK at inference; None for ReLU and TopK."""
    skip: Float[Tensor, "d_model d_model"] | None
    """The skip path, applied as ``x @ skip.T``."""

    __repr__ = short_repr


def plain_transcoder(transcoder: Transcoder, layout: str) -> CrossLayerTranscoder:
    """The transcoder itself; raises CheckpointError unless it is of the one kind that layouts of other programs hold.

    ``layout`` is the name of the layout in the message.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise CheckpointError(
            f"A {type(transcoder).__name__} cannot be written in {layout}, which holds decoders only; save it in "
            "OpenCLT's layout."
        )
    if (own := own_architecture(transcoder)) is not None:
        raise CheckpointError(
            f"A {own.class_path} cannot be written in {layout}, which holds plain cross-layer transcoders only; save "
            "it in OpenCLT's layout."
        )
    check_all_layers(transcoder.config, layout)
    return transcoder


def check_all_layers(config: TranscoderConfig, layout: str) -> None:
    """Raise CheckpointError for a transcoder of some layers, which layouts of other programs do not hold."""
    if config.layers is not None:
        raise CheckpointError(
            f"A transcoder of the layers {config.layer_words} cannot be written in {layout}, which states all layers "
            "of a language model; save it in OpenCLT's layout."
        )


@torch.no_grad()
def folded_layer(transcoder: CrossLayerTranscoder, layer: int, place: Path, *, n_targets: int) -> FoldedLayer:
    """The weights of a layer, with the standardisation folded into them.

    Decoders are padded to ``n_targets`` with zeros. Raises CheckpointError, which names the layer and ``place``, if a
    number is not finite: one of an encoder or a decoder once its block is made.
    """
    stats, width, d_model = transcoder.standardisation, transcoder.config.n_features, transcoder.config.d_model
    scale = stats.input_scale[layer]
    target_scales = stats.target_scale[layer : layer + transcoder.config.reach_of(layer)]

    def encoder() -> Iterator[Tensor]:
        for rows in encoder_blocks(transcoder, layer):
            yield checked("W_enc", rows if float(scale) == 1 else rows.to(scale) / scale)

    def decoder() -> Iterator[Tensor]:
        for rows in decoder_blocks(transcoder, layer):
            rows = rows if bool((target_scales == 1).all()) else rows.to(scale) * target_scales[:, None]
            yield functional.pad(checked("W_dec", rows), (0, 0, 0, n_targets - rows.shape[1]))

    def checked(name: str, tensor: Tensor) -> Tensor:
        check_finite(tensor, f"The tensor {name!r} of layer {layer} in {place}", error=CheckpointError)
        return tensor

    b_enc, b_dec = transcoder.b_enc[layer].clone(), transcoder.b_dec[layer] * stats.target_scale[layer]
    b_dec += stats.target_mean[layer]
    if bool((mean := stats.input_mean[layer]).any()):
        for block, rows in zip(_blocks(width, d_model), encoder(), strict=True):
            b_enc[block] -= rows.to(mean) @ mean
    nonlinearity = transcoder.nonlinearity
    threshold = None if isinstance(nonlinearity, ReLU) else nonlinearity.threshold(layer)
    skip = None
    if transcoder.W_skip is not None:
        skip = checked("W_skip", transcoder.W_skip[layer] * (stats.target_scale[layer] / scale))
        b_dec -= skip @ mean
    return FoldedLayer(
        encoder=TensorBlocks((width, d_model), next(encoder()).dtype, encoder),
        decoder=TensorBlocks((width, n_targets, d_model), next(decoder()).dtype, decoder),
        b_enc=checked("b_enc", b_enc),
        b_dec=checked("b_dec", b_dec),
        threshold=None if threshold is None else checked("threshold", threshold),
        skip=skip,
    )


def _blocks(n_features: int, row_numbers: int) -> Iterator[slice]:
    """Ranges of features that are in memory at once."""
    step = max(1, _BLOCK_NUMBERS // row_numbers)
    for start in range(0, n_features, step):
        yield slice(start, min(start + step, n_features))


def encoder_blocks(transcoder: CrossLayerTranscoder, layer: int) -> Iterator[Float[Tensor, "block d_model"]]:
    """The encoder of a layer block by block, in the type in which it is stored."""
    for block in _blocks(transcoder.config.n_features, transcoder.config.d_model):
        stored = transcoder.stored
        yield transcoder.W_enc[layer, block] if stored is None else stored.encoders[layer][block].read()


def decoder_blocks(transcoder: CrossLayerTranscoder, source: int) -> Iterator[Float[Tensor, "block target d_model"]]:
    """The decoder of a layer block by block, in the type in which it is stored."""
    config, stored = transcoder.config, transcoder.stored
    for block in _blocks(config.n_features, config.reach_of(source) * config.d_model):
        if stored is None:
            yield transcoder.W_dec[source][block]
        else:
            yield torch.cat([part[block].read() for part in stored.decoders[source]], dim=1)
