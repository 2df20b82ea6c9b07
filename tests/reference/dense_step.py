"""A transcoder's forward pass in plain dense PyTorch, which the sparse step must equal and is timed against.

It reads the weights of a ``CrossLayerTranscoder`` and leaves all gradients to autograd. It is not slow without need:
slices of a tensor are taken by ``unbind``, whose gradient is one tensor, not one as large as all slices for each slice.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from open_clt.config import JumpReLUConfig, TopKConfig
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.nonlinearities import JumpReLU
from open_clt.transcoders.outputs import TranscoderErrors


class DenseOutput(NamedTuple):
    """Features of all layers, each (batch, feature), and the reconstruction (batch, layer, d_model)."""

    features: list[Tensor]
    reconstruction: Tensor


def forward_densely(transcoder: CrossLayerTranscoder, inputs: Tensor) -> DenseOutput:
    """Encode and decode a batch; inputs are raw, (batch, layer, d_model)."""
    standard = transcoder.standardisation.inputs(inputs).unbind(1)
    encoders = zip(standard, transcoder.W_enc.unbind(), transcoder.b_enc.unbind(), strict=True)
    preactivations = [functional.linear(x, weight, bias) for x, weight, bias in encoders]
    features = [activate(transcoder, pre, layer) for layer, pre in enumerate(preactivations)]
    sums = list(transcoder.b_dec.unbind())
    for source, (active, table) in enumerate(zip(features, transcoder.W_dec, strict=True)):
        written = (active @ table.flatten(1)).unflatten(1, table.shape[1:])
        for target, written_to_target in enumerate(written.unbind(1), start=source):
            sums[target] = sums[target] + written_to_target
    stats = transcoder.standardisation
    return DenseOutput(features, torch.stack(sums, dim=1) * stats.target_scale[:, None] + stats.target_mean)


def errors_densely(
    transcoder: CrossLayerTranscoder, inputs: Tensor, targets: Tensor, *, norms: bool = False
) -> TranscoderErrors:
    """The same result as that of ``Transcoder.errors``."""
    features, reconstruction = forward_densely(transcoder, inputs)
    errors = transcoder.standardisation.errors(targets - reconstruction)
    return TranscoderErrors(list(features), [errors], transcoder.decoder_norms() if norms else None)


def activate(transcoder: CrossLayerTranscoder, preactivations: Tensor, layer: int) -> Tensor:
    """Features of one layer, as a dense tensor."""
    match transcoder.config.nonlinearity:
        case TopKConfig(k=k):
            top = preactivations.topk(k, dim=1)
            return torch.zeros_like(preactivations).scatter(1, top.indices, top.values.relu())
        case JumpReLUConfig() as config:
            thresholds = cast(JumpReLU, transcoder.nonlinearity).log_threshold[layer].exp()
            return cast(Tensor, _Jump.apply(preactivations, thresholds.expand_as(preactivations), config))
        case config:
            raise NotImplementedError(f"The dense reference does not have the nonlinearity {config.kind}.")


class _Jump(Function):
    """JumpReLU with its straight-through estimator (Rajamanoharan et al., 2024, eq. 11-12)."""

    @staticmethod
    def forward(ctx: FunctionCtx, pre: Tensor, thresholds: Tensor, config: JumpReLUConfig) -> Tensor:
        ctx.save_for_backward(pre, thresholds)
        cast(Any, ctx).config = config
        return torch.where(pre > thresholds, pre, 0.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, thresholds = ctx.saved_tensors
        (gradient,) = grad_outputs
        near = (pre - thresholds).abs() < ctx.config.bandwidth / 2
        kernel = torch.where(near, gradient * (thresholds / ctx.config.bandwidth), 0.0)
        to_pre = torch.where(pre > thresholds, gradient, 0.0)
        return to_pre + kernel if ctx.config.gradient_to_preactivation else to_pre, -kernel, None
