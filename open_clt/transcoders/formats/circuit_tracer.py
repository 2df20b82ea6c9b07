"""circuit-tracer's layout of a transcoder, which inference libraries and Neuronpedia also read.

    config.yaml            model_name, model_kind, feature_input_hook, feature_output_hook, scan
    W_enc_{l}.safetensors  W_enc_{l} [feature, d_model], b_enc_{l} [feature], b_dec_{l} [d_model],
                           threshold_{l} [feature] (JumpReLU only; of any sign)
    W_dec_{l}.safetensors  W_dec_{l} [feature, n_layers - l, d_model]; slice j writes to layer l + j

OpenCLT's ``config.yaml`` begins with a comment that says how many layers OpenCLT wrote, so that a later save replaces
these files and no others.

The layout has no standardisation, so a transcoder is folded before it is written. In this layout a feature depends on
its own pre-activation only, so TopK, which ranks features against each other, cannot be written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import StoredTensor
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import THRESHOLDS, check_all
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import LocalFiles, WeightFiles, tensor_of
from open_clt.transcoders.make import own_architecture
from open_clt.transcoders.nonlinearities import ReLU
from open_clt.transcoders.stored_weights import StoredWeights
from open_clt.transcoders.transcoder import Transcoder

_KIND = "cross_layer_transcoder"
_SETTINGS = "config.yaml"
_ENCODER, _DECODER = "W_enc", "W_dec"
_NAME = re.compile(r"config\.yaml|W_(enc|dec)_\d+\.safetensors")
"""Names of the layout's files; a reader counts the encoders and decoders by their names."""
_MARK = "Written by OpenCLT: {} layers"


