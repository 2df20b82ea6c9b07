"""circuit-tracer's layout of a transcoder, which inference libraries and Neuronpedia also read.

    config.yaml            model_name, model_kind, feature_input_hook, feature_output_hook, scan
    W_enc_{l}.safetensors  W_enc_{l} [feature, d_model], b_enc_{l} [feature], b_dec_{l} [d_model],
                           threshold_{l} [feature] (JumpReLU only)
    W_dec_{l}.safetensors  W_dec_{l} [feature, n_layers - l, d_model]; slice j writes to layer l + j

OpenCLT's ``config.yaml`` begins with a comment that says how many layers OpenCLT wrote, so that a later save replaces
these files and no others.

The layout has no standardisation, so a transcoder is folded before it is written. In this layout a feature depends on
its own pre-activation only, so TopK, which ranks features against each other, cannot be written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from open_clt import files
from open_clt.config import CrossLayerConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import check_all, check_thresholds
from open_clt.transcoders.make import NO_CODE, OwnCode, own_architecture
from open_clt.transcoders.nonlinearities import JumpReLU, ReLU
from open_clt.transcoders.transcoder import Transcoder

_KIND = "cross_layer_transcoder"
_SETTINGS = "config.yaml"
_ENCODER, _DECODER = "W_enc", "W_dec"
_NAME = re.compile(r"config\.yaml|W_(enc|dec)_\d+\.safetensors")
"""Names of the layout's files; a reader counts the encoders and decoders by their names."""
_MARK = "Written by OpenCLT: {} layers"


def recognises(directory: Path) -> bool:
    """Whether a directory holds a transcoder of this layout, whole or damaged."""
    return files.read_saved(directory, _SETTINGS, lambda saved: saved(f"{_ENCODER}_0.safetensors").is_file())


@torch.no_grad()
def load_circuit_tracer(directory: str | Path, code: OwnCode = NO_CODE) -> CrossLayerTranscoder:
    """Read a cross-layer transcoder in circuit-tracer's layout; raises CheckpointError if the directory has none.

    The layout names no classes, so ``code`` must not have one.
    """
    directory = Path(directory)
    code.architecture(None, directory)
    settings, encoders, decoders = files.read_saved(
        directory,
        _SETTINGS,
        lambda saved: (_read_settings(saved(_SETTINGS)), _read_layers(saved, _ENCODER), _read_layers(saved, _DECODER)),
    )
    if settings.get("model_kind") != _KIND:
        raise CheckpointError(
            f"{directory} has model_kind {settings.get('model_kind')!r}; only {_KIND!r} can be read from this layout."
        )
    if not encoders or len(encoders) != len(decoders):
        raise CheckpointError(
            f"{directory} holds {len(encoders)} encoders and {len(decoders)} decoders; it needs one encoder and one "
            "decoder per layer."
        )
    config = _config(settings, encoders, directory)
    with torch.device("meta"):  # so that wrong shapes are found before a transcoder of this size takes memory
        empty = CrossLayerTranscoder(config)
    for target in _targets(empty, encoders, decoders):
        _check_shape(target, directory)
    transcoder = CrossLayerTranscoder(config)
    for target in _targets(transcoder, encoders, decoders):
        target.tensor.copy_(target.stored[target.name])
    if isinstance(transcoder.nonlinearity, JumpReLU):
        for layer, thresholds in enumerate(transcoder.nonlinearity.log_threshold):
            check_thresholds(thresholds, layer, directory)
            # The logarithm of 0 is not finite; no pre-activation lies between 0 and the smallest positive number.
            thresholds[thresholds == 0] = torch.finfo(thresholds.dtype).tiny
            thresholds.log_()
    return transcoder.eval()


class _Target(NamedTuple):
    """A tensor of a transcoder, and the stored tensor that fills it: the tensors of a file, and a name."""

    tensor: Tensor
    stored: dict[str, Tensor]
    name: str


def _targets(
    transcoder: CrossLayerTranscoder, encoders: list[dict[str, Tensor]], decoders: list[dict[str, Tensor]]
) -> Iterator[_Target]:
    for layer, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
        yield _Target(transcoder.W_enc[layer], encoder, f"W_enc_{layer}")
        yield _Target(transcoder.b_enc[layer], encoder, f"b_enc_{layer}")
        yield _Target(transcoder.b_dec[layer], encoder, f"b_dec_{layer}")
        yield _Target(transcoder.W_dec[layer], decoder, f"W_dec_{layer}")
        if isinstance(transcoder.nonlinearity, JumpReLU):
            yield _Target(transcoder.nonlinearity.log_threshold[layer], encoder, f"threshold_{layer}")


def _check_shape(target: _Target, directory: Path) -> None:
    if target.name not in target.stored:
        raise CheckpointError(f"{directory} lacks the tensor {target.name!r}.")
    shape = target.stored[target.name].shape
    if shape != target.tensor.shape:
        raise CheckpointError(
            f"{directory} holds the tensor {target.name!r} with shape {tuple(shape)}; it must have shape "
            f"{tuple(target.tensor.shape)}."
        )


def _config(settings: dict[str, Any], encoders: list[dict[str, Tensor]], directory: Path) -> CrossLayerConfig:
    first_encoder = encoders[0].get("W_enc_0")
    if first_encoder is None or first_encoder.ndim != 2:
        raise CheckpointError(f"{directory} lacks the tensor 'W_enc_0' with shape (n_features, d_model).")
    values = {
        "n_layers": len(encoders),
        "n_features": first_encoder.shape[0],
        "d_model": first_encoder.shape[1],
        "nonlinearity": {"kind": "jumprelu" if "threshold_0" in encoders[0] else "relu"},
        "input_hook": settings.get("feature_input_hook", "hook_resid_mid"),
        "target_hook": settings.get("feature_output_hook", "hook_mlp_out"),
        "language_model": settings.get("model_name"),
    }
    try:
        return from_dict(CrossLayerConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"{directory} does not describe a transcoder: {error}") from error


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


def _read_settings(path: Path) -> dict[str, Any]:
    settings = files.read_yaml(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} does not hold settings; it must name model_kind and the hooks.")
    return cast(dict[str, Any], settings)


def _read_layers(saved: files.Saved, stem: str) -> list[dict[str, Tensor]]:
    """The tensors of the files ``{stem}_0``, ``{stem}_1``, ...; raises CheckpointError if a number is missing."""
    count = len(saved.names(f"{stem}_[0-9]*.safetensors"))
    layers: list[dict[str, Tensor]] = []
    for layer in range(count):
        path = saved(f"{stem}_{layer}.safetensors")
        layers.append(files.read_tensors(path))
        files.check_weights(layers[-1], path, count)
    return layers
