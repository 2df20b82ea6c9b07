"""Encoders of single layers: what is needed to compute the features of hidden states, which are never reconstructed.

pre = ((x - mean) / scale) @ W.T + bias
a   = pre where pre > threshold, and 0 elsewhere; for TopK: pre where pre - offset is among the k largest and positive
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import Table
from open_clt.finite import check_finite, is_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.nonlinearities import TopK, largest
from open_clt.transcoders.transcoder import Transcoder

_BLOCK_NUMBERS = 2**23
"""Number of weights of an encoder that are multiplied at once."""


class Strongest(NamedTuple):
    """The strongest active features of some tokens, and how many features are active."""

    activations: Float[Tensor, "token top_k"]
    """Activations, largest size first; 0 where fewer features are active."""
    indices: Int[Tensor, "token top_k"]
    """Features; those of activation 0 have no meaning."""
    n_active: Int[Tensor, "token"]
    """Number of active features of each token."""

    __repr__ = short_repr


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LayerEncoder:
    """The encoder of one layer."""

    weight: Tensor | Table
    """Encoder rows (feature, d_model), in memory or in a file from which they are read block by block."""
    bias: Float[Tensor, "feature"]
    thresholds: Float[Tensor, "feature"] | None = None
    """Pre-activations that features must exceed to be active; None for TopK."""
    k: int | None = None
    """Number of features that can be active for each token, for TopK."""
    keep_negative: bool = False
    """Whether negative pre-activations among the ``k`` largest are active."""
    offsets: Float[Tensor, "feature"] | None = None
    """Numbers that TopK subtracts from pre-activations before it ranks them; None stands for 0."""
    mean: Float[Tensor, "d_model"] | None = None
    """Vector that is subtracted from inputs; None stands for 0."""
    scale: Float[Tensor, ""] | None = None
    """Number by which inputs are then divided; None stands for 1."""

    @property
    def n_features(self) -> int:
        """Number of features of the layer."""
        return self.weight.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the inputs."""
        return self.weight.shape[1]

    def strongest(self, inputs: Float[Tensor, "token d_model"], top_k: int, least: float, layer: int) -> Strongest:
        """The ``top_k`` strongest features of each token whose activations are of size ``least`` or larger.

        Pre-activations are computed in blocks of features, so that few are in memory at once; the strongest of each
        block are candidates.
        """
        standard = self._standardised(inputs)
        if self.k is None:
            return _joined([self._above(standard, block, top_k, least, layer) for block in self._blocks()], top_k)
        largest_of_blocks = [self._largest(standard, block, layer) for block in self._blocks()]
        kept = _joined(largest_of_blocks, min(self.k, self.n_features), size=torch.Tensor.positive)
        values = kept.activations if self.keep_negative else functional.relu(kept.activations)
        if self.offsets is not None:
            values = values + self.offsets[kept.indices] * (values > 0)
        active = values.abs() >= least if least > 0 else values != 0
        return _joined([Strongest(values * active, kept.indices, active.sum(1))], top_k)

    def _above(
        self, inputs: Float[Tensor, "token d_model"], block: slice, top_k: int, least: float, layer: int
    ) -> Strongest:
        """The strongest features of a block that exceed their thresholds."""
        assert self.thresholds is not None
        dense, thresholds = self._preactivations(inputs, block, layer), self.thresholds[block]
        signed = bool((thresholds < 0).any())  # such a feature can be active with a negative activation
        inactive = dense <= thresholds
        if least > 0:
            inactive |= (dense.abs() if signed else dense) < least
        dense.masked_fill_(inactive, 0)
        top = largest(dense.abs() if signed else dense, min(top_k, dense.shape[1]))
        return Strongest(dense.gather(1, top.indices), top.indices + block.start, dense.count_nonzero(1))

    def _largest(self, inputs: Float[Tensor, "token d_model"], block: slice, layer: int) -> Strongest:
        """The features of a block with the ``k`` largest scores, which are their activations here.

        The score of a feature is its pre-activation less its offset.
        """
        assert self.k is not None
        dense = self._preactivations(inputs, block, layer)
        if self.offsets is not None:
            dense -= self.offsets[block]
        top = largest(dense, min(self.k, dense.shape[1]))
        return Strongest(top.values, top.indices + block.start, top.indices.new_zeros(len(dense)))

    def _standardised(self, inputs: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        inputs = inputs.to(self.bias)
        if self.mean is not None:
            inputs = inputs - self.mean
        return inputs if self.scale is None else inputs / self.scale

    def _preactivations(
        self, inputs: Float[Tensor, "token d_model"], block: slice, layer: int
    ) -> Float[Tensor, "token feature"]:
        if isinstance(self.weight, Tensor):
            return functional.linear(inputs, self.weight[block], self.bias[block])
        weight = self.weight[block].read()
        dense = functional.linear(inputs, weight.to(inputs), self.bias[block])
        if not is_finite(dense):  # the block is searched only now, because that takes as long again
            name = f"The tensor {self.weight.name!r} of layer {layer} in {self.weight.place}"
            check_finite(weight, f"{name}, from feature {block.start} on,", error=CheckpointError)
        return dense

    def _blocks(self) -> Iterator[slice]:
        step = max(1, _BLOCK_NUMBERS // self.d_model)
        for start in range(0, self.n_features, step):
            yield slice(start, min(start + step, self.n_features))

    __repr__ = short_repr


def _joined(blocks: Sequence[Strongest], top_k: int, *, size: Callable[[Tensor], Tensor] = torch.abs) -> Strongest:
    """The strongest features of several blocks in ``top_k`` columns, largest ``size`` first; other columns hold 0."""
    activations = torch.cat([block.activations for block in blocks], dim=1)
    indices = torch.cat([block.indices for block in blocks], dim=1)
    order = size(activations).topk(min(top_k, indices.shape[1]), dim=1).indices
    missing = (0, top_k - order.shape[1])
    return Strongest(
        functional.pad(activations.gather(1, order), missing),
        functional.pad(indices.gather(1, order), missing),
        torch.stack([block.n_active for block in blocks]).sum(0),
    )


def layer_encoder(transcoder: Transcoder, layer: int, *, in_memory: bool = True) -> LayerEncoder:
    """The encoder of one layer of a transcoder; ``layer`` is a layer of the language model.

    An encoder that stays in its file is read into memory, unless ``in_memory`` is false. Raises ConfigError if features
    of all layers compete, and CheckpointError if a number that is read is not finite.
    """
    nonlinearity, place = transcoder.nonlinearity, transcoder.config.place_of(layer)
    if nonlinearity.couples_layers:
        raise ConfigError(
            f"The nonlinearity {transcoder.config.nonlinearity.kind} of the transcoder ranks the features of all "
            "layers of a token together, so layers cannot be encoded one by one; use the method encode of the "
            "transcoder."
        )
    ranked = isinstance(nonlinearity, TopK)
    thresholds = None if ranked else nonlinearity.threshold(place)
    assert ranked or thresholds is not None
    standardisation = transcoder.standardisation
    return LayerEncoder(
        weight=_weight(transcoder, place, layer, in_memory),
        bias=transcoder.b_enc[place].detach(),
        thresholds=None if thresholds is None else thresholds.to(transcoder.b_enc),
        k=nonlinearity.config.k if ranked else None,
        keep_negative=ranked and nonlinearity.config.keep_negative,
        offsets=nonlinearity.offsets[place].to(transcoder.b_enc) if ranked and nonlinearity.config.offsets else None,
        mean=standardisation.input_mean[place],
        scale=standardisation.input_scale[place],
    )


def _weight(transcoder: Transcoder, place: int, layer: int, in_memory: bool) -> Tensor | Table:
    if transcoder.stored is None:
        return transcoder.W_enc[place].detach()
    table = transcoder.stored.encoders[place]
    if not in_memory:
        return table
    weight = table.read()
    check_finite(weight, f"The tensor {table.name!r} of layer {layer} in {table.place}", error=CheckpointError)
    return weight.to(transcoder.device, transcoder.dtype)
