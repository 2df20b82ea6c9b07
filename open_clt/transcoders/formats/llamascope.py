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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import ScaledTensor, StoredTensor, Table
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
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_LARGEST_THRESHOLD = 1e30
"""Threshold of a feature that is never active, such as one whose decoder is zero."""


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a transcoder that decide how it is read."""

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
    place, path = weight_files.place, weight_files.path(_SETTINGS)
    content = read_content(path, ("clt",))
    settings = read_settings(content, path)
    hooks_in, hooks_out = (_listed(content, f"hook_points_{side}", path) for side in ("in", "out"))
    tensors = weight_files.tensors(_TENSORS)
    n_layers, d_model, n_features = tensor_of(tensors, "W_E", (None, None, None), place).shape
    config = described_config(
        {
            "n_layers": n_layers,
            "n_features": n_features,
            "d_model": d_model,
            "nonlinearity": nonlinearity(settings),
            "input_hook": hook_within_blocks(hooks_in, n_layers, place),
            "target_hook": hook_within_blocks(hooks_out, n_layers, place),
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
    if settings.normalised:
        small |= norms_of(tensors, hooks_in, hooks_out, place)
    known = {"W_E", "b_E", *(f"W_D.{layer}" for layer in range(n_layers))}
    check_explained(tensors, known, small, place)
    unset = () if settings.normalised else norm_names(tensors)
    return assembled(config, settings, weights, small, place, unset=unset)


def norm_names(tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """The names of all average norms, to which the package gives no numbers once they are part of the weights."""
    return tuple(name for name in tensors if name.startswith(_NORM))


def read_content(path: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The content of a config; raises CheckpointError if it is not of one of these kinds."""
    content = files.read_json(path)
    kind = cast(dict[str, Any], content).get("sae_type") if isinstance(content, dict) else None
    if kind not in kinds:
        raise CheckpointError(f"{path} has sae_type {kind!r}; it must be {' or '.join(map(repr, kinds))}.")
    return cast(dict[str, Any], content)


def read_settings(content: dict[str, Any], path: Path) -> Settings:
    """The settings of a config; raises CheckpointError if they cannot be expressed."""
    for name, default, legal in (
        ("norm_activation", "dataset-wise", ("dataset-wise", "inference")),
        ("sparsity_include_decoder_norm", True, (True, False)),
        ("act_fn", "relu", ("relu", "jumprelu", "topk", "layertopk")),
    ):
        if content.get(name, default) not in legal:
            raise CheckpointError(f"{path} has {name} {content[name]!r}; it must be {' or '.join(map(repr, legal))}.")
    return Settings(
        activation=content.get("act_fn", "relu"),
        k=content.get("top_k", 50),
        weighted=bool(content.get("sparsity_include_decoder_norm", True)),
        normalised=content.get("norm_activation", "dataset-wise") == "dataset-wise",
    )


def nonlinearity(settings: Settings) -> dict[str, Any]:
    """The values of the config of the nonlinearity."""
    match settings.activation:
        case "layertopk":
            across = {"across_layers": True, "weighted": settings.weighted}
            return {"kind": "topk", "k": 1, "k_total": settings.k, **across}  # k is unused with k_total
        case "topk":
            return {"kind": "topk", "k": settings.k}
        case activation:
            return {"kind": activation}


def _listed(content: dict[str, Any], name: str, path: Path) -> tuple[str, ...]:
    """The names in a setting that is a list of hooks."""
    listed = content.get(name)
    if not isinstance(listed, list) or not all(isinstance(hook, str) for hook in cast(list[object], listed)):
        raise CheckpointError(f"{path} has {name} {listed!r}; it must be the list of the hooks of all layers.")
    return tuple(cast(list[str], listed))


def hook_within_blocks(hooks: tuple[str, ...], n_layers: int, place: Path) -> str:
    """The name within a block that the hooks of all layers have; raises CheckpointError if they differ."""
    found = [HOOK.fullmatch(hook) for hook in hooks]
    names = {match[2] for match in found if match is not None}
    if [match and match[1] for match in found] != [str(layer) for layer in range(n_layers)] or len(names) != 1:
        listed = ", ".join(hooks[:3])[:80]
        raise CheckpointError(
            f"{place} has the hooks {listed}, ... of {len(hooks)} layers; it must have one hook, such as "
            f"blocks.0.hook_mlp_out, of each of the {n_layers} layers in order."
        )
    return names.pop()


