"""OpenCLT's layout of a transcoder: a directory with ``config.json`` and ``transcoder.safetensors``.

The config holds everything that the tensors do not: format and version, shape, nonlinearity, hooks, language model, and
the class if it is a user's own. Nothing is unpickled. A transcoder that is saved and loaded gives the same outputs, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import CrossLayerConfig, TranscoderConfig
from open_clt.config.arguments import checked_arguments
from open_clt.config.json import from_dict, to_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import StoredTensor
from open_clt.finite import check_finite
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import check_dtype, check_numbers
from open_clt.transcoders.formats.folded_layers import decoder_blocks, encoder_blocks
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import LocalFiles, WeightFiles
from open_clt.transcoders.make import KINDS, OwnArchitecture, OwnCode, make_transcoder, own_architecture
from open_clt.transcoders.stored_weights import StoredWeights, tensors_in_memory
from open_clt.transcoders.transcoder import Transcoder

FORMAT = files.FileFormat("open-clt-transcoder", newest=4)
"""Version 1 has cross-layer transcoders without prefixes only. Version 2 has all kinds of this package. Version 3 adds
users' own classes. Version 4 adds transcoders of some layers of the language model. All four are read.

The oldest version that can describe a transcoder is written, because older releases of OpenCLT read it too."""
CONFIG = "config.json"
_TENSORS = "transcoder.safetensors"


def recognises(directory: Path) -> bool:
    """Whether a directory holds a transcoder of this layout, whole or damaged."""
    return files.read_saved(directory, CONFIG, lambda saved: recognises_files(LocalFiles(saved)))


def recognises_files(weight_files: WeightFiles) -> bool:
    """Whether files are those of a transcoder of this layout, whole or damaged."""
    if weight_files.has(_TENSORS):
        return True
    return weight_files.has(CONFIG) and files.format_of(weight_files.path(CONFIG)) == FORMAT.name


def check_place(directory: Path) -> None:
    """Raise ConfigError if a transcoder cannot be saved in a directory, because it would replace other files."""
    files.check_artefact(directory, (CONFIG, _TENSORS), FORMAT)


@checked_arguments
def save_transcoder(
    transcoder: Transcoder,
    directory: str | Path,
    *,
    record: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a transcoder to a directory, whole or not at all, and return the directory; other files in it stay.

    A former transcoder of OpenCLT is replaced. Raises ConfigError if the directory holds a ``config.json`` or a
    ``transcoder.safetensors`` of another program, such as the config of a language model.

    Raises CheckpointError if a weight is not finite in the data type that it is stored in, or if a threshold or a scale
    is one that ``load_transcoder`` refuses.

    Encoders and decoders that stay in their files are copied in blocks, in the type in which they are stored.

    ``record`` is stored in ``config.json``: plain values on training and evaluation. ``dtype`` stores the weight
    tables in another data type; the outputs of the loaded transcoder are then the same only to that precision.
    """
    directory = Path(directory)
    check_place(directory)
    if dtype is not None:
        check_dtype(dtype)
    stored = transcoder.stored is not None
    tensors = tensors_in_memory(transcoder) if stored else transcoder.state_dict()
    if dtype is not None:
        tensors = {name: _converted(name, tensor, dtype) for name, tensor in tensors.items()}
    files.check_weights(tensors, directory / _TENSORS, transcoder.config.n_layers, transcoder.config.layers)
    check_numbers(transcoder, directory / _TENSORS)
    own = own_architecture(transcoder)
    content = {
        **FORMAT.header(_version(transcoder.config, own)),
        "transcoder": to_dict(transcoder.config),
        **({"architecture": own.as_dict()} if own else {}),
        "record": record or {},
    }
    with files.saving(directory) as stage:
        if stored:
            small = {name: files.in_one_block(tensor) for name, tensor in tensors.items()}
            files.write_blocks(stage(_TENSORS), {**_stored_tables(transcoder, directory / _TENSORS, dtype), **small})
        else:
            files.write_tensors(stage(_TENSORS), tensors)
        files.write_json(stage(CONFIG), content)
    return directory


def _version(config: TranscoderConfig, own: OwnArchitecture | None) -> int:
    """The oldest version of the format that can describe a transcoder."""
    if config.layers is not None:
        return 4
    return 2 if own is None else 3


