"""Gemma Scope 2's layout of one transcoder per layer, each in a folder of its own.

    layer_{l}_{set}/params.safetensors  w_enc [d_model, feature], w_dec [feature, d_model], b_enc [feature],
                                        b_dec [d_model], threshold [feature]; perhaps
                                        affine_skip_connection [d_model, d_model]

    y = a @ w_dec + b_dec + x @ affine_skip_connection

A set is named like ``width_16k_l0_small`` or ``width_16k_l0_small_affine``. Encoders read the output of the norm before
the MLP, and the targets are the outputs of the norm after the MLP. The files do not name the language model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from open_clt.files import StoredTensor
from open_clt.transcoders.formats.folders import names_of_set, sets_of_layers
from open_clt.transcoders.formats.layers import SKIP, THRESHOLD, renamed, transcoders_per_layer
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles

_FILES = "layer_*/params.safetensors"
_NAME = re.compile(r"layer_(?P<layer>[0-9]+)_(?P<set>width_[^/]+)/params\.safetensors")
_NAMES = {
    "w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": THRESHOLD,
    "affine_skip_connection": SKIP,
}  # fmt: skip
_HOOKS = {"input_hook": "mlp.hook_in", "target_hook": "hook_mlp_out"}


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged; they may be several sets."""
    return bool(sets_of_layers(weight_files.names(_FILES), _NAME))


def open_gemma_scope_2_layers(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if files are damaged, or if there are several sets."""
    place = weight_files.place
    names = names_of_set(weight_files, _FILES, _NAME, "layer_*_{}")
    layers = [as_circuit_tracer(weight_files.tensors(name), place) for name in names]
    return transcoders_per_layer(layers, {"nonlinearity": {"kind": "jumprelu"}, **_HOOKS}, place)


def as_circuit_tracer(tensors: Mapping[str, StoredTensor], place: Path) -> dict[str, StoredTensor]:
    """The tensors of one layer with the names and shapes of circuit-tracer's layout.

    Raises CheckpointError if one of them is missing or has another number of axes; ``place`` holds them.
    """
    return renamed(tensors, _NAMES, place, transposed=("w_enc", "affine_skip_connection"), may_lack=(SKIP,))
