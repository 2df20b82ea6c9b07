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
two files itself is a transcoder of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.files import StoredTensor
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import SKIP, THRESHOLD, renamed, transcoders_per_layer
from open_clt.transcoders.formats.llamascope import HOOK, hook_within_blocks
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles

_SETTINGS, _TENSORS = "cfg.json", "sae_weights.safetensors"
_LONGEST_HOOK = 100
"""Largest number of characters of the name of a hook."""
_NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_ARCHITECTURES = {
    "transcoder": {},
    "skip_transcoder": {SKIP: SKIP},
    "jumprelu_transcoder": {"threshold": THRESHOLD},
    "jumprelu_skip_transcoder": {"threshold": THRESHOLD, SKIP: SKIP},
}
"""Our names of the tensors that an architecture has besides weights and biases."""
_LEGAL: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("apply_b_dec_to_input", True, (False,)),
    ("normalize_activations", "none", ("none", None)),
    ("reshape_activations", "none", ("none", None)),
    ("activation_fn", "relu", ("relu",)),
    ("activation_fn_str", "relu", ("relu",)),
)
"""Settings, with the values that SAELens takes where they are left out, and those that can be expressed."""


@final
@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The transcoder of one layer."""

    folder: str
    architecture: str
    hook_in: str
    hook_out: str
    language_model: str | None
    tensors: Mapping[str, StoredTensor]
    """The tensors with the names and shapes of circuit-tracer's layout."""

    @property
    def number(self) -> int:
        """Number of the layer in the language model, which the hook that is read states."""
        match = HOOK.fullmatch(self.hook_in)
        assert match is not None
        return int(match[1])

    __repr__ = short_repr


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged."""
    return any(weight_files.has(f"{folder}{_SETTINGS}") for folder in _folders(weight_files, _TENSORS))


def open_saelens(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if they are damaged or cannot be expressed."""
    place = weight_files.place
    # A folder that lacks one of its files is damaged, so each of the two files names a folder.
    folders = sorted(_folders(weight_files, _TENSORS) | _folders(weight_files, _SETTINGS))
    layers = _in_order([_read_layer(weight_files, folder) for folder in folders], place)
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
    opened = transcoders_per_layer([layer.tensors for layer in layers], values, place)
    return replace(opened, small=partial(_at_least_zero, opened.small)) if jumprelu else opened


def _folders(weight_files: WeightFiles, name: str) -> set[str]:
    """The folders that hold a file, each with ``/`` at its end; only the empty name if the directory itself does."""
    if weight_files.has(_TENSORS):
        return {""}
    return {found.removesuffix(name) for found in weight_files.names(f"*/{name}")}


def _read_layer(weight_files: WeightFiles, folder: str) -> _Layer:
    path = weight_files.path(f"{folder}{_SETTINGS}")
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold the settings of a transcoder.")
    settings = cast(dict[str, Any], content)
    architecture = settings.get("architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"{path} has the architecture {str(architecture)[:60]!r}; it must be {', '.join(_ARCHITECTURES)}."
        )
    for name, default, legal in _LEGAL:
        if settings.get(name, default) not in legal:
            raise CheckpointError(
                f"{path} has {name} {str(settings.get(name, default))[:60]!r}; only {legal[0]!r} can be read."
            )
    given = settings.get("metadata")
    metadata: dict[str, Any] = settings | (cast(dict[str, Any], given) if isinstance(given, dict) else {})
    for name in ("hook_head_index", "hook_head_index_out"):
        if metadata.get(name) is not None:
            raise CheckpointError(
                f"{path} has {name} {str(metadata[name])[:60]!r}; transcoders of one head are not read."
            )
    names = _NAMES | _ARCHITECTURES[architecture]
    tensors = renamed(
        weight_files.tensors(f"{folder}{_TENSORS}"), names, weight_files.place / folder, transposed=("W_enc",)
    )
    model = metadata.get("model_name")
    return _Layer(
        folder=folder,
        architecture=architecture,
        hook_in=_hook(metadata, "hook_name", path),
        hook_out=_hook(metadata, "hook_name_out", path),
        language_model=model if isinstance(model, str) else None,
        tensors=tensors,
    )


def _hook(metadata: Mapping[str, Any], name: str, path: Path) -> str:
    hook = metadata.get(name)
    if not isinstance(hook, str) or len(hook) > _LONGEST_HOOK or HOOK.fullmatch(hook) is None:
        raise CheckpointError(
            f"{path} has {name} {str(hook)[:60]!r}; it must be a hook of a block, such as blocks.0.hook_mlp_out."
        )
    return hook


def _in_order(layers: list[_Layer], place: Path) -> list[_Layer]:
    """The layers in the order of their numbers; raises CheckpointError unless there is one of each."""
    by_number: dict[int, _Layer] = {}
    for layer in layers:
        if (other := by_number.setdefault(layer.number, layer)) is not layer:
            raise CheckpointError(
                f"{place} holds several transcoders of layer {layer.number}, in {other.folder!r} and {layer.folder!r}; "
                "write a pattern with * after the name of the directory that selects one folder for each layer."
            )
    if len(models := sorted({layer.language_model or "" for layer in layers})) > 1:
        raise CheckpointError(f"{place} holds transcoders of the models {models[0][:60]!r} and {models[1][:60]!r}.")
    last = max(by_number)
    missing = next((number for number in range(last) if number not in by_number), None)
    if missing is not None:
        raise CheckpointError(
            f"{place} holds a transcoder of layer {last} and none of layer {missing}; give a directory that holds one "
            "folder for each layer, from 0 to the last one of the language model."
        )
    return [by_number[number] for number in range(last + 1)]


def _at_least_zero(read_small: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Small tensors with thresholds of at least 0; those that are not finite stay, so that they are found."""
    small = dict(read_small())
    thresholds = small[THRESHOLDS]
    small[THRESHOLDS] = torch.where(thresholds.isfinite(), thresholds.clamp(min=0), thresholds)
    return small
