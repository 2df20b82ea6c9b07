"""BluelightAI's layout of a cross-layer transcoder.

model_config.json  version 1: n_layers, d_in, d_latent, activation, k, decoder_layout, base_model_name, input_attr,
                   output_attr, layer_indices; version 2 says the same under base_model and architecture
clt.safetensors    encoder.W [layer, d_model, feature], encoder.b [layer, feature], norm_factor_in [layer],
                   norm_factor_out [layer], activation.log_threshold [layer, feature] (JumpReLU), perhaps
                   decoder.b [layer, d_model], and decoder.decoders.{l}.W: to the target layers from l on
                   [target, feature, d_model] (input_layer), or from the source layers up to l
                   [source, feature, d_model] (output_layer)
manifest.json      in place of clt.safetensors: the files of the same tensors, which have the names W_enc, b_enc,
                   norm_factor_in, norm_factor_out, log_threshold, b_dec and W_dec_{l} there

p[s] = x[s] / norm_factor_in[s] @ W[s] + b[s]
y[t] = (sum of a[s] @ W_dec[s, t] over s <= t, + b_dec[t]) * norm_factor_out[t]

The activation topk_all is read as the k largest activations of a token in all layers. BluelightAI's package
inference-clt puts the layer first in its tensors, and then ranks all tokens of a layer together, so that what it
computes for a token depends on the other tokens; the outputs differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, check_known, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS, _TENSORS, _MANIFEST = "model_config.json", "clt.safetensors", "manifest.json"
_HOOKS = {"mlp.input": "mlp.hook_in", "mlp.output": "mlp.hook_out"}
"""Hooks by the module and the side at which that package reads activations."""
_THRESHOLDS = "activation.log_threshold"
_NAMES = {
    "W_enc": "encoder.W",
    "b_enc": "encoder.b",
    "norm_factor_in": "norm_factor_in",
    "norm_factor_out": "norm_factor_out",
    "log_threshold": _THRESHOLDS,
    "b_dec": "decoder.b",
}
"""Names of tensors in ``clt.safetensors``, by their names in the files of a manifest."""
_ACTIVATIONS = ("relu", "jumprelu", "topk", "topk_all")


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and (weight_files.has(_TENSORS) or weight_files.has(_MANIFEST))


def open_bluelight(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if its files are damaged or some layers are missing."""
    place = weight_files.place
    settings = _settings(weight_files)
    n_layers, d_model, n_features = settings["n_layers"], settings["d_in"], settings["d_latent"]
    values = {
        "n_layers": n_layers,
        "n_features": n_features,
        "d_model": d_model,
        "nonlinearity": _nonlinearity(settings, place / _SETTINGS),
        "input_hook": _hook(settings, "input_attr", place / _SETTINGS),
        "target_hook": _hook(settings, "output_attr", place / _SETTINGS),
        "language_model": settings["base_model_name"],
    }
    config = described_config(values, place)
    tensors = _tensors(weight_files, n_layers)
    encoder = tensor_of(tensors, "encoder.W", (n_layers, d_model, n_features), place)
    weights = StoredWeights(
        tuple(encoder[layer].T for layer in range(n_layers)),
        _decoders(tensors, settings["decoder_layout"], (n_layers, n_features, d_model), weight_files),
    )
    small = {"b_enc": tensor_of(tensors, "encoder.b", (n_layers, n_features), place)}
    if settings["activation"] == "jumprelu":
        small[THRESHOLDS] = tensor_of(tensors, _THRESHOLDS, (n_layers, n_features), place)
    if "decoder.b" in tensors:
        small["b_dec"] = tensor_of(tensors, "decoder.b", (n_layers, d_model), place)
    for name, side in (("norm_factor_in", "input"), ("norm_factor_out", "target")):
        if name not in tensors or tensors[name].shape.numel() != n_layers:
            raise CheckpointError(f"{place} must hold the tensor {name!r} with one number for each layer.")
        small[f"standardisation.{side}_scale"] = tensors[name]
    known = {*_NAMES.values(), *(f"decoder.decoders.{layer}.W" for layer in range(n_layers))}
    if settings["activation"] != "jumprelu":
        known.remove(_THRESHOLDS)
    check_known(tensors, known, place)
    return StoredTranscoder(place=place, config=config, weights=weights, small=lambda: _read_small(small, n_layers))


def _settings(weight_files: WeightFiles) -> dict[str, Any]:
    """The settings under their names in version 1; raises CheckpointError if one is missing or not supported."""
    path = weight_files.path(_SETTINGS)
    content = files.read_json(path)
    match content:
        case {"config_version": 2, "base_model": dict(), "architecture": dict()}:
            settings = _of_version_2(cast(dict[str, Any], content), weight_files)
        case {"config_version": version} if version not in (1, 2):
            raise CheckpointError(f"{path} has the config_version {version!r}; only 1 and 2 can be read.")
        case {"n_layers": _, "d_in": _, "d_latent": _}:
            settings = cast(dict[str, Any], content)
        case _:
            raise CheckpointError(f"{path} does not say what n_layers, d_in and d_latent of the transcoder are.")
    defaults: dict[str, Any] = {
        "decoder_layout": "output_layer",
        "base_model_name": None,
        "k": 0,
        "layer_indices": None,
    }
    settings = {**defaults, **settings}
    for name in ("n_layers", "d_in", "d_latent"):
        if type(settings[name]) is not int or settings[name] < 1:
            raise CheckpointError(f"{path} has the {name} {settings[name]!r}; it must be an integer of at least 1.")
    _check_layers(settings["layer_indices"], settings["n_layers"], path)
    return settings


