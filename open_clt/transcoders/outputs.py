"""Outputs: the records that a transcoder's forward passes return."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import LayerFeatures


class TranscoderOutput(NamedTuple):
    """The result of a forward pass: the features of every layer, and the reconstruction of every target."""

    features: list[LayerFeatures]
    reconstruction: Float[Tensor, "batch layer d_model"]

    __repr__ = short_repr


class TranscoderErrors(NamedTuple):
    """The result of a forward pass in training: everything that losses are computed from."""

    features: list[LayerFeatures]
    errors: list[Float[Tensor, "batch layer d_model"]]
    """Standardised targets minus reconstruction. A Matryoshka transcoder has one such tensor for each prefix, and then
    the one of all features."""
    decoder_norms: Float[Tensor, "layer feature"] | None
    """Decoder norm of each feature, or None if the caller did not ask for the norms."""

    __repr__ = short_repr
