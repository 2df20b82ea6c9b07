"""The terms of a transcoder's training loss, as pure functions.

All are in standardised units, and means over the tokens of a batch: no coefficient depends on the batch size. With
error ``e``, features ``a``, pre-activations ``pre`` and decoder norms ``|W_dec|`` (over all targets of a feature):

    reconstruction   sum_{layer, d} e^2
    sparsity         sum_{layer, feature} tanh(c |W_dec| a)
    pre-activation   sum_{layer, dead feature} relu(threshold - pre) |W_dec|
    auxiliary        sum_{layer, d} (e - what the most active dead features write)^2       (AuxK, Gao et al., 2024)

The first three are those of Ameisen et al. (2025), "Circuit Tracing", appendix on training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.models.sparse import LayerFeatures, SparseFeatures, weighted


def reconstruction_loss(errors: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, ""]:
    """Squared error, summed over layers and dimensions."""
    return errors.square().sum((1, 2)).mean()


def sparsity_loss(
    features: Sequence[LayerFeatures], decoder_norms: Float[Tensor, "layer feature"], *, steepness: float
) -> Float[Tensor, ""]:
    """A soft count of active features; only active entries are touched."""
    penalties = [
        torch.tanh(steepness * weighted(layer, norms)).sum() / layer.shape[0]
        for layer, norms in zip(features, decoder_norms, strict=True)
    ]
    return torch.stack(penalties).sum()


def preactivation_loss(
    preactivations: Float[Tensor, "batch some"],
    thresholds: Float[Tensor, "some"],
    decoder_norms: Float[Tensor, "some"],
) -> Float[Tensor, ""]:
    """How far some features of one layer, the dead ones, stay below their thresholds.

    Norms are detached: the loss is to raise pre-activations, and would rather shrink the decoders to nothing.
    """
    below = functional.relu(thresholds - preactivations)
    return (below * decoder_norms.detach()).sum(1).mean()


def top_dead_features(
    preactivations: Float[Tensor, "batch some"], indices: Int[Tensor, "some"], *, k: int, n_features: int
) -> SparseFeatures:
    """The ``k`` most active of a layer's dead features for each token, differentiable in their pre-activations.

    ``indices`` are the dead features' places in the layer. Values are the pre-activations as they are: a feature that
    fires on no token has negative ones only, and a rectifier would keep every gradient from it.
    """
    batch, dead = preactivations.shape
    top = preactivations.topk(min(k, dead), dim=1, sorted=False)
    offsets = torch.arange(batch + 1, device=preactivations.device) * top.indices.shape[1]
    return SparseFeatures(top.values.flatten(), indices[top.indices.flatten()], offsets, n_features)


def auxiliary_loss(
    errors: Float[Tensor, "batch layer d_model"], written: Float[Tensor, "batch layer d_model"]
) -> Float[Tensor, ""]:
    """Squared difference of the residual (target minus reconstruction, detached) and what dead features write."""
    return reconstruction_loss(errors.detach() - written)
