"""The equations of transcoders as plain loops and dense products, which the fast code must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.molt import Molt
from open_clt.transcoders.transcoder import Transcoder


def decode_by_loops(transcoder: Transcoder, features: Tensor, inputs: Tensor) -> Tensor:
    """The reconstruction ``y_hat[t] = b_dec[t] + sum_s a[s] W_dec[s -> t] + W_skip[t] x[t]`` in raw units.

    ``features`` has the shape (batch, layer, feature); the features of a MOLT are its gates.
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
    """The sum ``sum_t gate_t U_t V_t x`` for one token, one matrix after another."""
    return sum((gate * (molt.matrix(layer, t) @ standard) for t, gate in enumerate(gates)), torch.zeros_like(standard))


def nested_by_loops(transcoder: CrossLayerTranscoder, features: Tensor, inputs: Tensor) -> Tensor:
    """The reconstructions by each prefix of the features and by all, with the other features set to zero."""
    reconstructions: list[Tensor] = []
    for size in (*transcoder.config.prefixes, transcoder.config.n_features):
        prefix = features.clone()
        prefix[:, :, size:] = 0
        reconstructions.append(decode_by_loops(transcoder, prefix, inputs))
    return torch.stack(reconstructions)


def preactivations_by_loops(transcoder: Transcoder, inputs: Tensor) -> Tensor:
    """The pre-activations ``W_enc[l] x[l] + b_enc[l]`` of standardised inputs, of shape (batch, layer, feature)."""
    standard = transcoder.standardisation.inputs(inputs)
    per_layer = [
        standard[:, layer] @ transcoder.W_enc[layer].T + transcoder.b_enc[layer]
        for layer in range(transcoder.config.n_layers)
    ]
    return torch.stack(per_layer, dim=1)


def topk_across_layers_by_loops(preactivations: Tensor, norms: Tensor, total: int) -> Tensor:
    """TopK features of every token, of shape (batch, layer, feature); all layers of a token are sorted together.

    ``norms``, of shape (layer, feature), multiply the activations in the ranking.
    """
    features = torch.zeros_like(preactivations)
    for token, kept in zip(preactivations.clamp(min=0), features, strict=True):
        for cell in (token * norms).flatten().argsort(descending=True)[:total]:
            kept.view(-1)[cell] = token.flatten()[cell]
    return features


def topk_by_loops(preactivations: Tensor, k: int) -> Tensor:
    """TopK features of every token and layer, found by sorting."""
    features = torch.zeros_like(preactivations)
    for token in range(preactivations.shape[0]):
        for layer in range(preactivations.shape[1]):
            for feature in preactivations[token, layer].argsort(descending=True)[:k]:
                features[token, layer, feature] = preactivations[token, layer, feature].clamp(min=0)
    return features
