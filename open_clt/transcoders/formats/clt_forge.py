"""CLT-Forge's layout of a transcoder.

    clt_cfg.json             model_name, activation_fn, cross_layer_decoders, perhaps d_latent, the number of features
    clt_weights.safetensors, or one file rank{r}_clt_weights.safetensors for each process, which holds some features
                             W_enc [layer, d_model, feature], b_enc [layer, feature], log_threshold [layer, feature],
                             W_dec [pair, feature, d_model], b_dec [pair, d_model],
                             estimated_norm_scaling_factor_in [layer], estimated_norm_scaling_factor_out [layer];
                             feature_count and layer_mask, which matter to training only

The pairs of a source and a target layer are sorted by source, then by target; without ``cross_layer_decoders`` there is
one for each layer. Biases of all pairs with one target add up. Inputs are multiplied by their factor before they are
encoded, and outputs are divided by theirs, so the standardisation of the transcoder holds the inverses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.errors import CheckpointError
from open_clt.files import JoinedTensor, StoredTensor, Table
from open_clt.transcoders.formats.checks import THRESHOLDS
from open_clt.transcoders.formats.layers import described_config
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import WeightFiles, check_known, tensor_of
from open_clt.transcoders.stored_weights import StoredWeights

_SETTINGS = "clt_cfg.json"
_TENSORS = "clt_weights.safetensors"
_OF_TRAINING = ("feature_count", "layer_mask")
"""Tensors that matter to training only."""
_FACTOR = "estimated_norm_scaling_factor"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and bool(weight_files.names(f"*{_TENSORS}"))


def open_clt_forge(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a transcoder in this layout; raises CheckpointError if its files are damaged."""
    place = weight_files.place
    settings = _read_settings(weight_files)
    shards = [weight_files.tensors(name, ignored=_OF_TRAINING) for name in _file_names(weight_files)]
    shapes = [tensor_of(tensors, "W_enc", (None, None, None), place).shape for tensors in shards]
    n_layers, d_model, _ = shapes[0]
    widths = [shape[2] for shape in shapes]
    if isinstance(stated := settings.get("d_latent"), int) and sum(widths) < stated:
        raise CheckpointError(
            f"{place} holds {sum(widths)} features of each layer, but {_SETTINGS} states d_latent {stated}; it needs "
            f"the files of all ranks, such as rank{len(shards)}_{_TENSORS}."
        )
    values: dict[str, Any] = {
        "n_layers": n_layers,
        "n_features": sum(widths),
        "d_model": d_model,
        "reach": None if settings["cross_layer_decoders"] else 1,
        "nonlinearity": {"kind": "jumprelu"},
        "input_hook": "ln2.hook_normalized",
        "language_model": settings.get("model_name"),
    }
    config = described_config(values, place)
    of_features = {
        name: [tensor_of(each, name, (n_layers, width), place) for each, width in zip(shards, widths, strict=True)]
        for name in ("b_enc", "log_threshold")
    }
    shared = {
        "b_dec": (sum(_reaches(config)), d_model),
        f"{_FACTOR}_in": (n_layers,),
        f"{_FACTOR}_out": (n_layers,),
    }
    for tensors in shards:
        check_known(tensors, {"W_enc", "W_dec", *of_features, *shared}, place)
    of_all = {name: [tensor_of(each, name, shape, place) for each in shards] for name, shape in shared.items()}
    return StoredTranscoder(
        place=place,
        config=config,
        weights=_weights(config, shards, widths, place),
        small=partial(_read_small, config, of_features, of_all),
    )


def _file_names(weight_files: WeightFiles) -> list[str]:
    """The names of the files of weights: the whole one, or those of all ranks in order."""
    if weight_files.has(_TENSORS):
        return [_TENSORS]
    stored = weight_files.names(f"rank[0-9]*_{_TENSORS}")
    names = [f"rank{rank}_{_TENSORS}" for rank in range(len(stored))]
    if not names or set(names) != set(stored):
        raise CheckpointError(
            f"{weight_files.place} holds {len(stored)} shards of a transcoder, but they are not rank0_{_TENSORS}, "
            f"rank1_{_TENSORS}, and so on; it needs the files of all ranks, or {_TENSORS}."
        )
    return names


def _read_settings(weight_files: WeightFiles) -> dict[str, Any]:
    path = weight_files.path(_SETTINGS)
    match files.read_json(path):
        case {"cross_layer_decoders": bool()} as settings:
            settings = cast(dict[str, Any], settings)
        case _:
            raise CheckpointError(f"{path} does not say whether there are cross_layer_decoders: true or false.")
    if (activation := settings.get("activation_fn", "jumprelu")) != "jumprelu":
        raise CheckpointError(f"{path} has the activation_fn {activation!r}; only 'jumprelu' can be read.")
    return settings


def _reaches(config: CrossLayerConfig) -> list[int]:
    return [config.reach_of(source) for source in range(config.n_layers)]


def _weights(
    config: CrossLayerConfig, shards: Sequence[Mapping[str, StoredTensor]], widths: Sequence[int], place: Path
) -> StoredWeights:
    n_layers, n_pairs, d_model = config.n_layers, sum(_reaches(config)), config.d_model
    sized = list(zip(shards, widths, strict=True))
    encoders = [tensor_of(each, "W_enc", (n_layers, d_model, width), place) for each, width in sized]
    tables = [tensor_of(each, "W_dec", (n_pairs, width, d_model), place) for each, width in sized]
    decoders: list[tuple[Table, ...]] = []
    begin = 0
    for reach in _reaches(config):
        decoders.append((_joined([table[begin : begin + reach].T for table in tables]),))
        begin += reach
    return StoredWeights(
        tuple(_joined([each[layer].T for each in encoders]) for layer in range(n_layers)), tuple(decoders)
    )


def _joined(parts: Sequence[StoredTensor]) -> Table:
    return parts[0] if len(parts) == 1 else JoinedTensor(parts)


def _read_small(
    config: CrossLayerConfig,
    of_features: Mapping[str, Sequence[StoredTensor]],
    of_all: Mapping[str, Sequence[StoredTensor]],
) -> dict[str, Tensor]:
    """The small tensors; raises CheckpointError if shards hold different values of what belongs to all features."""
    read = {name: torch.cat([part.read().float() for part in parts], dim=1) for name, parts in of_features.items()}
    for name, parts in of_all.items():
        read[name] = parts[0].read().float()
        for part in parts[1:]:
            if not torch.equal(part.read().float(), read[name]):
                raise CheckpointError(
                    f"The tensor {name!r} of {part.place} differs from that of {parts[0].place}; all shards must "
                    "belong to one transcoder."
                )
    targets = [source + offset for source, reach in enumerate(_reaches(config)) for offset in range(reach)]
    b_dec = torch.zeros(config.n_layers, config.d_model).index_add(0, torch.tensor(targets), read["b_dec"])
    return {
        "b_enc": read["b_enc"],
        "b_dec": b_dec,
        THRESHOLDS: read["log_threshold"].exp(),
        "standardisation.input_scale": 1 / read[f"{_FACTOR}_in"],
        "standardisation.target_scale": 1 / read[f"{_FACTOR}_out"],
    }
