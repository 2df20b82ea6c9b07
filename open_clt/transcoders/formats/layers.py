"""What readers of layouts with one set of tensors per layer share."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_clt.config import CrossLayerConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import StoredTensor
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import check_known, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

THRESHOLD, SKIP = "activation_function.threshold", "W_skip"
_OF_ONE_LAYER = {"W_enc", "W_dec", "b_enc", "b_dec", THRESHOLD, SKIP}
"""Names of the tensors of a transcoder of one layer in circuit-tracer's layout."""


def check_names(layers: Sequence[Mapping[str, StoredTensor]], known: set[str], place: Path) -> None:
    """Raise CheckpointError if a layer holds an unknown tensor, or other tensors than the first layer."""
    for layer, tensors in enumerate(layers):
        check_known(tensors, known, f"Layer {layer} in {place}")
        if different := sorted(tensors.keys() ^ layers[0].keys()):
            raise CheckpointError(
                f"Layers 0 and {layer} in {place} differ: only one of them holds the tensor {different[0]!r}; all "
                "layers must hold the same tensors."
            )


def transcoders_per_layer(
    layers: Sequence[Mapping[str, StoredTensor]], values: dict[str, Any], place: Path
) -> StoredTranscoder:
    """A transcoder whose features write to their own layer only, of the tensors of each layer.

    The tensors have the names and shapes of circuit-tracer: W_enc and W_dec [feature, d_model], b_enc [feature], b_dec
    [d_model], perhaps activation_function.threshold [feature] and W_skip [d_model, d_model], which is applied as
    ``x @ W_skip.T``. ``values`` are the nonlinearity, the hooks and the language model of the config. Raises
    CheckpointError if the tensors or the values do not describe a transcoder; ``place`` holds them.
    """
    check_names(layers, _OF_ONE_LAYER, place)
    table = tuple(tensor_of(layers[0], "W_enc", (None, None), place).shape)
    n_features, d_model = table
    shapes = {
        "b_enc": (n_features,),
        "b_dec": (d_model,),
        **({THRESHOLD: (n_features,)} if THRESHOLD in layers[0] else {}),
        **({SKIP: (d_model, d_model)} if SKIP in layers[0] else {}),
    }
    sizes = {"n_layers": len(layers), "n_features": n_features, "d_model": d_model}
    config = described_config({**sizes, "reach": 1, "skip": SKIP in layers[0], **values}, place)
    weights = StoredWeights(
        tuple(tensor_of(each, "W_enc", table, place) for each in layers),
        tuple((tensor_of(each, "W_dec", table, place).unsqueeze(1),) for each in layers),
    )
    small = {
        THRESHOLDS if name == THRESHOLD else name: [tensor_of(each, name, shape, place) for each in layers]
        for name, shape in shapes.items()
    }
    return StoredTranscoder(place=place, config=config, weights=weights, small=read_stacked(small))


def renamed(
    tensors: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    place: Path,
    *,
    transposed: Container[str],
    may_lack: Container[str] = (),
) -> dict[str, StoredTensor]:
    """The tensors of a layer under the names of circuit-tracer's layout, which ``names`` gives for each name.

    Raises CheckpointError if a tensor is missing that is not in ``may_lack``, which holds names of circuit-tracer, if
    there is an unknown one, or if one that is transposed has other than two axes.
    """
    check_known(tensors, names, place)
    present = {name: new for name, new in names.items() if name in tensors or new not in may_lack}
    return {
        new: tensor_of(tensors, name, (None, None), place).T
        if name in transposed
        else tensor_of(tensors, name, (None,) * (2 if new in ("W_dec", SKIP) else 1), place)
        for name, new in present.items()
    }


def described_config(values: dict[str, Any], place: Path) -> CrossLayerConfig:
    """The config with these values; raises CheckpointError if they are illegal."""
    try:
        return from_dict(CrossLayerConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{place} does not describe a transcoder: {error}") from error


def read_stacked(tensors: Mapping[str, Sequence[StoredTensor]]) -> Callable[[], dict[str, Tensor]]:
    """A function that reads small tensors, each of which is given layer by layer."""
    return lambda: {name: torch.stack([each.read().float() for each in layers]) for name, layers in tensors.items()}
