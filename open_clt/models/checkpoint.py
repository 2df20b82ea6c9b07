"""Transcoders on disk: a directory with ``config.json`` and ``transcoder.safetensors``; nothing is ever unpickled.

The config says all that the tensors do not: format and version, shape, nonlinearity, hooks, language model, and the
class where that is a user's own.
Loading what was saved gives the same outputs, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from open_clt.config import CrossLayerConfig, MoltConfig, TranscoderConfig
from open_clt.config_json import from_dict, to_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.models.architectures import OwnArchitecture, make_transcoder, own_architecture
from open_clt.models.transcoder import Transcoder

FORMAT = "open-clt-transcoder"
FORMAT_VERSION = 3
"""1 knew cross-layer transcoders only, and no prefixes; 2 no classes of users' own. Both are read as before."""
_WITHOUT_OWN = 2
"""What a transcoder of this package's kinds is written as: older versions read it, and nothing in it is new to them."""
_KINDS: dict[str, type[TranscoderConfig]] = {"cross_layer": CrossLayerConfig, "molt": MoltConfig}
_CONFIG = "config.json"
_TENSORS = "transcoder.safetensors"


def save_transcoder(
    transcoder: Transcoder,
    directory: str | Path,
    *,
    record: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a transcoder to a directory, and return it.

    ``record`` (JSON-ready: how it was trained, what it scored) is kept beside the config. ``dtype`` stores the
    weights in fewer bytes than they have; the outputs are then equal only to that precision.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in transcoder.state_dict().items()}
    if dtype is not None:
        tensors = {name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}
    own = own_architecture(transcoder)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION if own else _WITHOUT_OWN,
        "transcoder": to_dict(transcoder.config),
        **({"architecture": own._asdict()} if own else {}),
        "record": record or {},
    }
    # Tensors first, each file moved into place whole: an interrupted save never leaves half a checkpoint behind.
    save_file(tensors, directory / (_TENSORS + ".part"))
    (directory / (_TENSORS + ".part")).replace(directory / _TENSORS)
    (directory / (_CONFIG + ".part")).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (directory / (_CONFIG + ".part")).replace(directory / _CONFIG)
    return directory


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Only weight tables shrink: biases, thresholds and statistics are few, and their precision matters."""
    return tensor.to(dtype) if name.startswith("W_") else tensor


def load_transcoder(
    directory: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Transcoder:
    """Read a transcoder that ``save_transcoder`` wrote; raises CheckpointError on anything else.

    One of a class of a user's own imports the module that its ``config.json`` names, if this Python can find it: code
    of that module runs. Nothing is fetched, and nothing but a subclass of Transcoder is called.
    """
    directory = Path(directory)
    content = _read_json(directory)
    config = _read_config(content, directory)
    tensors = _read_tensors(directory / _TENSORS)
    try:
        transcoder = make_transcoder(config, own=_read_own(content, directory))
    except ConfigError as error:
        raise CheckpointError(f"{directory / _CONFIG}: {error}") from error
    expected = transcoder.state_dict()
    _check_shapes(expected, tensors, directory)
    transcoder.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    return transcoder.to(device=device, dtype=dtype).eval()


def read_record(directory: str | Path) -> dict[str, Any]:
    """The record that was saved with a transcoder."""
    return cast(dict[str, Any], _read_json(Path(directory)).get("record", {}))


def _read_json(directory: Path) -> dict[str, Any]:
    path = directory / _CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no {_CONFIG}, so it is no OpenCLT transcoder; give the directory that training wrote."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no readable JSON ({error}); the checkpoint is damaged.") from error
    if not isinstance(content, dict) or cast(dict[str, Any], content).get("format") != FORMAT:
        raise CheckpointError(f"{path} is not of the format {FORMAT!r}; another program wrote it.")
    content = cast(dict[str, Any], content)
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, this OpenCLT reads up to {FORMAT_VERSION}; please update OpenCLT."
        )
    return content


def _read_config(content: dict[str, Any], directory: Path) -> TranscoderConfig:
    values = cast(dict[str, Any], content.get("transcoder", {}))
    kind = values.get("kind", "cross_layer")  # the first format had no other
    if kind not in _KINDS:
        raise CheckpointError(f"{directory / _CONFIG} describes a {kind!r}; known kinds are {', '.join(_KINDS)}.")
    try:
        return from_dict(_KINDS[kind], values)
    except ConfigError as error:
        raise CheckpointError(f"{directory / _CONFIG} describes no transcoder: {error}") from error


def _read_own(content: dict[str, Any], directory: Path) -> OwnArchitecture | None:
    match content.get("architecture"):
        case None:
            return None
        case {"class_path": str(class_path), "init_args": dict(init_args)}:
            return OwnArchitecture(class_path, cast(dict[str, Any], init_args))
        case other:
            raise CheckpointError(f"{directory / _CONFIG} names no class of its architecture, but {other!r}.")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); it may be truncated.") from error


def _check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise CheckpointError(f"{where} lacks the tensor {name!r} that its config asks for.")
        if name not in expected:
            raise CheckpointError(f"{where} holds a tensor {name!r} that its config does not know.")
        if expected[name].shape != found[name].shape:
            raise CheckpointError(
                f"{where}: {name!r} has shape {tuple(found[name].shape)}, "
                f"its config asks for {tuple(expected[name].shape)}."
            )
