"""What every transcoder is: an encoder of each layer's MLP input, and a decoder into the MLP outputs of all layers.

Axes, everywhere in this package: ``batch`` (tokens; a transcoder knows no positions), ``position``, ``layer``,
``source`` and ``target`` (layers, in a decoder), ``feature`` (within a layer), ``d_model``.
A transcoder reads and writes raw activations; how it standardises them inside is its own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_clt.config import TranscoderConfig
from open_clt.models.sparse import LayerFeatures, SparseFeatures


class TranscoderOutput(NamedTuple):
    """One forward pass: the features of every layer, and the reconstruction of every MLP output."""

    features: list[LayerFeatures]
    reconstruction: Float[Tensor, "batch layer d_model"]


class Transcoder(nn.Module, ABC):
    """Sparse features that stand for a model's MLPs."""

    config: TranscoderConfig

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.parameters()).dtype

    @abstractmethod
    def encode_layer(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> SparseFeatures:
        """Features of one layer, from that layer's raw inputs."""

    @abstractmethod
    def write(self, features: LayerFeatures, source: int) -> Float[Tensor, "batch target d_model"]:
        """What features of layer ``source`` write, raw: slice ``j`` goes to layer ``source + j``. No bias."""

    @abstractmethod
    def offset(self, inputs: Float[Tensor, "batch d_model"], layer: int) -> Float[Tensor, "batch d_model"]:
        """What reaches layer ``layer`` without features: its decoder bias, and the skip path of its raw inputs."""

    @abstractmethod
    def forward(self, inputs: Float[Tensor, "batch layer d_model"]) -> TranscoderOutput:
        """Encode and decode all layers of a batch of tokens."""

    @abstractmethod
    def decoder_norms(self) -> Float[Tensor, "layer feature"]:
        """Norm of each feature's decoder, over all its targets together, in standardised units."""

    def encode(self, inputs: Float[Tensor, "batch layer d_model"]) -> list[SparseFeatures]:
        """Features of all layers."""
        return [self.encode_layer(inputs[:, layer], layer) for layer in range(inputs.shape[1])]

    def decode(
        self, features: Sequence[LayerFeatures], inputs: Float[Tensor, "batch layer d_model"]
    ) -> Float[Tensor, "batch layer d_model"]:
        """Sum what every source layer writes to every target within its reach."""
        offsets = [self.offset(inputs[:, layer], layer) for layer in range(inputs.shape[1])]
        reconstruction = torch.stack(offsets, dim=1)
        for source, active in enumerate(features):
            written = self.write(active, source)
            reconstruction[:, source : source + written.shape[1]] += written
        return reconstruction
