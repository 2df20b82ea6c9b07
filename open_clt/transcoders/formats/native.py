"""OpenCLT's layout of a transcoder: a directory with ``config.json`` and ``transcoder.safetensors``.

The config says all that the tensors do not: format and version, shape, nonlinearity, hooks, language model, and the
class where that is a user's own. Nothing is ever unpickled. Loading what was saved gives the same outputs, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from open_clt import files
from open_clt.config import TranscoderConfig
from open_clt.config.json import from_dict, to_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.transcoders.make import KINDS, OwnArchitecture, make_transcoder, own_architecture
from open_clt.transcoders.transcoder import Transcoder

FORMAT = files.FileFormat("open-clt-transcoder", newest=3)
"""1 knew cross-layer transcoders only, and no prefixes; 2 no classes of users' own. Both are read as before."""
_WITHOUT_OWN = 2
"""What a transcoder of this package's kinds is written as: older versions read it, and nothing in it is new to them."""
_CONFIG = "config.json"
_TENSORS = "transcoder.safetensors"


def recognises(directory: Path) -> bool:
    """Whether a directory holds a transcoder of this layout, whole or damaged."""
    return files.kept(directory / _TENSORS).exists() or files.format_of(_place(directory)(_CONFIG)) == FORMAT.name


def save_transcoder(
    transcoder: Transcoder,
    directory: str | Path,
    *,
    record: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a transcoder to a directory, whole or not at all, and return it; other files there stay as they are.

    ``record`` (JSON-ready: how it was trained, what it scored) is kept beside the config. ``dtype`` stores the
    weights in fewer bytes than they have; the outputs are then equal only to that precision.
    """
    directory = Path(directory)
    tensors = transcoder.state_dict()
    if dtype is not None:
        tensors = {name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}
    own = own_architecture(transcoder)
    content = {
        **FORMAT.header(FORMAT.newest if own else _WITHOUT_OWN),
        "transcoder": to_dict(transcoder.config),
        **({"architecture": own._asdict()} if own else {}),
        "record": record or {},
    }
    with files.saving(directory) as stage:
        files.write_tensors(stage(_TENSORS), tensors)
        files.write_json(stage(_CONFIG), content)
    return directory


def _place(directory: Path) -> files.Stage:
    return files.saved(directory, _CONFIG)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Only weight tables shrink: biases, thresholds and statistics are few, and their precision matters."""
    return tensor.to(dtype) if name.startswith("W_") else tensor


def load_native(directory: Path) -> Transcoder:
    """Read a transcoder that ``save_transcoder`` wrote; raises CheckpointError on anything else."""
    place = _place(directory)
    content = FORMAT.read(place(_CONFIG))
    config = _read_config(content, directory)
    tensors = files.read_tensors(place(_TENSORS))
    _check_size(config, tensors, directory)
    try:
        transcoder = make_transcoder(config, own=_read_own(content, directory))
    except (ConfigError, RuntimeError, OverflowError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(f"{directory / _CONFIG} describes a transcoder that cannot be made: {said}") from error
    expected = transcoder.state_dict()
    _check_shapes(expected, tensors, directory)
    transcoder.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    return transcoder


def read_record(directory: str | Path) -> dict[str, Any]:
    """The record that was saved with a transcoder."""
    return cast(dict[str, Any], FORMAT.read(_place(Path(directory))(_CONFIG)).get("record", {}))


def _read_config(content: dict[str, Any], directory: Path) -> TranscoderConfig:
    match content.get("transcoder"):
        case dict(values):
            values = cast(dict[str, Any], values)
        case other:
            raise CheckpointError(f"{directory / _CONFIG} describes {other!r} in place of a transcoder.")
    kind = values.get("kind", "cross_layer")  # the first format had no other
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"{directory / _CONFIG} describes a {kind!r}; known kinds are {', '.join(KINDS)}.")
    try:
        return from_dict(KINDS[kind].config, values)
    except ConfigError as error:
        raise CheckpointError(f"{directory / _CONFIG} does not describe a transcoder: {error}") from error


def _read_own(content: dict[str, Any], directory: Path) -> OwnArchitecture | None:
    match content.get("architecture"):
        case None:
            return None
        case {"class_path": str(class_path), "init_args": dict(init_args)}:
            return OwnArchitecture(class_path, cast(dict[str, Any], init_args))
        case other:
            raise CheckpointError(f"{directory / _CONFIG} gives {other!r} in place of the class of its architecture.")


def _check_size(config: TranscoderConfig, tensors: dict[str, Tensor], directory: Path) -> None:
    """A damaged config is noticed before memory is taken for the numbers in it."""
    shape = (config.n_layers, config.n_features, config.d_model)
    if "W_enc" in tensors and tensors["W_enc"].shape != shape:
        raise _wrong_shape("W_enc", tensors["W_enc"], shape, directory)


def _wrong_shape(name: str, tensor: Tensor, expected: tuple[int, ...], directory: Path) -> CheckpointError:
    return CheckpointError(
        f"{directory}: {name!r} has shape {tuple(tensor.shape)}, its config asks for {tuple(expected)}."
    )


def _check_shapes(expected: dict[str, Tensor], stored: dict[str, Tensor], directory: Path) -> None:
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise CheckpointError(f"{directory} lacks the tensor {name!r} that its config asks for.")
        if name not in expected:
            raise CheckpointError(f"{directory} holds a tensor {name!r} that its config does not know.")
        if expected[name].shape != stored[name].shape:
            raise _wrong_shape(name, stored[name], tuple(expected[name].shape), directory)
