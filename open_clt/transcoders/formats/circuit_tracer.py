"""circuit-tracer's layout of a transcoder, which inference libraries and Neuronpedia also read.

    config.yaml            model_name, model_kind, feature_input_hook, feature_output_hook, scan
    W_enc_{l}.safetensors  W_enc_{l} [feature, d_model], b_enc_{l} [feature], b_dec_{l} [d_model],
                           threshold_{l} [feature] (JumpReLU only; of any sign)
    W_dec_{l}.safetensors  W_dec_{l} [feature, n_layers - l, d_model]; slice j writes to layer l + j

In this layout a feature depends on its own pre-activation only, so TopK, which ranks features against each other, has
no place in it. ``circuit_tracer_writer.py`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import StoredTensor
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.circuit_tracer_writer import UNKNOWN_MODEL
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import LocalFiles, WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_KIND = "cross_layer_transcoder"
_SETTINGS = "config.yaml"
_ENCODER, _DECODER = "W_enc", "W_dec"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and weight_files.has(f"{_ENCODER}_0.safetensors")


def open_circuit_tracer(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a cross-layer transcoder in this layout; raises CheckpointError if its files are damaged."""
    place = weight_files.place
    settings = read_settings(weight_files.path(_SETTINGS))
    if settings.get("model_kind") != _KIND:
        raise CheckpointError(
            f"{place} has model_kind {settings.get('model_kind')!r}; only {_KIND!r} can be read from this layout."
        )
    encoders, decoders = _open_layers(weight_files)
    n_features, d_model = tensor_of(encoders[0], "W_enc_0", (None, None), place).shape
    has_thresholds = any(f"threshold_{layer}" in each for layer, each in enumerate(encoders))
    values = {
        "n_layers": len(encoders),
        "n_features": n_features,
        "d_model": d_model,
        "nonlinearity": {"kind": "jumprelu" if has_thresholds else "relu"},
        "input_hook": settings.get("feature_input_hook", "hook_resid_mid"),
        "target_hook": settings.get("feature_output_hook", "hook_mlp_out"),
        "language_model": stated_model(settings),
    }
    try:
        config = from_dict(CrossLayerConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{place} does not describe a transcoder: {error}") from error
    weights = StoredWeights(
        tuple(tensor_of(each, f"W_enc_{layer}", (n_features, d_model), place) for layer, each in enumerate(encoders)),
        tuple((tensor_of(each, f"W_dec_{layer}", (None, None, None), place),) for layer, each in enumerate(decoders)),
    )
    stacked = {"b_enc": "b_enc", "b_dec": "b_dec", **({"threshold": THRESHOLDS} if has_thresholds else {})}
    width = {"b_enc": n_features, "b_dec": d_model, "threshold": n_features}
    small = {
        name: [tensor_of(each, f"{stem}_{layer}", (width[stem],), place) for layer, each in enumerate(encoders)]
        for stem, name in stacked.items()
    }

    def read_small() -> dict[str, Tensor]:
        return {name: torch.stack([each.read().float() for each in layers]) for name, layers in small.items()}

    return StoredTranscoder(place=place, config=config, weights=weights, small=read_small)


def load_circuit_tracer(directory: str | Path) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder in circuit-tracer's layout; raises CheckpointError if the directory has none."""
    stored = files.read_saved(Path(directory), _SETTINGS, lambda saved: open_circuit_tracer(LocalFiles(saved)))
    return stored.load(device=torch.device("cpu"))


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a ``config.yaml``; raises CheckpointError if it holds something else."""
    settings = files.read_yaml(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not hold settings; it must name model_kind and the hooks.")
    return cast(dict[str, Any], settings)


def stated_model(settings: Mapping[str, Any]) -> object:
    """The language model that settings state; None if they state none."""
    model = settings.get("model_name")
    return None if model == UNKNOWN_MODEL else model


def _open_layers(weight_files: WeightFiles) -> list[list[Mapping[str, StoredTensor]]]:
    """The tensors of the encoders and of the decoders; raises CheckpointError if the file of a layer is missing."""
    stems = (_ENCODER, _DECODER)
    count = max(len(weight_files.names(f"{stem}_[0-9]*.safetensors")) for stem in stems)
    return [[weight_files.tensors(f"{stem}_{layer}.safetensors") for layer in range(count)] for stem in stems]
