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

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.circuit_tracer_writer import UNKNOWN_MODEL
from open_clt.transcoders.formats.layers import described_config, read_stacked
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import LocalFiles, WeightFiles, check_known, names_of_layers, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_KIND = "cross_layer_transcoder"
_SETTINGS = "config.yaml"
_TENSORS = {"W_enc": ("W_enc", "b_enc", "b_dec", "threshold"), "W_dec": ("W_dec", "W_dec_norm")}
"""Names of the tensors in the files of encoders and of decoders, without the number of the layer.

Norms of decoders are derived, and not read."""


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and weight_files.has("W_enc_0.safetensors")


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
    config = described_config(values, place)
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
    return StoredTranscoder(place=place, config=config, weights=weights, small=read_stacked(small))


def load_circuit_tracer(directory: str | Path) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder in circuit-tracer's layout; raises CheckpointError if the directory has none."""

    def opened(saved: files.Saved) -> StoredTranscoder:
        weight_files = LocalFiles(saved)
        return open_circuit_tracer(weight_files).of_files(weight_files.opened)

    return files.read_saved(Path(directory), _SETTINGS, opened).load(device=torch.device("cpu"))


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
    """The tensors of the encoders and of the decoders.

    Raises CheckpointError if the file of a layer is missing, or if there is a tensor that the layout does not have.
    """
    count = max(len(names_of_layers(weight_files, f"{stem}_{{}}.safetensors")) for stem in _TENSORS)
    opened: list[list[Mapping[str, StoredTensor]]] = []
    for stem, names in _TENSORS.items():
        tensors = [weight_files.tensors(f"{stem}_{layer}.safetensors") for layer in range(count)]
        for layer, of_layer in enumerate(tensors):
            known = [f"{name}_{layer}" for name in names]
            check_known(of_layer, known, weight_files.place / f"{stem}_{layer}.safetensors")
        opened.append(tensors)
    return opened
