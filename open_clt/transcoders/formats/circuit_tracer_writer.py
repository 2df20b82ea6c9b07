"""Writers of circuit-tracer's two layouts: cross-layer transcoders, and one transcoder per layer.

OpenCLT's ``config.yaml`` begins with a comment that says how many layers OpenCLT wrote, and in which layout, so that a
later save replaces these files and no others. The layouts have no standardisation, so it is folded into the weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import torch

from open_clt import files
from open_clt.config import TopKConfig, TranscoderConfig
from open_clt.errors import CheckpointError
from open_clt.files import TensorBlocks, in_one_block
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import check_numbers
from open_clt.transcoders.formats.folded_layers import check_all_layers, folded_layer, plain_transcoder
from open_clt.transcoders.formats.layers import THRESHOLD
from open_clt.transcoders.transcoder import Transcoder

Tensors: TypeAlias = dict[str, TensorBlocks]
"""The tensors of a file, by name."""

_SETTINGS = "config.yaml"
UNKNOWN_MODEL = "unknown"
"""The ``model_name`` of a transcoder whose language model is not stated; circuit-tracer needs a text there."""
KEEP_NEGATIVE = "keep_negative"
"""Key of OpenCLT in a ``config.yaml``: whether negative pre-activations among the k largest are kept.

