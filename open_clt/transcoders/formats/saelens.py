"""The layout of SAELens for transcoders, which is one folder for each layer.

    {folder}/cfg.json                 architecture: transcoder, skip_transcoder, jumprelu_transcoder or
                                      jumprelu_skip_transcoder; apply_b_dec_to_input: false;
                                      normalize_activations: none;
                                      metadata: hook_name (blocks.{l}.ln2.hook_normalized), hook_name_out, model_name
    {folder}/sae_weights.safetensors  W_enc [d_model, feature], W_dec [feature, d_model], b_enc [feature],
                                      b_dec [d_model], threshold [feature] (JumpReLU), W_skip [d_model, d_model] (skip)

    p = x @ W_enc + b_enc
    y = a @ W_dec + b_dec + x @ W_skip.T, where a = relu(p) * (p > threshold)

The hooks say which layer a folder holds. Negative thresholds act as 0, because of the ReLU. A directory that holds the
two files itself is a transcoder of one layer. Folders may lie in others, as in ``layer_0/width_16k/average_l0_76``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import renamed, transcoders_per_layer
from open_clt.transcoders.formats.llamascope import hook_within_blocks
from open_clt.transcoders.formats.saelens_settings import (
    ARCHITECTURES,
    NAMES,
    SETTINGS,
    TENSORS,
    LayerSettings,
    read_settings,
)
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles

_FOLDERS = ("*/", "*[0-9]*/*/", "*[0-9]*/*/*/")
"""Patterns of the folders of layers; one that lies in others begins with a folder whose name has a number."""
_LAYER_IN_NAME = re.compile(r"(?:layer|block)s?[._-]?(\d{1,6})(?!\d)")
_LONGEST_LIST = 100
"""Largest number of characters of the patterns that a sentence lists."""


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged."""
    return any(
        weight_files.has(f"{folder}{SETTINGS}") and weight_files.has(f"{folder}{TENSORS}")
        for folder in _folders(weight_files)
    )


def open_saelens(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if they are damaged or cannot be expressed."""
    place = weight_files.place
    layers = _in_order(weight_files)
    jumprelu = layers[0].architecture.startswith("jumprelu")
    hooks = {
        f"{side}_hook": hook_within_blocks(names, len(layers), place)
        for side, names in (
            ("input", tuple(layer.hook_in for layer in layers)),
            ("target", tuple(layer.hook_out for layer in layers)),
        )
    }
    values = {"nonlinearity": {"kind": "jumprelu" if jumprelu else "relu"}, **hooks}
    values |= {"language_model": layers[0].language_model} if layers[0].language_model else {}
    opened = transcoders_per_layer([_tensors(weight_files, layer) for layer in layers], values, place)
    return replace(opened, small=partial(_at_least_zero, opened.small)) if jumprelu else opened


def _folders(weight_files: WeightFiles) -> list[str]:
    """The folders of transcoders, each with ``/`` at its end; only the empty name for the directory itself.

    Of folders within folders, these are the outermost ones. A folder that lacks one of its two files is damaged, so
    each of the files names a folder.
    """
    for pattern in () if weight_files.has(TENSORS) else _FOLDERS:
        if with_tensors := weight_files.names(f"{pattern}{TENSORS}"):
            names = (*with_tensors, *weight_files.names(f"{pattern}{SETTINGS}"))
            return sorted({name.rpartition("/")[0] + "/" for name in names})
    return [""]


def _in_order(weight_files: WeightFiles) -> list[LayerSettings]:
    """The settings of all layers in order; raises CheckpointError unless there is one transcoder of each layer."""
    place, folders = weight_files.place, _folders(weight_files)
    in_names = {folder: int(found[1]) for folder in folders if (found := _LAYER_IN_NAME.search(folder))}
    if len(in_names) == len(folders):  # so that no settings are fetched from the hub if there are several sets
        _check_different(in_names, place)
    layers: list[LayerSettings] = []
    for folder in folders:
        path = weight_files.path(f"{folder}{SETTINGS}")
        layers.append(read_settings(files.read_json(path), folder, path))
    _check_different({each.folder: each.layer for each in layers}, place)
    if len(models := sorted({each.language_model or "" for each in layers})) > 1:
        raise CheckpointError(f"{place} holds transcoders of the models {models[0][:60]!r} and {models[1][:60]!r}.")
    layers.sort(key=lambda each: each.layer)
    last = layers[-1].layer
    missing = next((layer for layer, each in enumerate(layers) if each.layer != layer), None)
    if missing is not None:
        raise CheckpointError(
            f"{place} holds a transcoder of layer {last} and none of layer {missing}; give a directory that holds one "
            "folder for each layer, from 0 to the last one of the language model."
        )
    return layers


def _check_different(layers: Mapping[str, int], place: Path) -> None:
    """Raise CheckpointError if several folders are of one layer; ``layers`` has the number of the layer of each folder.

    The message lists patterns that select one folder for each layer.
    """
    folders: dict[int, str] = {}
    for folder, layer in layers.items():
        if (other := folders.setdefault(layer, folder)) is not folder:
            raise CheckpointError(
                f"{place} holds several transcoders of layer {layer}, in {_short(other)} and {_short(folder)}; "
                f"{_choice(layers)}."
            )


def _choice(layers: Mapping[str, int]) -> str:
    """How to select one folder for each layer."""
    selected: dict[str, list[int]] = {}
    for folder, layer in layers.items():
        found = _LAYER_IN_NAME.search(folder)
        if found is not None and int(found[1]) == layer:
            pattern = f"{folder[: found.start(1)]}*{folder[found.end(1) :]}"
            for end in re.finditer("/", pattern):  # the pattern, and those of the folders above
                selected.setdefault(pattern[: end.start()], []).append(layer)
    whole = {pattern for pattern, of_layers in selected.items() if sorted(of_layers) == sorted(set(layers.values()))}
    listed: list[str] = []
    for pattern in sorted(pattern for pattern in whole if pattern.rpartition("/")[0] not in whole):
        if len(", ".join([*listed, pattern])) <= _LONGEST_LIST:
            listed.append(pattern)
    if not listed:
        return "write a pattern with * after the name of the directory that selects one folder for each layer"
    return f"write a pattern such as {', '.join(map(repr, listed))} after the name of the directory"


def _short(folder: str) -> str:
    return repr(folder if len(folder) <= _LONGEST_LIST // 2 else f"{folder[: _LONGEST_LIST // 2]}...")


def _tensors(weight_files: WeightFiles, layer: LayerSettings) -> dict[str, StoredTensor]:
    """The tensors of a layer with the names and shapes of circuit-tracer's layout."""
    names = NAMES | ARCHITECTURES[layer.architecture]
    stored = weight_files.tensors(f"{layer.folder}{TENSORS}")
    tensors = renamed(stored, names, weight_files.place / layer.folder, transposed=("W_enc",))
    layer.check_sizes(tensors)
    return tensors


def _at_least_zero(read_small: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Small tensors with thresholds of at least 0; those that are not finite stay, so that they are found."""
    small = dict(read_small())
    thresholds = small[THRESHOLDS]
    small[THRESHOLDS] = torch.where(thresholds.isfinite(), thresholds.clamp(min=0), thresholds)
    return small
