"""circuit-tracer's layout of one transcoder per layer.

config.yaml           model_name, model_kind: transcoder_set, feature_input_hook, feature_output_hook; perhaps
                      activation and k, and transcoders: the paths of the files if they have other names, or their
                      addresses on the hub, hf://org/name/path[?revision=main]
layer_{l}.safetensors W_enc [feature, d_model], W_dec [feature, d_model], b_enc [feature], b_dec [d_model];
                      perhaps activation_function.threshold [feature] and W_skip [d_model, d_model]

y = a @ W_dec + b_dec + x @ W_skip.T

Files under ``transcoders`` may also be those of Gemma Scope 1 (npz) and of Gemma Scope 2, of one layer each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.hub.repository import HubFile
from open_clt.transcoders.formats import gemma_scope_1, gemma_scope_2_layers
from open_clt.transcoders.formats.circuit_tracer import read_settings, stated_model
from open_clt.transcoders.formats.circuit_tracer_writer import KEEP_NEGATIVE
from open_clt.transcoders.formats.layers import THRESHOLD, transcoders_per_layer
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, names_of_layers

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
    layers = _layers(weight_files, settings)
    values = {
        "nonlinearity": _nonlinearity(settings, THRESHOLD in layers[0], place),
        "input_hook": settings.get("feature_input_hook"),
        "target_hook": settings.get("feature_output_hook"),
        "language_model": stated_model(settings),
    }
    return transcoders_per_layer(layers, values, place)


def _layers(weight_files: WeightFiles, settings: dict[str, Any]) -> list[Mapping[str, StoredTensor]]:
    """The tensors of the layers, in order, whose files may be in several repositories on the hub."""
    place, names = weight_files.place, _file_names(weight_files, settings)
    addresses = [HubFile.parse(name) for name in names]
    for name, address in zip(names, addresses, strict=True):
        _check_name(name if address is None else address.name, place)
    repositories = {each.repository: weight_files.on_hub(each.repository) for each in addresses if each is not None}
    return [
        _as_circuit_tracer(weight_files, name)
        if address is None
        else _as_circuit_tracer(repositories[address.repository], address.name)
        for name, address in zip(names, addresses, strict=True)
    ]


def _as_circuit_tracer(weight_files: WeightFiles, name: str) -> Mapping[str, StoredTensor]:
    """The tensors of a file of one layer with the names of this layout, whichever of three layouts the file has."""
    tensors, place = weight_files.tensors(name), weight_files.place / name
    if name.endswith(".npz"):
        return gemma_scope_1.as_circuit_tracer(tensors, place)
    return gemma_scope_2_layers.as_circuit_tracer(tensors, place) if "w_enc" in tensors else tensors


def _check_name(name: str, place: Path) -> None:
    """Raise CheckpointError unless a name in the settings is that of a file of weights in the same folder."""
    path = PurePosixPath(name)
    outside = "://" in name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    if outside or path.suffix not in (".safetensors", ".npz"):
        raise CheckpointError(
            f"{place} names the file {name!r}; it must be the relative path of a safetensors or npz file in it, or "
            "hf://org/name/path[?revision=main]."
        )


def _file_names(weight_files: WeightFiles, settings: dict[str, Any]) -> list[str]:
    """The names of the files of the layers, or their addresses on the hub, in order."""
    place = weight_files.place
    listed = settings.get("transcoders")
    if listed is None:
        names = names_of_layers(weight_files, "layer_{}.safetensors")
    elif isinstance(listed, list) and all(isinstance(name, str) for name in cast(list[object], listed)):
        names = cast(list[str], listed)
    else:
        raise CheckpointError(f"{place} has transcoders {listed!r}; it must be a list of the paths of files.")
    if not names:
        raise CheckpointError(f"{place} holds no transcoders; it needs a file layer_0.safetensors, and so on.")
    return names


def _nonlinearity(settings: dict[str, Any], has_thresholds: bool, place: Path) -> dict[str, Any]:
    activation = settings.get("activation")
    if activation == "topk" and not has_thresholds:
        if settings.get("k") is None:
            raise CheckpointError(f"{place} has activation 'topk' without k; write k into {_SETTINGS}.")
        return {"kind": "topk", "k": settings["k"], "keep_negative": settings.get(KEEP_NEGATIVE, True)}
    kind = "jumprelu" if has_thresholds else "relu"
    if activation not in (None, kind):
        found = "holds thresholds" if has_thresholds else "holds no thresholds"
        raise CheckpointError(f"{place} has activation {activation!r} and {found}; this cannot be read.")
    return {"kind": kind}
