"""Writer of SAELens' layout: one transcoder per layer, each in a folder ``layer_{l}`` that SAELens loads alone.

The ``cfg.json`` of each folder states a format of OpenCLT, which SAELens ignores, so that a later save replaces these
folders and no others. All folders are saved as one act. The layout has no standardisation, so it is folded into the
weights.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from open_clt import files
from open_clt.config import TranscoderConfig
from open_clt.config.arguments import checked_arguments
from open_clt.errors import CheckpointError
from open_clt.files import in_one_block
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import check_numbers
from open_clt.transcoders.formats.folded_layers import check_all_layers, folded_layer, plain_transcoder
from open_clt.transcoders.formats.saelens_settings import SETTINGS, TENSORS
from open_clt.transcoders.nonlinearities import ReLU
from open_clt.transcoders.transcoder import Transcoder

HEAD = f"layer_0/{SETTINGS}"
"""Name of the file that is written last."""
_FORMAT = files.FileFormat("open-clt-saelens", newest=1)
_FOLDER = re.compile(r"layer_\d+")
_CHANGES_OF_MODEL = ("fold_ln", "center_writing_weights", "center_unembed")
"""Changes of weights that TransformerLens makes by default; encoders read activations of the model without them."""
_VERSION = "6.54.12"
"""The version of SAELens whose layout is written. Without a version, SAELens expects that of its oldest releases."""


def check_place(directory: Path) -> None:
    """Raise ConfigError if transcoders cannot be saved in a directory, because they would replace other files.

    This also holds for folders of other names, because readers would take them for layers of the transcoder.
    """
    files.check_directory(directory)
    if files.is_interrupted(directory, HEAD):
        return
    ours = set(_ours(directory))
    for path in sorted(directory.glob("*")):
        if path.is_dir():
            named = [path / SETTINGS, path / TENSORS]
        else:
            named = [path] if path.name == TENSORS or _FOLDER.fullmatch(path.name) else []
        for file in named:
            if os.path.lexists(file) and file.relative_to(directory).as_posix() not in ours:
                raise files.foreign(file)


def _ours(directory: Path) -> list[str]:
    """The names of the files of a transcoder that OpenCLT wrote to a directory."""
    saved = files.saved(directory, HEAD)
    heads = [name for name in saved.names(f"layer_*/{SETTINGS}") if _FOLDER.fullmatch(name.partition("/")[0])]
    ours = [name for name in heads if files.format_of(saved(name)) == _FORMAT.name]
    return [name for head in ours for name in (head, head.replace(SETTINGS, TENSORS))]


def check_config(config: TranscoderConfig) -> None:
    """Raise CheckpointError if the layout cannot hold a transcoder of these layers."""
    check_all_layers(config, "the layout saelens")


@checked_arguments
@torch.no_grad()
def save_saelens(transcoder: Transcoder, directory: str | Path) -> Path:
    """Write a transcoder whose features write to their own layer as SAELens' transcoders, one for each layer.

    ReLU, thresholds of at least 0 and a skip path are written, and the standardisation is folded into the weights. The
    files are written whole or not at all. They replace those of a former transcoder that this function wrote, also if
    it had more layers. A transcoder that stays in its files is written in blocks. Raises ConfigError if other files
    would be replaced, and CheckpointError for what the layout cannot hold: TopK, negative thresholds, a cross-layer
    transcoder, a mixture of linear transforms, a user's own class, and weights that are not finite.
    """
    directory = Path(directory)
    check_place(directory)
    transcoder = plain_transcoder(transcoder, "the layout saelens")
    _check_can_be_held(transcoder)
    check_numbers(transcoder, directory)
    with files.saving(directory, replaces=_ours(directory)) as stage:
        for layer in reversed(range(transcoder.config.n_layers)):  # so that the head is last
            _write_layer(transcoder, layer, directory, stage)
    return directory


def _check_can_be_held(transcoder: CrossLayerTranscoder) -> None:
    """Raise CheckpointError for a transcoder that SAELens cannot express."""
    if (reach := transcoder.config.reach_of(0)) != 1:
        raise CheckpointError(
            f"Features of this transcoder write to {reach} layers; the layout saelens needs reach 1. Use the layout "
            "circuit-tracer."
        )
    nonlinearity = transcoder.nonlinearity
    for layer in range(transcoder.config.n_layers):
        thresholds = nonlinearity.threshold(layer)
        if thresholds is None:
            raise CheckpointError(
                "A TopK transcoder cannot be written in the layout saelens, which needs thresholds; convert it to "
                "JumpReLU first."
            )
        if bool((thresholds < 0).any()):
            feature = int((thresholds < 0).int().argmax())
            raise CheckpointError(
                f"Feature {feature} of layer {layer} has the threshold {float(thresholds[feature])}; in the layout "
                "saelens thresholds must be at least 0, because SAELens applies ReLU too."
            )


def _write_layer(transcoder: CrossLayerTranscoder, layer: int, place: Path, stage: files.Stage) -> None:
    """Write the two files of a layer."""
    folded = folded_layer(transcoder, layer, place, n_targets=1)
    width, d_model = folded.encoder.shape
    tensors = {
        "W_enc": folded.encoder._replace(shape=(d_model, width), transposed=True),
        "W_dec": folded.decoder._replace(shape=(width, d_model)),
        "b_enc": in_one_block(folded.b_enc),
        "b_dec": in_one_block(folded.b_dec),
    }
    if folded.threshold is not None:
        tensors["threshold"] = in_one_block(folded.threshold)
    if folded.skip is not None:
        tensors["W_skip"] = in_one_block(folded.skip)
    files.write_blocks(stage(f"layer_{layer}/{TENSORS}"), tensors)
    files.write_json(stage(f"layer_{layer}/{SETTINGS}"), _settings(transcoder, layer))


def _settings(transcoder: CrossLayerTranscoder, layer: int) -> dict[str, Any]:
    config = transcoder.config
    jumprelu = "" if isinstance(transcoder.nonlinearity, ReLU) else "jumprelu_"
    return {
        **_FORMAT.header(),
        "architecture": f"{jumprelu}{'skip_' if config.skip else ''}transcoder",
        "d_in": config.d_model,
        "d_sae": config.n_features,
        "d_out": config.d_model,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _VERSION,
            "sae_lens_training_version": None,
            "hook_name": f"blocks.{layer}.{config.input_hook}",
            "hook_name_out": f"blocks.{layer}.{config.target_hook}",
            "hook_head_index": None,
            "model_from_pretrained_kwargs": dict.fromkeys(_CHANGES_OF_MODEL, False),
            **({"model_name": config.language_model} if config.language_model else {}),
        },
    }
