"""The layout of Llama Scope (package llamascopium) for a cross-layer transcoder, whose decoders are stored by target.

    config.json              sae_type: clt, hook_points_in, hook_points_out, act_fn, top_k, norm_activation,
                             sparsity_include_decoder_norm
    sae_weights.safetensors  W_E [layer, d_model, feature], b_E [layer, feature],
                             W_D.{t} [t + 1, feature, d_model], b_D.{t} [d_model],
                             activation_function.log_jumprelu_threshold [layer, feature] (JumpReLU),
                             dataset_average_activation_norm.{hook} []

    pre[s] = x[s] * sqrt(d_model) / norm_in[s] @ W_E[s] + b_E[s]
    y[t] = (sum of a[s] @ W_D.{t}[s] over s <= t, + b_D.{t}) * norm_out[t] / sqrt(d_model)

With ``sparsity_include_decoder_norm`` a feature is gated by its pre-activation times its decoder norm, so its threshold
is divided by that norm here. With ``norm_activation: inference`` norms are part of the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.finite import check_finite
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS = "config.json"
_TENSORS = "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm"
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_LARGEST_THRESHOLD = 1e30
"""Threshold of a feature that is never active, such as one whose decoder is zero."""


@final
@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings of a transcoder that decide how it is read."""

    hooks_in: tuple[str, ...]
    hooks_out: tuple[str, ...]
    activation: str
    k: object
    weighted: bool
    """Whether features are gated by their pre-activation times their decoder norm."""
    normalised: bool
    """Whether activations are divided by their average norms in the data set."""

    __repr__ = short_repr


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and weight_files.has(_TENSORS)


