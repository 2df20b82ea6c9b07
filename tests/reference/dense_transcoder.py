"""The transcoder's equations as plain loops and dense products: slow, obvious, and what the fast paths must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from open_clt.models.cross_layer import CrossLayerTranscoder


def decode_by_loops(transcoder: CrossLayerTranscoder, features: Tensor, inputs: Tensor) -> Tensor:
    """``y_hat[t] = b_dec[t] + sum_s a[s] W_dec[s -> t] + W_skip[t] x[t]``, raw units.

    features: (batch, layer, feature).
    """
    stats = transcoder.standardisation
    standard = stats.inputs(inputs)
    rows: list[Tensor] = []
    for token in range(inputs.shape[0]):
        for target in range(transcoder.config.n_layers):
            total = transcoder.b_dec[target]
            for source in range(target + 1):
                if target - source < transcoder.config.reach_of(source):
                    total = total + features[token, source] @ transcoder.W_dec[source][:, target - source]
            if transcoder.W_skip is not None:
                total = total + transcoder.W_skip[target] @ standard[token, target]
            rows.append(total * stats.target_scale[target] + stats.target_mean[target])
    return torch.stack(rows).view_as(inputs)


def preactivations_by_loops(transcoder: CrossLayerTranscoder, inputs: Tensor) -> Tensor:
    """``pre[l] = W_enc[l] x[l] + b_enc[l]`` of standardised inputs: (batch, layer, feature)."""
    standard = transcoder.standardisation.inputs(inputs)
    per_layer = [
        standard[:, layer] @ transcoder.W_enc[layer].T + transcoder.b_enc[layer]
        for layer in range(transcoder.config.n_layers)
    ]
    return torch.stack(per_layer, dim=1)


def topk_by_loops(preactivations: Tensor, k: int) -> Tensor:
    """TopK of every token and layer, by sorting."""
    features = torch.zeros_like(preactivations)
    for token in range(preactivations.shape[0]):
        for layer in range(preactivations.shape[1]):
            for feature in preactivations[token, layer].argsort(descending=True)[:k]:
                features[token, layer, feature] = preactivations[token, layer, feature].clamp(min=0)
    return features
