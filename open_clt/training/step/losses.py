"""The terms of a transcoder's training loss, as pure functions.

All terms are in standardised units. Each is a mean over the tokens of a batch, so no coefficient depends on the batch
size. With errors ``e``, features ``a``, pre-activations ``pre`` and decoder norms ``|W_dec|`` (each over all target
layers of a feature):

    reconstruction   sum_{layer, d} e^2, and the same of each prefix of the features       (Matryoshka)
    sparsity         sum_{layer, feature} tanh(c |W_dec| |a|), or |W_dec| |a|              (L1)
    distance         sum_{layer, feature} |a| sum_j j |W_dec[j]|, slice j of the decoders writing j layers above
    pre-activation   sum_{layer, feature} relu(threshold - pre) |W_dec|, of dead features or all
    auxiliary        sum_{layer, d} (e - what the most active dead features write)^2       (AuxK, Gao et al., 2024)

The reconstruction, sparsity (tanh) and pre-activation terms follow Ameisen et al. (2025), "Circuit Tracing", appendix
on training. In a mixture of linear transforms, a feature is a transform, and its decoder norm is the Frobenius norm of
``U V``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from open_clt.config import L1SparsityConfig, SparsityConfig, TanhSparsityConfig
from open_clt.transcoders.slices import ALONE, Peers
from open_clt.transcoders.sparse.codes import LayerFeatures, SparseFeatures, weighted


def matryoshka_loss(errors: Sequence[Float[Tensor, "batch layer d_model"]]) -> Float[Tensor, ""]:
    """The sum of the reconstruction losses of all prefixes of the features; the last prefix is all features."""
    return torch.stack([reconstruction_loss(prefix_errors) for prefix_errors in errors]).sum()


def reconstruction_loss(errors: Float[Tensor, "batch layer d_model"]) -> Float[Tensor, ""]:
    """Squared error summed over layers and dimensions, mean over tokens."""
    return cast(Tensor, _SumOfSquares.apply(errors)) / errors.shape[0]


class _SumOfSquares(Function):
    """Sum of squares whose gradient takes one pass over the errors; autograd takes five, each with a new tensor."""

    @staticmethod
    def forward(ctx: FunctionCtx, errors: Tensor) -> Tensor:
        ctx.save_for_backward(errors)
        return torch.linalg.vector_norm(errors, dim=(1, 2)).square().sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (errors,) = ctx.saved_tensors
        return errors * (2 * grad_outputs[0])


def sparsity_loss(
    features: Sequence[LayerFeatures], decoder_norms: Float[Tensor, "layer feature"], config: SparsityConfig
) -> Float[Tensor, ""]:
    """The sparsity term without its coefficient: a soft count of active features (tanh), or their sum (L1).

    The cost grows with the number of active features, not with the number of all features.
    """
    penalties = [
        _penalty(weighted(layer, norms), config).sum() / layer.shape[0]
        for layer, norms in zip(features, decoder_norms.unbind(), strict=True)
    ]
    return torch.stack(penalties).sum()


def _penalty(weighted_features: Tensor, config: SparsityConfig) -> Tensor:
    # Unlike abs, this has the gradient 1 at zero, where JumpReLU passes the gradient on to a threshold.
    sizes = torch.where(weighted_features < 0, -weighted_features, weighted_features)
    match config:
        case TanhSparsityConfig():
            return torch.tanh(config.steepness * sizes)
        case L1SparsityConfig():
            return sizes
        case _:
            assert_never(config)


def distance_loss(
    features: Sequence[LayerFeatures], tables: Sequence[Float[Tensor, "feature _ d_model"]]
) -> Float[Tensor, ""]:
    """How much the active features write to other layers than their own, times the number of layers in between.

    Without it, a cross-layer transcoder may write an answer from an early layer that the model computes in a late one,
    and its graphs then show a shortcut (Ameisen et al., 2025, "Limitations").
    """
    penalties: list[Tensor] = []
    for layer, table in zip(features, tables, strict=True):
        distances = torch.arange(table.shape[1], dtype=table.dtype, device=table.device)
        prices = torch.linalg.vector_norm(table, dim=-1) @ distances
        penalties.append(weighted(layer, prices).abs().sum() / layer.shape[0])
    return torch.stack(penalties).sum()


def preactivation_loss(
    preactivations: Float[Tensor, "batch some"],
    thresholds: Float[Tensor, "some"],
    decoder_norms: Float[Tensor, "some"],
) -> Float[Tensor, ""]:
    """The distance of some features of one layer below their thresholds, weighted by decoder norm.

    Decoder norms are detached. Otherwise the gradient would shrink the decoders in place of raising pre-activations.
    """
    below = functional.relu(thresholds - preactivations)
    return (below * decoder_norms.detach()).sum(1).mean()


def top_dead_features(
    preactivations: Float[Tensor, "batch some"],
    indices: Int[Tensor, "some"],
    *,
    k: int,
    n_features: int,
    peers: Peers = ALONE,
) -> SparseFeatures:
    """The ``k`` most active of a layer's dead features for each token, differentiable in their pre-activations.

    ``indices`` are the indices of the dead features in their layer. The values are raw pre-activations: those of a dead
    feature are negative, and a rectifier would set their gradient to zero. The dead features of ``peers`` compete for
    the same ``k`` places.
    """
    batch, dead = preactivations.shape
    top = preactivations.topk(min(k, dead), dim=1, sorted=False)
    offsets = torch.arange(batch + 1, device=preactivations.device) * top.indices.shape[1]
    selected = SparseFeatures(top.values.flatten(), indices[top.indices.flatten()], offsets, n_features)
    return selected if peers.shards == 1 else selected.kept(peers.winners(top.values, k).flatten())


def auxiliary_loss(
    errors: Float[Tensor, "batch layer d_model"], written: Float[Tensor, "batch layer d_model"]
) -> Float[Tensor, ""]:
    """Squared difference between the error of the reconstruction, detached, and what the dead features write."""
    return reconstruction_loss(errors.detach() - written)
