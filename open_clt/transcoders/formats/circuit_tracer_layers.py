"""circuit-tracer's layout of one transcoder per layer.

config.yaml           model_name, model_kind: transcoder_set, feature_input_hook, feature_output_hook; perhaps
                      activation and k, and transcoders: the paths of the files if they have other names
layer_{l}.safetensors W_enc [feature, d_model], W_dec [feature, d_model], b_enc [feature], b_dec [d_model];
                      perhaps activation_function.threshold [feature] and W_skip [d_model, d_model]

y = a @ W_dec + b_dec + x @ W_skip.T
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, cast

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.circuit_tracer import read_settings
from open_clt.transcoders.formats.layers import THRESHOLD, transcoders_per_layer
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles

_SETTINGS = "config.yaml"
_KIND = "transcoder_set"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged."""
    if not weight_files.has(_SETTINGS) or weight_files.has("W_enc_0.safetensors"):
        return False
    if weight_files.has("layer_0.safetensors"):
        return True
    try:
        return read_settings(weight_files.path(_SETTINGS)).get("model_kind") == _KIND
    except CheckpointError:
        return False


def open_circuit_tracer_layers(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if files are damaged or say what cannot be expressed."""
    place = weight_files.place
    settings = read_settings(weight_files.path(_SETTINGS))
    for name, legal in (("model_kind", _KIND), ("special_load_fn", None), ("subfolder", None)):
        if settings.get(name) != legal:
            raise CheckpointError(f"{place} has {name} {settings.get(name)!r}; it must be {legal!r} in this layout.")
    layers = [weight_files.tensors(name) for name in _file_names(weight_files, settings)]
    values = {
        "nonlinearity": _nonlinearity(settings, THRESHOLD in layers[0], place),
        "input_hook": settings.get("feature_input_hook"),
        "target_hook": settings.get("feature_output_hook"),
        "language_model": settings.get("model_name"),
    }
    return transcoders_per_layer(layers, values, place)


def _file_names(weight_files: WeightFiles, settings: dict[str, Any]) -> list[str]:
    """The names of the files of the layers, in order."""
    place = weight_files.place
    listed = settings.get("transcoders")
    if listed is None:
        names = [f"layer_{layer}.safetensors" for layer in range(len(weight_files.names("layer_[0-9]*.safetensors")))]
    elif isinstance(listed, list) and all(isinstance(name, str) for name in cast(list[object], listed)):
        names = cast(list[str], listed)
    else:
        raise CheckpointError(f"{place} has transcoders {listed!r}; it must be a list of the paths of files.")
    for name in names:
        if "://" in name:
            raise CheckpointError(
                f"{place} names the file {name!r}; download it into this directory, and write its relative path."
            )
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or path.suffix != ".safetensors":
            raise CheckpointError(
                f"{place} names the file {name!r}; it must be the relative path of a safetensors file in it."
            )
    if not names:
        raise CheckpointError(f"{place} holds no transcoders; it needs a file layer_0.safetensors, and so on.")
    return names


def _nonlinearity(settings: dict[str, Any], has_thresholds: bool, place: Path) -> dict[str, Any]:
    activation = settings.get("activation")
    if activation == "topk" and not has_thresholds:
        if settings.get("k") is None:
            raise CheckpointError(f"{place} has activation 'topk' without k; write k into {_SETTINGS}.")
        return {"kind": "topk", "k": settings["k"], "keep_negative": True}
    kind = "jumprelu" if has_thresholds else "relu"
    if activation not in (None, kind):
        found = "holds thresholds" if has_thresholds else "holds no thresholds"
        raise CheckpointError(f"{place} has activation {activation!r} and {found}; this cannot be read.")
    return {"kind": kind}
