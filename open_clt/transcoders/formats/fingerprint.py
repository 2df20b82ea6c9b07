"""The fingerprint of a transcoder: whether two sources hold the same one, without reading all weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from open_clt.config.json import to_dict
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.transcoder import Transcoder, encoder_rows

_FEATURES = 32
_LATER = ("k_share",)
"""Settings that are younger than the first records: where one is None, the fingerprint stays what it was."""


@torch.no_grad()
def fingerprint(transcoder: Transcoder) -> str:
    """Hash of a transcoder's config, and of the weights of 32 features of each layer, as 16 hexadecimal digits.

    Two transcoders that differ in other features only have the same fingerprint; two training runs never give such.
    """
    config = transcoder.config
    digest = hashlib.sha256(json.dumps(_settings(to_dict(config)), sort_keys=True).encode())
    step = max(1, config.n_features // _FEATURES)
    chosen = torch.arange(0, config.n_features, step, device=transcoder.device)[:_FEATURES]
    for layer in range(config.n_layers):
        if isinstance(transcoder, NeuronTranscoder):
            weights = [weight[chosen] for weight in transcoder.layers[layer].tables]
        else:
            weights = [encoder_rows(transcoder, layer, chosen)]
        if isinstance(transcoder, CrossLayerTranscoder):
            weights.append(transcoder.decoders(layer, chosen))
        for tensor in weights:
            digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that are younger and not given."""
    kept = {name: value for name, value in values.items() if not (name in _LATER and value is None)}
    return {name: _settings(value) if isinstance(value, dict) else value for name, value in kept.items()}
