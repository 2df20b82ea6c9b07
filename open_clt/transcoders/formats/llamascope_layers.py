"""The layout of Llama Scope (package llamascopium) for one transcoder per layer, each in a folder of its own.

    layer{l}_{set}/config.json              sae_type: sae or transcoder, hook_point_in, hook_point_out, act_fn, top_k,
                                            norm_activation, sparsity_include_decoder_norm
    layer{l}_{set}/sae_weights.safetensors  W_E [d_model, feature], b_E [feature], W_D [feature, d_model],
                                            b_D [d_model], which may be absent,
                                            activation_function.log_jumprelu_threshold [feature] (JumpReLU),
                                            dataset_average_activation_norm.{hook} []

A set is named like ``transcoder_8x_k64``. The equations are those of ``llamascope.py`` with one source for each target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.folders import names_of_set, sets_of_layers
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.llamascope import (
    LOG_THRESHOLD,
    Settings,
    assembled,
    check_explained,
    hook_within_blocks,
    nonlinearity,
    norm_names,
    norms_of,
    read_content,
    read_settings,
)
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_FILES = "layer*/sae_weights.safetensors"
_NAME = re.compile(r"layer(?P<layer>[0-9]+)_(?P<set>[^/]+)/sae_weights\.safetensors")
_KINDS = ("sae", "transcoder")


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged; they may be several sets."""
    return bool(sets_of_layers(weight_files.names(_FILES), _NAME))


def open_llamascope_layers(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if files are damaged, or if there are several sets."""
    place = weight_files.place
    names = names_of_set(weight_files, _FILES, _NAME, "layer*_{}")
    paths = [weight_files.path(f"{name.rpartition('/')[0]}/config.json") for name in names]
    contents = [read_content(path, _KINDS) for path in paths]
    settings = _common_settings(contents, paths)
    layers = [weight_files.tensors(name) for name in names]
    d_model, n_features = tensor_of(layers[0], "W_E", (None, None), place).shape
    hooks_in, hooks_out = (_hooks(contents, f"hook_point_{side}", paths) for side in ("in", "out"))
    config = described_config(
        {
            "n_layers": len(layers),
            "n_features": n_features,
            "d_model": d_model,
            "reach": 1,
            "nonlinearity": nonlinearity(settings),
            "input_hook": hook_within_blocks(hooks_in, len(layers), place),
            "target_hook": hook_within_blocks(hooks_out, len(layers), place),
        },
        place,
    )
    weights = StoredWeights(
        tuple(tensor_of(each, "W_E", (d_model, n_features), place).T for each in layers),
        tuple((tensor_of(each, "W_D", (n_features, d_model), place).unsqueeze(1),) for each in layers),
    )
    small = _small(config, settings, layers, place)
    if settings.normalised:
        hooks = zip(layers, hooks_in, hooks_out, strict=True)
        norms = [norms_of(each, [hook_in], [hook_out], place) for each, hook_in, hook_out in hooks]
        small |= {name: [of_layer[name][0] for of_layer in norms] for name in norms[0]}
    for each in layers:
        check_explained(each, {"W_E", "W_D"}, small, place)
    unset = () if settings.normalised else norm_names({name: each[name] for each in layers for name in each})
    return assembled(config, settings, weights, small, place, unset=unset)


def _common_settings(contents: Sequence[dict[str, Any]], paths: Sequence[Path]) -> Settings:
    """The settings that the configs of all layers share; raises CheckpointError if one differs."""
    settings = [read_settings(content, path) for content, path in zip(contents, paths, strict=True)]
    for path, of_layer in zip(paths, settings, strict=True):
        if of_layer != settings[0]:
            raise CheckpointError(
                f"{path} has other settings than layer 0; act_fn, top_k, norm_activation and "
                "sparsity_include_decoder_norm must be the same in all layers."
            )
    if settings[0].activation == "layertopk":
        raise CheckpointError(f"{paths[0]} has act_fn 'layertopk', which transcoders of one layer do not have.")
    return settings[0]


def _hooks(contents: Sequence[dict[str, Any]], name: str, paths: Sequence[Path]) -> tuple[str, ...]:
    """The hooks of all layers under a name in their configs."""
    hooks: list[str] = []
    for content, path in zip(contents, paths, strict=True):
        hook = content.get(name)
        if not isinstance(hook, str):
            raise CheckpointError(f"{path} has {name} {hook!r}; it must be the name of a hook.")
        hooks.append(hook)
    return tuple(hooks)


def _small(
    config: CrossLayerConfig, settings: Settings, layers: Sequence[Mapping[str, StoredTensor]], place: Path
) -> dict[str, list[StoredTensor]]:
    """Biases and thresholds of each layer."""
    width, d_model = config.n_features, config.d_model
    small = {"b_enc": [tensor_of(each, "b_E", (width,), place) for each in layers]}
    if any("b_D" in each for each in layers):
        small["b_dec"] = [tensor_of(each, "b_D", (d_model,), place) for each in layers]
    if settings.activation == "jumprelu":
        small[THRESHOLDS] = [tensor_of(each, LOG_THRESHOLD, (width,), place) for each in layers]
    return small