def _stored_tables(transcoder: Transcoder, place: Path, dtype: torch.dtype | None) -> dict[str, files.TensorBlocks]:
    """Encoders and decoders that stay in their files, for another file; they keep their type unless ``dtype`` is given.

    Raises CheckpointError if a number is not finite in that type, once its block is read.
    """
    assert isinstance(transcoder, CrossLayerTranscoder)
    assert transcoder.stored is not None
    config, tables = transcoder.config, transcoder.stored.tables
    dtype = dtype or reduce(torch.promote_types, [table.dtype for table in tables])
    layers = range(config.n_layers)

    def checked(name: str, layer: int, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        for block in blocks:
            block = block.to(dtype)
            number = config.model_layers[layer]
            check_finite(block, f"The tensor {name!r} of layer {number} in {place}", error=CheckpointError)
            yield block

    def encoders() -> Iterator[Tensor]:
        for layer in layers:
            yield from checked("W_enc", layer, encoder_blocks(transcoder, layer))

    def decoder(source: int) -> files.TensorBlocks:
        shape = (config.n_features, config.reach_of(source), config.d_model)
        return files.TensorBlocks(
            shape, dtype, lambda: checked(f"W_dec.{source}", source, decoder_blocks(transcoder, source))
        )

    shape = (config.n_layers, config.n_features, config.d_model)
    return {
        "W_enc": files.TensorBlocks(shape, dtype, encoders),
        **{f"W_dec.{source}": decoder(source) for source in layers},
    }


def remove_transcoder(directory: Path) -> None:
    """Delete the files of a transcoder that ``save_transcoder`` wrote; all other files of the directory stay."""
    if files.is_ours(directory, CONFIG, FORMAT):
        files.remove_saved(directory, CONFIG, (_TENSORS,))


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert weight tables only: biases, thresholds and statistics are small, and their precision matters."""
    return tensor.to(dtype) if name.startswith("W_") else tensor


def open_native(weight_files: WeightFiles, code: OwnCode) -> StoredTranscoder | Transcoder:
    """Open a transcoder that ``save_transcoder`` wrote; raises CheckpointError if its files are damaged.

    ``code`` says whether the transcoder may be of a class outside OpenCLT. A transcoder of such a class, or without
    decoders, is read as a whole.
    """
    place = weight_files.place
    content, tensors = FORMAT.read(weight_files.path(CONFIG)), weight_files.tensors(_TENSORS)
    config = _read_config(content, place)
    own = code.architecture(content.get("architecture"), place / CONFIG)
    _check_encoder_shape(config, tensors, place)
    if own is None:  # a user's own class may have other tensors, and may compute with them when it is built
        with torch.device("meta"):
            _check_tensors(_build(config, None, place).state_dict(), tensors, place)
        if isinstance(config, CrossLayerConfig):
            return _stored(config, tensors, place / _TENSORS)
    transcoder = _build(config, own, place)
    expected = transcoder.state_dict()
    _check_tensors(expected, tensors, place)
    read = {name: tensor.read() for name, tensor in tensors.items()}
    files.check_weights(read, place / _TENSORS, config.n_layers, config.layers)
    transcoder.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in read.items()})
    check_numbers(transcoder, place / _TENSORS)
    return transcoder


def _stored(config: CrossLayerConfig, tensors: Mapping[str, StoredTensor], place: Path) -> StoredTranscoder:
    layers = range(config.n_layers)
    tables = {"W_enc", *(f"W_dec.{layer}" for layer in layers)}
    small = {name: tensor for name, tensor in tensors.items() if name not in tables}
    weights = StoredWeights(
        tuple(tensors["W_enc"][layer] for layer in layers), tuple((tensors[f"W_dec.{layer}"],) for layer in layers)
    )
    return StoredTranscoder(
        place=place, config=config, weights=weights, small=lambda: {name: each.read() for name, each in small.items()}
    )


def read_record(directory: str | Path) -> dict[str, Any]:
    """The ``record`` that ``save_transcoder`` stored with a transcoder; empty if the file holds another value there."""
    content = files.read_saved(Path(directory), CONFIG, lambda saved: FORMAT.read(saved(CONFIG)))
    record = content.get("record")
    return cast(dict[str, Any], record) if isinstance(record, dict) else {}


def _read_config(content: dict[str, Any], directory: Path) -> TranscoderConfig:
    match content.get("transcoder"):
        case dict(values):
            values = cast(dict[str, Any], values)
        case value:
            raise CheckpointError(f"{directory / CONFIG} has {value!r} as 'transcoder'; it must be an object.")
    kind = values.get("kind", "cross_layer")  # version 1 has this kind only, and does not state it
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(
            f"{directory / CONFIG} describes a transcoder of kind {kind!r}; known kinds are {', '.join(KINDS)}."
        )
    try:
        return from_dict(KINDS[kind].config, values)
    except ConfigError as error:
        raise CheckpointError(f"{directory / CONFIG} does not describe a transcoder: {error}") from error


def _build(config: TranscoderConfig, own: OwnArchitecture | None, directory: Path) -> Transcoder:
    try:
        return make_transcoder(config, own=own)
    except (ConfigError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory / CONFIG} describes a transcoder that cannot be built: {reason}") from error


def _check_encoder_shape(config: TranscoderConfig, tensors: Mapping[str, StoredTensor], directory: Path) -> None:
    """Refuse a config of other sizes than the tensors, before a transcoder of its sizes takes time or memory."""
    shape = (config.n_layers, config.n_features, config.d_model)
    if "W_enc" not in tensors:
        raise _missing_tensor("W_enc", directory)
    if tensors["W_enc"].shape != shape:
        raise _wrong_shape("W_enc", tensors["W_enc"], shape, directory)
    if config.n_layers > len(tensors):
        raise CheckpointError(
            f"{directory} holds {len(tensors)} tensors, which is less than one for each of {config.n_layers} layers."
        )


def _missing_tensor(name: str, directory: Path) -> CheckpointError:
    return CheckpointError(f"{directory} lacks the tensor {name!r}, which its config needs.")


def _wrong_shape(name: str, tensor: StoredTensor, expected: tuple[int, ...], directory: Path) -> CheckpointError:
    return CheckpointError(
        f"{directory} holds the tensor {name!r} with shape {tuple(tensor.shape)}; its config needs shape "
        f"{tuple(expected)}."
    )


def _check_tensors(expected: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], directory: Path) -> None:
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise _missing_tensor(name, directory)
        if name not in expected:
            raise CheckpointError(f"{directory} holds the tensor {name!r}, which its config does not need.")
        if expected[name].shape != stored[name].shape:
            raise _wrong_shape(name, stored[name], tuple(expected[name].shape), directory)