def _check_layers(layer_indices: object, n_layers: int, path: Path) -> None:
    """Raise CheckpointError if a file states the layers of the transcoder, and they are not all layers in order."""
    indices = cast(list[Any], layer_indices) if isinstance(layer_indices, list) else None
    of_all = indices is not None and len(indices) == n_layers and indices == list(range(len(indices)))
    if layer_indices is not None and not of_all:
        raise CheckpointError(
            f"{path} has the layer_indices {str(layer_indices)[:60]}; only a transcoder of all {n_layers} layers in "
            "order can be read."
        )


def _of_version_2(content: dict[str, Any], weight_files: WeightFiles) -> dict[str, Any]:
    match content:
        case {
            "base_model": {
                "name": name,
                "n_layers": n_layers,
                "hook_points": {
                    "input": {"attr": input_attr, "dim": d_in},
                    "output": {"attr": output_attr, "dim": d_out},
                    **hook_points,
                },
            },
            "architecture": {
                "d_latent": d_latent,
                "activation": {"type": activation, **more},
                "decoder": dict(decoder),
            },
        }:
            pass
        case _:
            raise CheckpointError(
                f"{weight_files.path(_SETTINGS)} does not describe hook points, activation and decoder of a transcoder."
            )
    if d_in != d_out:
        raise CheckpointError(
            f"{weight_files.path(_SETTINGS)} has inputs of width {d_in!r} and outputs of width {d_out!r}; they must be "
            "equal."
        )
    return {
        "n_layers": n_layers,
        "d_in": d_in,
        "d_latent": d_latent,
        "activation": activation,
        "k": more.get("k", 0),
        "decoder_layout": cast(dict[str, Any], decoder).get("layout", "output_layer"),
        "base_model_name": name,
        "input_attr": input_attr,
        "output_attr": output_attr,
        "layer_indices": hook_points.get("layer_indices"),
    }


def _nonlinearity(settings: Mapping[str, Any], path: object) -> dict[str, Any]:
    activation, k = settings.get("activation"), settings["k"]
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{path} has the activation {activation!r}; only {', '.join(_ACTIVATIONS)} can be read.")
    if activation == "topk":
        return {"kind": "topk", "k": k}
    if activation == "topk_all":
        return {"kind": "topk", "k": 1, "across_layers": True, "weighted": False, "k_total": k}
    return {"kind": activation}


def _hook(settings: Mapping[str, Any], name: str, path: object) -> str:
    if not isinstance(given := settings.get(name), str) or given not in _HOOKS:
        raise CheckpointError(f"{path} has the {name} {given!r}; only {' and '.join(_HOOKS)} can be read.")
    return _HOOKS[given]


def _tensors(weight_files: WeightFiles, n_layers: int) -> dict[str, StoredTensor]:
    """All tensors, under their names in ``clt.safetensors``."""
    if not weight_files.has(_MANIFEST):
        return dict(weight_files.tensors(_TENSORS))
    path = weight_files.path(_MANIFEST)
    match files.read_json(path):
        case {"format": "layer_weights", "files": list(names), **others} if all(
            isinstance(name, str) for name in cast(list[Any], names)
        ):
            names = cast(list[str], names)
            _check_layers(cast(dict[str, Any], others).get("layer_indices"), n_layers, path)
        case _:
            raise CheckpointError(f"{path} does not list files of the format layer_weights.")
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        files.inside(weight_files.place, name)
        tensors |= {_long_name(key): tensor for key, tensor in weight_files.tensors(name).items()}
    # The names are made one by one, because a damaged file may state any number of layers.
    for key in chain(("W_enc", "b_enc"), (f"W_dec_{layer}" for layer in range(n_layers))):
        if _long_name(key) not in tensors:
            raise CheckpointError(f"The files that {path} lists lack the tensor {key!r}.")
    return tensors


def _long_name(name: str) -> str:
    """The name in ``clt.safetensors`` of a tensor in the files of a manifest."""
    layer = name.removeprefix("W_dec_")
    return _NAMES.get(name, f"decoder.decoders.{layer}.W" if layer != name else name)


def _decoders(
    tensors: Mapping[str, StoredTensor], layout: object, shape: tuple[int, int, int], weight_files: WeightFiles
) -> tuple[tuple[StoredTensor, ...], ...]:
    """The decoders of each source layer, whose parts write to successive targets."""
    n_layers, n_features, d_model = shape

    def table(layer: int, others: int) -> StoredTensor:
        return tensor_of(tensors, f"decoder.decoders.{layer}.W", (others, n_features, d_model), weight_files.place)

    if layout == "input_layer":
        return tuple((table(source, n_layers - source).T,) for source in range(n_layers))
    if layout == "output_layer":
        of_target = [table(target, target + 1) for target in range(n_layers)]
        return tuple(
            tuple(of_target[target][source].unsqueeze(1) for target in range(source, n_layers))
            for source in range(n_layers)
        )
    raise CheckpointError(
        f"{weight_files.path(_SETTINGS)} has the decoder layout {layout!r}; only input_layer and output_layer can be "
        "read."
    )


def _read_small(small: Mapping[str, StoredTensor], n_layers: int) -> dict[str, Tensor]:
    read = {name: tensor.read().float() for name, tensor in small.items()}
    if THRESHOLDS in read:
        read[THRESHOLDS] = torch.exp(read[THRESHOLDS])
    return {name: tensor.view(n_layers) if name.endswith("_scale") else tensor for name, tensor in read.items()}
