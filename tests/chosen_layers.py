"""Transcoders of some layers of a language model, and the transcoders of all layers that compute the same.

The transcoder of all layers has the same weights at the chosen layers. At the other layers its encoders and decoders
are zero, so that no feature is active there, and its biases are zero, so that its reconstruction is zero too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from open_clt.config import TopKConfig
from open_clt.transcoders.cross_layer import CrossLayerTranscoder

_NEVER = 1e9
"""A threshold that no pre-activation reaches."""


@torch.no_grad()
def spread(transcoder: CrossLayerTranscoder, n_layers: int) -> CrossLayerTranscoder:
    """The transcoder of all ``n_layers`` layers that computes what a transcoder of some layers computes."""
    config = transcoder.config
    layers, width, d_model = list(config.model_layers), config.n_features, config.d_model
    nonlinearity = config.nonlinearity
    if isinstance(nonlinearity, TopKConfig) and nonlinearity.across_layers:  # as many features of all layers together
        nonlinearity = replace(nonlinearity, k_total=nonlinearity.k * len(layers))
    all_layers = replace(config, n_layers=n_layers, layers=None, reach=None, nonlinearity=nonlinearity)
    full = CrossLayerTranscoder(all_layers).eval()
    own, state = transcoder.state_dict(), full.state_dict()
    for name, tensor in state.items():
        if name.startswith("W_dec"):
            tensor.zero_()
        elif tensor.ndim and tensor.shape[0] == n_layers:
            tensor.copy_(_rows(name, own[name], layers, tensor))
        else:
            tensor.copy_(own[name])
    for place, source in enumerate(layers):
        for step in range(config.reach_of(place)):
            full.W_dec[source][:, layers[place + step] - source] = transcoder.W_dec[place][:, step]
    assert full.b_enc.shape == (n_layers, width)
    assert full.b_dec.shape == (n_layers, d_model)
    return full


def _rows(name: str, chosen: Tensor, layers: list[int], like: Tensor) -> Tensor:
    """A tensor of all layers: rows of the chosen layers, and at the others what keeps features inactive."""
    rows = torch.zeros_like(like)
    if name.endswith("_scale"):
        rows += 1
    elif "threshold" in name:
        rows += _NEVER if "log" not in name else 20.0
    rows[layers] = chosen
    return rows
