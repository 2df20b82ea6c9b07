"""The transcoder's equations as plain loops and dense products: slow, obvious, and what the fast paths must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.molt import Molt
from open_clt.transcoders.transcoder import Transcoder


def decode_by_loops(transcoder: Transcoder, features: Tensor, inputs: Tensor) -> Tensor:
    """``y_hat[t] = b_dec[t] + sum_s a[s] W_dec[s -> t] + W_skip[t] x[t]``, raw units; a MOLT's features are gates.

    features: (batch, layer, feature).
    """
    stats = transcoder.standardisation
    standard = stats.inputs(inputs)
    rows: list[Tensor] = []
    for token in range(inputs.shape[0]):
        for target in range(transcoder.config.n_layers):
            total = transcoder.b_dec[target]
            if isinstance(transcoder, Molt):
                total = total + _transformed(transcoder, features[token, target], standard[token, target], target)
            else:
                assert isinstance(transcoder, CrossLayerTranscoder)
                for source in range(target + 1):
                    if target - source < transcoder.config.reach_of(source):
                        total = total + features[token, source] @ transcoder.W_dec[source][:, target - source]
            if transcoder.W_skip is not None:
                total = total + transcoder.W_skip[target] @ standard[token, target]
            rows.append(total * stats.target_scale[target] + stats.target_mean[target])
    return torch.stack(rows).view_as(inputs)


def _transformed(molt: Molt, gates: Tensor, standard: Tensor, layer: int) -> Tensor:
    """``sum_t gate_t U_t V_t x`` of one token, one matrix after another."""
    return sum((gate * (molt.matrix(layer, t) @ standard) for t, gate in enumerate(gates)), torch.zeros_like(standard))


def nested_by_loops(transcoder: CrossLayerTranscoder, features: Tensor, inputs: Tensor) -> Tensor:
    """The reconstructions of every prefix and of the whole, each with all other features set to zero."""
    found: list[Tensor] = []
    for size in (*transcoder.config.prefixes, transcoder.config.n_features):
        kept = features.clone()
        kept[:, :, size:] = 0
        found.append(decode_by_loops(transcoder, kept, inputs))
    return torch.stack(found)


def preactivations_by_loops(transcoder: Transcoder, inputs: Tensor) -> Tensor:
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
