"""Gemma Scope 1's layout of one transcoder per layer, each in folders of its own.

    layer_{l}/{set}/average_l0_{n}/params.npz  W_enc [d_model, feature], W_dec [feature, d_model], b_enc [feature],
                                               b_dec [d_model], threshold [feature]

    y = a @ W_dec + b_dec

A set is named like ``width_16k``. Encoders read the output of the norm before the MLP without its weight, because
Gemma Scope folds that weight into the MLP, and the targets are the outputs of the norm after the MLP
(https://arxiv.org/abs/2408.05147v2, page 18). The files do not name the language model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from open_clt.files import StoredTensor
from open_clt.transcoders.formats.folders import names_of_set, sets_of_layers
from open_clt.transcoders.formats.layers import THRESHOLD, renamed, transcoders_per_layer
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles

_FILES = "layer_*/width_*/average_l0_*/params.npz"
_NAME = re.compile(r"layer_(?P<layer>[0-9]+)/(?P<set>width_[^/]+)/average_l0_[^/]+/params\.npz")
_NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": THRESHOLD}
_HOOKS = {"input_hook": "ln2.hook_normalized", "target_hook": "hook_mlp_out"}


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of transcoders of this layout, whole or damaged; they may be several sets."""
    return bool(sets_of_layers(weight_files.names(_FILES), _NAME))


def open_gemma_scope_1(weight_files: WeightFiles) -> StoredTranscoder:
    """Open transcoders in this layout; raises CheckpointError if files are damaged, or if there are several sets."""
    place = weight_files.place
    names = names_of_set(weight_files, _FILES, _NAME, "layer_*/{}")
    layers = [as_circuit_tracer(weight_files.tensors(name), place) for name in names]
    return transcoders_per_layer(layers, {"nonlinearity": {"kind": "jumprelu"}, **_HOOKS}, place)


def as_circuit_tracer(tensors: Mapping[str, StoredTensor], place: Path) -> dict[str, StoredTensor]:
    """The tensors of one layer with the names and shapes of circuit-tracer's layout.

    Raises CheckpointError if one of them is missing or has another number of axes; ``place`` holds them.
    """
    return renamed(tensors, _NAMES, place, transposed=("W_enc",))