def norms_of(
    tensors: Mapping[str, StoredTensor], hooks_in: Sequence[str], hooks_out: Sequence[str], place: Path
) -> dict[str, list[StoredTensor]]:
    """The average norms of the inputs and targets of each layer, under the names of the scales of a transcoder."""
    return {
        f"standardisation.{name}": [tensor_of(tensors, f"{_NORM}.{hook}", (), place) for hook in hooks]
        for name, hooks in (("input_scale", hooks_in), ("target_scale", hooks_out))
    }


def check_explained(
    tensors: Mapping[str, StoredTensor], known: set[str], small: Mapping[str, Sequence[StoredTensor]], place: Path
) -> None:
    """Raise CheckpointError if a tensor is neither known, nor small, nor a norm."""
    explained = known | {tensor.name for of_layers in small.values() for tensor in of_layers}
    if unknown := sorted(name for name in tensors.keys() - explained if not name.startswith(_NORM)):
        raise CheckpointError(f"{place} holds the tensor {unknown[0]!r}, which its {_SETTINGS} does not explain.")


def _small(
    config: CrossLayerConfig, settings: Settings, tensors: Mapping[str, StoredTensor], place: Path
) -> dict[str, list[StoredTensor]]:
    """Biases and thresholds in the files, layer by layer."""
    n_layers, width = config.n_layers, config.n_features
    small = {
        "b_enc": [tensor_of(tensors, "b_E", (n_layers, width), place)[layer] for layer in range(n_layers)],
        "b_dec": [tensor_of(tensors, f"b_D.{layer}", (config.d_model,), place) for layer in range(n_layers)],
    }
    if settings.activation == "jumprelu":
        logarithms = tensor_of(tensors, LOG_THRESHOLD, (n_layers, width), place)
        small[THRESHOLDS] = [logarithms[layer] for layer in range(n_layers)]
    return small


def assembled(
    config: CrossLayerConfig,
    settings: Settings,
    weights: StoredWeights,
    small: Mapping[str, Sequence[StoredTensor]],
    place: Path,
    *,
    unset: tuple[str, ...] = (),
) -> StoredTranscoder:
    """The transcoder with these weights, and with small tensors layer by layer, which have logarithms of thresholds.

    TopK within a layer ranks by pre-activation times decoder norm if ``weighted``, so encoders are multiplied by the
    norms, and decoders divided by them. The activations of such features are larger by these norms than those of the
    package; what they write is the same.
    """
    ranked = settings.activation == "topk" and settings.weighted
    return StoredTranscoder(
        place=place,
        config=config,
        weights=_with_unit_norms(weights) if ranked else weights,
        small=partial(_read_small, config, settings, small, weights),
        unset=unset,
    )


def _with_unit_norms(weights: StoredWeights) -> StoredWeights:
    """The weights of the same features with decoders of norm 1."""
    encoders: list[Table] = []
    decoders: list[tuple[Table, ...]] = []
    for layer, (encoder, parts) in enumerate(zip(weights.encoders, weights.decoders, strict=True)):
        encoders.append(ScaledTensor(encoder, partial(_norms, weights, layer), of_rows=True))
        inverse = partial(_norms, weights, layer, power=-1)
        decoders.append(tuple(ScaledTensor(part, inverse, of_rows=True) for part in parts))
    return StoredWeights(tuple(encoders), tuple(decoders))


def _norms(weights: StoredWeights, layer: int | slice, power: int = 1) -> Float[Tensor, "*layer feature"]:
    """Decoder norms to a power; 1 for a decoder of zeros, which writes nothing."""
    norms = weights.decoder_norms[layer]
    return torch.where(norms > 0, norms, 1.0) ** power


def _read_small(
    config: CrossLayerConfig, settings: Settings, small: Mapping[str, Sequence[StoredTensor]], weights: StoredWeights
) -> dict[str, Tensor]:
    read = {name: torch.stack([each.read().float() for each in layers]) for name, layers in small.items()}
    for name in ("standardisation.input_scale", "standardisation.target_scale"):
        if name in read:
            read[name] /= math.sqrt(config.d_model)
    if settings.activation == "topk" and settings.weighted:
        read["b_enc"] *= _norms(weights, slice(None))
    if THRESHOLDS in read:
        thresholds = read[THRESHOLDS].exp()
        first = small[THRESHOLDS][0]
        check_finite(thresholds, f"The exponential of {first.name!r} of {first.place}", error=CheckpointError)
        norms = weights.decoder_norms if settings.weighted else torch.ones_like(thresholds)
        read[THRESHOLDS] = (thresholds / norms).clamp(max=_LARGEST_THRESHOLD)
    return read