circuit-tracer ignores the key and keeps them."""


@final
class _Files(NamedTuple):
    """The files of a layout, by which a writer knows what it may replace."""

    mark: str
    """First line of a ``config.yaml`` of OpenCLT, with the number of layers as ``{}``."""
    stems: tuple[str, ...]
    """Names of the files of a layer, with its number as ``{}``."""

    __repr__ = short_repr

    def names(self, n_layers: int) -> list[str]:
        """The names of the files of a transcoder, the head first."""
        return [_SETTINGS, *(stem.format(layer) for layer in range(n_layers) for stem in self.stems)]

    def ours(self, directory: Path) -> list[str]:
        """The names of the files that OpenCLT wrote to a directory; none if others wrote its config."""
        path = files.saved(directory, _SETTINGS)(_SETTINGS)
        first_line = files.read_text(path, "YAML").partition("\n")[0] if path.is_file() else ""
        marked = re.fullmatch("# " + self.mark.format(r"(\d{1,6})"), first_line)
        return self.names(int(marked[1])) if marked else []

    def check_place(self, directory: Path) -> None:
        """Raise ConfigError if a transcoder cannot be saved in a directory, because it would replace other files."""
        files.check_directory(directory)
        if files.is_interrupted(directory, _SETTINGS):
            return
        ours = self.ours(directory)
        patterns = [re.escape(stem).replace(r"\{\}", r"\d+") for stem in self.stems]
        for path in (directory / _SETTINGS, *sorted(directory.glob("*.safetensors"))):
            # An encoder of the other layout would make a reader take the directory for one of that layout.
            named = path.name in (_SETTINGS, "W_enc_0.safetensors")
            named = named or any(re.fullmatch(pattern, path.name) for pattern in patterns)
            if named and path.name not in ours and os.path.lexists(path):
                raise files.foreign(path)


_CROSS_LAYER = _Files("Written by OpenCLT: {} layers", ("W_enc_{}.safetensors", "W_dec_{}.safetensors"))
_LAYERS = _Files("Written by OpenCLT: {} layers, one transcoder each", ("layer_{}.safetensors",))


def check_place(directory: Path) -> None:
    """Raise ConfigError if a cross-layer transcoder would replace other files in a directory."""
    _CROSS_LAYER.check_place(directory)


def check_place_of_layers(directory: Path) -> None:
    """Raise ConfigError if transcoders of one layer each would replace other files in a directory."""
    _LAYERS.check_place(directory)


def check_config(config: TranscoderConfig) -> None:
    """Raise CheckpointError if the layout of a cross-layer transcoder cannot hold one of this shape."""
    check_all_layers(config, "circuit-tracer's layout")
    if config.skip:
        advice = "circuit-tracer-layers or native" if config.reach_of(0) == 1 else "native"
        raise CheckpointError(
            f"The transcoder has a skip path, which the layout circuit-tracer does not have; use the layout {advice}."
        )


def check_config_of_layers(config: TranscoderConfig) -> None:
    """Raise CheckpointError if the layout of one transcoder per layer cannot hold a transcoder of this shape."""
    check_all_layers(config, "the layout circuit-tracer-layers")
    if config.reach_of(0) != 1:
        advice = "native" if config.skip else "circuit-tracer or native"
        raise CheckpointError(
            f"Features of this transcoder write to {config.reach_of(0)} layers; the layout circuit-tracer-layers needs "
            f"reach 1. Use the layout {advice}."
        )
    if isinstance(config.nonlinearity, TopKConfig) and config.nonlinearity.across_layers:
        raise CheckpointError(
            "TopK across layers cannot be written in the layout circuit-tracer-layers, where each layer has its own k; "
            "convert the transcoder to JumpReLU first."
        )


@torch.no_grad()
def save_circuit_tracer(transcoder: Transcoder, directory: str | Path, *, scan: str = "./features") -> Path:
    """Write a transcoder in circuit-tracer's layout, with its standardisation folded into the weights.

    A limited reach is padded with zeros. The files are written whole or not at all. They replace those of a former
    transcoder that this function wrote, also if it had more layers. A transcoder that stays in its files is written
    in blocks. Raises ConfigError if other files would be replaced, and CheckpointError for
    what the layout cannot hold: TopK, a skip path, a mixture of linear transforms, a user's own class, and weights that
    are not finite.
    """
    directory = Path(directory)
    check_place(directory)
    transcoder = plain_transcoder(transcoder, "circuit-tracer's layout")
    check_config(transcoder.config)
    if transcoder.nonlinearity.threshold(0) is None:
        raise CheckpointError(
            "A TopK transcoder cannot be written in circuit-tracer's layout, which needs thresholds; convert it to "
            "JumpReLU first."
        )
    settings = _settings(transcoder, "cross_layer_transcoder", scan)
    return _save(transcoder, directory, _CROSS_LAYER, settings, _cross_layer_files)


@torch.no_grad()
def save_circuit_tracer_layers(transcoder: Transcoder, directory: str | Path, *, scan: str = "./features") -> Path:
    """Write a transcoder whose features write to their own layer, in circuit-tracer's layout of one per layer.

    ReLU, thresholds, TopK and a skip path are written. circuit-tracer keeps negative pre-activations among the k
    largest of TopK, which OpenCLT sets to 0 unless ``keep_negative`` is true; this matters only where fewer than k are
    positive. Otherwise this function behaves as ``save_circuit_tracer``.
    """
    directory = Path(directory)
    check_place_of_layers(directory)
    transcoder = plain_transcoder(transcoder, "the layout circuit-tracer-layers")
    check_config_of_layers(transcoder.config)
    settings = _settings(transcoder, "transcoder_set", scan)
    nonlinearity = transcoder.config.nonlinearity
    if isinstance(nonlinearity, TopKConfig):
        if nonlinearity.offsets:  # known only after the offsets are read, which may be zero
            raise CheckpointError(
                "TopK with offsets cannot be written in the layout circuit-tracer-layers, which ranks features by "
                "their pre-activations alone; use the layout native."
            )
        settings |= {"activation": "topk", "k": nonlinearity.k, KEEP_NEGATIVE: nonlinearity.keep_negative}
    return _save(transcoder, directory, _LAYERS, settings, _layer_files)


def _settings(transcoder: CrossLayerTranscoder, kind: str, scan: str) -> dict[str, Any]:
    return {
        "model_name": transcoder.config.language_model or UNKNOWN_MODEL,
        "model_kind": kind,
        "feature_input_hook": transcoder.config.input_hook,
        "feature_output_hook": transcoder.config.target_hook,
        "scan": scan,
    }


def _save(
    transcoder: CrossLayerTranscoder,
    directory: Path,
    layout: _Files,
    settings: dict[str, Any],
    files_of: Callable[[CrossLayerTranscoder, int, Path], dict[str, Tensors]],
) -> Path:
    check_numbers(transcoder, directory)
    with files.saving(directory, replaces=layout.ours(directory)) as stage:
        for layer in range(transcoder.config.n_layers):
            for name, tensors in files_of(transcoder, layer, directory).items():
                files.write_blocks(stage(name), tensors)
        files.write_yaml(stage(_SETTINGS), settings, comment=layout.mark.format(transcoder.config.n_layers))
    return directory


def _cross_layer_files(transcoder: CrossLayerTranscoder, layer: int, place: Path) -> dict[str, Tensors]:
    folded = folded_layer(transcoder, layer, place, n_targets=transcoder.config.n_layers - layer)
    encoder = {"W_enc": folded.encoder, "b_enc": in_one_block(folded.b_enc), "b_dec": in_one_block(folded.b_dec)}
    if folded.threshold is not None:
        encoder["threshold"] = in_one_block(folded.threshold)
    return {
        f"W_enc_{layer}.safetensors": {f"{name}_{layer}": tensor for name, tensor in encoder.items()},
        f"W_dec_{layer}.safetensors": {f"W_dec_{layer}": folded.decoder},
    }


def _layer_files(transcoder: CrossLayerTranscoder, layer: int, place: Path) -> dict[str, Tensors]:
    folded = folded_layer(transcoder, layer, place, n_targets=1)
    width, _, d_model = folded.decoder.shape
    tensors = {
        "W_enc": folded.encoder,
        "W_dec": folded.decoder._replace(shape=(width, d_model)),
        "b_enc": in_one_block(folded.b_enc),
        "b_dec": in_one_block(folded.b_dec),
    }
    if folded.threshold is not None:
        tensors[THRESHOLD] = in_one_block(folded.threshold)
    if folded.skip is not None:
        tensors["W_skip"] = in_one_block(folded.skip)
    return {f"layer_{layer}.safetensors": tensors}