def open_llamascope(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a cross-layer transcoder in this layout; raises CheckpointError if it is damaged or cannot be expressed."""
    place = weight_files.place
    settings = _read_settings(weight_files.path(_SETTINGS))
    tensors = weight_files.tensors(_TENSORS)
    n_layers, d_model, n_features = tensor_of(tensors, "W_E", (None, None, None), place).shape
    config = described_config(
        {
            "n_layers": n_layers,
            "n_features": n_features,
            "d_model": d_model,
            "nonlinearity": _nonlinearity(settings, place),
            "input_hook": _hook(settings.hooks_in, n_layers, place),
            "target_hook": _hook(settings.hooks_out, n_layers, place),
        },
        place,
    )
    stored = [tensor_of(tensors, f"W_D.{t}", (t + 1, n_features, d_model), place) for t in range(n_layers)]
    weights = StoredWeights(
        tuple(tensors["W_E"][layer].T for layer in range(n_layers)),
        tuple(
            tuple(stored[target][source].unsqueeze(1) for target in range(source, n_layers))
            for source in range(n_layers)
        ),
    )
    small = _small(config, settings, tensors, place)
    return StoredTranscoder(
        place=place, config=config, weights=weights, small=partial(_read_small, config, settings, small, weights)
    )


def _read_settings(path: Path) -> _Settings:
    """The settings; raises CheckpointError if they cannot be expressed."""
    content = files.read_json(path)
    if not isinstance(content, dict) or cast(dict[str, Any], content).get("sae_type") != "clt":
        kind = cast(dict[str, Any], content).get("sae_type") if isinstance(content, dict) else None
        raise CheckpointError(f"{path} has sae_type {kind!r}; only 'clt' can be read.")
    settings = cast(dict[str, Any], content)
    for name, default, legal in (
        ("norm_activation", "dataset-wise", ("dataset-wise", "inference")),
        ("sparsity_include_decoder_norm", True, (True, False)),
        ("act_fn", "relu", ("relu", "jumprelu", "topk", "layertopk")),
    ):
        if settings.get(name, default) not in legal:
            raise CheckpointError(f"{path} has {name} {settings[name]!r}; it must be {' or '.join(map(repr, legal))}.")
    hooks: list[tuple[str, ...]] = []
    for name in ("hook_points_in", "hook_points_out"):
        listed = settings.get(name)
        if not isinstance(listed, list) or not all(isinstance(hook, str) for hook in cast(list[object], listed)):
            raise CheckpointError(f"{path} has {name} {listed!r}; it must be the list of the hooks of all layers.")
        hooks.append(tuple(cast(list[str], listed)))
    return _Settings(
        hooks_in=hooks[0],
        hooks_out=hooks[1],
        activation=settings.get("act_fn", "relu"),
        k=settings.get("top_k", 50),
        weighted=settings.get("sparsity_include_decoder_norm", True),
        normalised=settings.get("norm_activation", "dataset-wise") == "dataset-wise",
    )


def _nonlinearity(settings: _Settings, place: Path) -> dict[str, Any]:
    match settings.activation:
        case "layertopk":
            across = {"across_layers": True, "weighted": settings.weighted}
            return {"kind": "topk", "k": 1, "k_total": settings.k, **across}  # k is unused with k_total
        case "topk" if settings.weighted:
            raise CheckpointError(
                f"{place} has act_fn 'topk' with sparsity_include_decoder_norm; features that are ranked by their "
                "decoder norms within a layer cannot be read."
            )
        case "topk":
            return {"kind": "topk", "k": settings.k}
        case activation:
            return {"kind": activation}


def _hook(hooks: tuple[str, ...], n_layers: int, place: Path) -> str:
    """The name within a block of the hooks of all layers."""
    found = [_HOOK.fullmatch(hook) for hook in hooks]
    names = {match[2] for match in found if match is not None}
    if [match and match[1] for match in found] != [str(layer) for layer in range(n_layers)] or len(names) != 1:
        listed = ", ".join(hooks[:3])[:80]
        raise CheckpointError(
            f"{place} has the hooks {listed}, ... of {len(hooks)} layers; it must have one hook, such as "
            f"blocks.0.hook_mlp_out, of each of the {n_layers} layers in order."
        )
    return names.pop()


def _small(
    config: CrossLayerConfig, settings: _Settings, tensors: Mapping[str, StoredTensor], place: Path
) -> dict[str, list[StoredTensor]]:
    """Biases, thresholds and norms in the files, layer by layer."""
    n_layers, width = config.n_layers, config.n_features
    small = {
        "b_enc": [tensor_of(tensors, "b_E", (n_layers, width), place)[layer] for layer in range(n_layers)],
        "b_dec": [tensor_of(tensors, f"b_D.{layer}", (config.d_model,), place) for layer in range(n_layers)],
    }
    if settings.activation == "jumprelu":
        logarithms = tensor_of(tensors, _LOG_THRESHOLD, (n_layers, width), place)
        small[THRESHOLDS] = [logarithms[layer] for layer in range(n_layers)]
    if settings.normalised:
        for name, hooks in (("input_scale", settings.hooks_in), ("target_scale", settings.hooks_out)):
            norms = [tensor_of(tensors, f"{_NORM}.{hook}", (), place) for hook in hooks]
            small[f"standardisation.{name}"] = norms
    known = {"W_E", "b_E", *(f"W_D.{layer}" for layer in range(n_layers))}
    known |= {tensor.name for of_layers in small.values() for tensor in of_layers}
    if unknown := sorted(name for name in tensors.keys() - known if not name.startswith(_NORM)):
        raise CheckpointError(f"{place} holds the tensor {unknown[0]!r}, which its {_SETTINGS} does not explain.")
    return small


def _read_small(
    config: CrossLayerConfig, settings: _Settings, small: Mapping[str, list[StoredTensor]], weights: StoredWeights
) -> dict[str, Tensor]:
    read = {name: torch.stack([each.read().float() for each in layers]) for name, layers in small.items()}
    for name in ("standardisation.input_scale", "standardisation.target_scale"):
        if name in read:
            read[name] /= math.sqrt(config.d_model)
    if THRESHOLDS in read:
        thresholds = read[THRESHOLDS].exp()
        first = small[THRESHOLDS][0]
        check_finite(thresholds, f"The exponential of {first.name!r} of {first.place}", error=CheckpointError)
        norms = weights.decoder_norms if settings.weighted else torch.ones_like(thresholds)
        read[THRESHOLDS] = (thresholds / norms).clamp(max=_LARGEST_THRESHOLD)
    return read
