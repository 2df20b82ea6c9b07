"""CLT-Forge's layout of a transcoder.

    clt_cfg.json             model_name, activation_fn, cross_layer_decoders
    clt_weights.safetensors  W_enc [layer, d_model, feature], b_enc [layer, feature], log_threshold [layer, feature],
                             W_dec [pair, feature, d_model], b_dec [pair, d_model],
                             estimated_norm_scaling_factor_in [layer], estimated_norm_scaling_factor_out [layer]

The pairs of a source and a target layer are sorted by source, then by target; without ``cross_layer_decoders`` there is
one for each layer. Biases of all pairs with one target add up. Inputs are multiplied by their factor before they are
encoded, and outputs are divided by theirs, so the standardisation of the transcoder holds the inverses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS = "clt_cfg.json"
_TENSORS = "clt_weights.safetensors"
_COUNTS = ("feature_count",)
"""Tensors of training that hold integers."""
_FACTOR = "estimated_norm_scaling_factor"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and bool(weight_files.names(f"*{_TENSORS}"))


def open_clt_forge(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if its files are damaged, or shards of a larger one."""
    place = weight_files.place
    settings = _read_settings(weight_files)
    if not weight_files.has(_TENSORS):
        raise CheckpointError(
            f"{place} holds shards of a transcoder, one for each rank, which are not read; save {_TENSORS} instead."
        )
    tensors = weight_files.tensors(_TENSORS, ignored=_COUNTS)
    n_layers, d_model, n_features = tensor_of(tensors, "W_enc", (None, None, None), place).shape
    values: dict[str, Any] = {
        "n_layers": n_layers,
        "n_features": n_features,
        "d_model": d_model,
        "reach": None if settings["cross_layer_decoders"] else 1,
        "nonlinearity": {"kind": "jumprelu"},
        "input_hook": "ln2.hook_normalized",
        "language_model": settings.get("model_name"),
    }
    config = described_config(values, place)
    small = {
        "b_enc": tensor_of(tensors, "b_enc", (n_layers, n_features), place),
        "log_threshold": tensor_of(tensors, "log_threshold", (n_layers, n_features), place),
        "b_dec": tensor_of(tensors, "b_dec", (sum(_reaches(config)), d_model), place),
        "in": tensor_of(tensors, f"{_FACTOR}_in", (n_layers,), place),
        "out": tensor_of(tensors, f"{_FACTOR}_out", (n_layers,), place),
    }
    weights = _weights(config, tensors, weight_files)
    return StoredTranscoder(place=place, config=config, weights=weights, small=lambda: _read_small(config, small))


def _read_settings(weight_files: WeightFiles) -> dict[str, Any]:
    path = weight_files.path(_SETTINGS)
    match files.read_json(path):
        case {"cross_layer_decoders": bool()} as settings:
            settings = cast(dict[str, Any], settings)
        case _:
            raise CheckpointError(f"{path} does not say whether there are cross_layer_decoders: true or false.")
    if (activation := settings.get("activation_fn", "jumprelu")) != "jumprelu":
        raise CheckpointError(f"{path} has the activation_fn {activation!r}; only 'jumprelu' can be read.")
    return settings


def _reaches(config: CrossLayerConfig) -> list[int]:
    return [config.reach_of(source) for source in range(config.n_layers)]


def _weights(config: CrossLayerConfig, tensors: Mapping[str, StoredTensor], weight_files: WeightFiles) -> StoredWeights:
    shape = (sum(_reaches(config)), config.n_features, config.d_model)
    table = tensor_of(tensors, "W_dec", shape, weight_files.place)
    decoders: list[tuple[StoredTensor, ...]] = []
    begin = 0
    for reach in _reaches(config):
        decoders.append((table[begin : begin + reach].T,))
        begin += reach
    encoders = tuple(tensors["W_enc"][layer].T for layer in range(config.n_layers))
    return StoredWeights(encoders, tuple(decoders))


def _read_small(config: CrossLayerConfig, small: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    read = {name: tensor.read().float() for name, tensor in small.items()}
    targets = [source + offset for source, reach in enumerate(_reaches(config)) for offset in range(reach)]
    b_dec = torch.zeros(config.n_layers, config.d_model).index_add(0, torch.tensor(targets), read["b_dec"])
    return {
        "b_enc": read["b_enc"],
        "b_dec": b_dec,
        THRESHOLDS: read["log_threshold"].exp(),
        "standardisation.input_scale": 1 / read["in"],
        "standardisation.target_scale": 1 / read["out"],
    }