def recognises(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    return weight_files.has(_SETTINGS) and weight_files.has(f"{_ENCODER}_0.safetensors")


def open_circuit_tracer(weight_files: WeightFiles) -> StoredTranscoder:
    """Open a cross-layer transcoder in this layout; raises CheckpointError if its files are damaged."""
    place = weight_files.place
    settings = read_settings(weight_files.path(_SETTINGS))
    if settings.get("model_kind") != _KIND:
        raise CheckpointError(
            f"{place} has model_kind {settings.get('model_kind')!r}; only {_KIND!r} can be read from this layout."
        )
    encoders, decoders = (_open_layers(weight_files, stem) for stem in (_ENCODER, _DECODER))
    if not encoders or len(encoders) != len(decoders):
        raise CheckpointError(
            f"{place} holds {len(encoders)} encoders and {len(decoders)} decoders; it needs one encoder and one "
            "decoder per layer."
        )
    n_features, d_model = tensor_of(encoders[0], "W_enc_0", (None, None), place).shape
    has_thresholds = "threshold_0" in encoders[0]
    values = {
        "n_layers": len(encoders),
        "n_features": n_features,
        "d_model": d_model,
        "nonlinearity": {"kind": "jumprelu" if has_thresholds else "relu"},
        "input_hook": settings.get("feature_input_hook", "hook_resid_mid"),
        "target_hook": settings.get("feature_output_hook", "hook_mlp_out"),
        "language_model": settings.get("model_name"),
    }
    try:
        config = from_dict(CrossLayerConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{place} does not describe a transcoder: {error}") from error
    weights = StoredWeights(
        tuple(tensor_of(each, f"W_enc_{layer}", (n_features, d_model), place) for layer, each in enumerate(encoders)),
        tuple((tensor_of(each, f"W_dec_{layer}", (None, None, None), place),) for layer, each in enumerate(decoders)),
    )
    stacked = {"b_enc": "b_enc", "b_dec": "b_dec", **({"threshold": THRESHOLDS} if has_thresholds else {})}
    width = {"b_enc": n_features, "b_dec": d_model, "threshold": n_features}
    small = {
        name: [tensor_of(each, f"{stem}_{layer}", (width[stem],), place) for layer, each in enumerate(encoders)]
        for stem, name in stacked.items()
    }

    def read_small() -> dict[str, Tensor]:
        return {name: torch.stack([each.read().float() for each in layers]) for name, layers in small.items()}

    return StoredTranscoder(place=place, config=config, weights=weights, small=read_small)


def load_circuit_tracer(directory: str | Path) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder in circuit-tracer's layout; raises CheckpointError if the directory has none."""
    stored = files.read_saved(Path(directory), _SETTINGS, lambda saved: open_circuit_tracer(LocalFiles(saved)))
    return stored.load(device=torch.device("cpu"))


@torch.no_grad()
def save_circuit_tracer(transcoder: Transcoder, directory: str | Path, *, scan: str = "./features") -> Path:
    """Write a transcoder in circuit-tracer's layout, with its standardisation folded into the weights.

    A limited reach is padded with zeros. The files are written whole or not at all. They replace those of a former
    transcoder that this function wrote, also if it had more layers. Raises ConfigError if they would replace other
    files, and CheckpointError for what the layout cannot hold: TopK, a skip path, a mixture of linear transforms, a
    user's own class, and weights that are not finite.
    """
    directory = Path(directory)
    check_place(directory)
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise CheckpointError(
            f"A {type(transcoder).__name__} cannot be written in circuit-tracer's layout, which holds decoders only; "
            "save it in OpenCLT's layout."
        )
    if (own := own_architecture(transcoder)) is not None:
        raise CheckpointError(
            f"A {own.class_path} cannot be written in circuit-tracer's layout, which holds plain cross-layer "
            "transcoders only; save it in OpenCLT's layout."
        )
    if transcoder.config.skip:
        raise CheckpointError(
            "A transcoder with skip=True cannot be written in circuit-tracer's layout; train it with skip=False."
        )
    if transcoder.nonlinearity.threshold(0) is None:
        raise CheckpointError(
            "A TopK transcoder cannot be written in circuit-tracer's layout, which needs thresholds; convert it to "
            "JumpReLU first."
        )
    folded = transcoder.folded()
    check_all(folded, directory)
    settings = {
        "model_name": transcoder.config.language_model or "unknown",
        "model_kind": _KIND,
        "feature_input_hook": transcoder.config.input_hook,
        "feature_output_hook": transcoder.config.target_hook,
        "scan": scan,
    }
    with files.saving(directory, replaces=_our_names(directory)) as stage:
        for layer in range(transcoder.config.n_layers):
            files.write_tensors(stage(f"{_ENCODER}_{layer}.safetensors"), _encoder_tensors(folded, layer))
            files.write_tensors(stage(f"{_DECODER}_{layer}.safetensors"), _decoder_tensors(folded, layer))
        files.write_yaml(stage(_SETTINGS), settings, comment=_MARK.format(transcoder.config.n_layers))
    return directory


def check_place(directory: Path) -> None:
    """Raise ConfigError if a transcoder cannot be saved in a directory, because it would replace other files."""
    files.check_directory(directory)
    if files.is_interrupted(directory, _SETTINGS):
        return
    ours = _our_names(directory)
    for path in (directory / _SETTINGS, *sorted(directory.glob("W_*"))):
        if _NAME.fullmatch(path.name) and path.name not in ours and os.path.lexists(path):
            raise files.foreign(path)


def _names(n_layers: int) -> list[str]:
    """The names of the files of a transcoder, the head first."""
    stems = [f"{stem}_{layer}" for layer in range(n_layers) for stem in (_ENCODER, _DECODER)]
    return [_SETTINGS, *(f"{stem}.safetensors" for stem in stems)]


def _our_names(directory: Path) -> list[str]:
    """The names of the files that ``save_circuit_tracer`` wrote to a directory; none if others wrote its config."""
    path = files.saved(directory, _SETTINGS)(_SETTINGS)
    first_line = files.read_text(path, "YAML").partition("\n")[0] if path.is_file() else ""
    marked = re.fullmatch("# " + _MARK.format(r"(\d{1,6})"), first_line)
    return _names(int(marked[1])) if marked else []


def _encoder_tensors(folded: CrossLayerTranscoder, layer: int) -> dict[str, Tensor]:
    tensors = {"W_enc": folded.W_enc[layer], "b_enc": folded.b_enc[layer], "b_dec": folded.b_dec[layer]}
    threshold = folded.nonlinearity.threshold(layer)
    if threshold is not None and not isinstance(folded.nonlinearity, ReLU):
        tensors["threshold"] = threshold
    return {f"{name}_{layer}": tensor for name, tensor in tensors.items()}


def _decoder_tensors(folded: CrossLayerTranscoder, layer: int) -> dict[str, Tensor]:
    table = folded.W_dec[layer]
    padding = folded.config.n_layers - layer - table.shape[1]
    return {f"W_dec_{layer}": functional.pad(table, (0, 0, 0, padding))}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a ``config.yaml``; raises CheckpointError if it holds something else."""
    settings = files.read_yaml(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not hold settings; it must name model_kind and the hooks.")
    return cast(dict[str, Any], settings)


def _open_layers(weight_files: WeightFiles, stem: str) -> list[Mapping[str, StoredTensor]]:
    """The tensors of the files ``{stem}_0``, ``{stem}_1``, ...; raises CheckpointError if a number is missing."""
    count = len(weight_files.names(f"{stem}_[0-9]*.safetensors"))
    return [weight_files.tensors(f"{stem}_{layer}.safetensors") for layer in range(count)]
