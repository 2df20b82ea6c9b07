"""Files of checkpoints: JSON for the structure and safetensors for the tensors; nothing is ever unpickled.

A checkpoint is a directory. ``state.json`` holds the nested dicts and lists of Lightning's checkpoint, with each tensor
replaced by its name in ``tensors.safetensors``. Tags mark the types that JSON lacks: ``{"tensor": name}``,
``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, final

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.finite import check_finite, nested_tensors

FORMAT = files.FileFormat("open-clt-training", newest=1)
_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_LOWEST_FVU = "held_out_fvu"
"""File that older versions wrote beside the best checkpoint; it is deleted with the checkpoint."""


@final
class SafetensorsCheckpointIO(CheckpointIO):
    """A Trainer plugin that writes and reads Lightning's checkpoints without pickle: ``Trainer(plugins=...)``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint to the directory ``path``, whole or not at all; it replaces a former checkpoint there.

        Raises ConfigError if files of other programs have the names of the checkpoint's files.
        """
        files.check_artefact(Path(path), (_STATE, _TENSORS), FORMAT)
        tensors: dict[str, Tensor] = {}
        state = {**FORMAT.header(), "state": _encode(checkpoint, tensors)}
        with files.saving(Path(path)) as stage:
            files.write_tensors(stage(_TENSORS), tensors)
            files.write_json(stage(_STATE), state, indent=None)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU.

        Raises CheckpointError if it is missing, damaged, sharded or foreign, or if a weight or a number of the
        optimizer is not finite.
        """
        path = Path(path)
        files.check_readable(path)
        for first_slice in path.glob("shard_0_of_*"):
            shards = first_slice.name.rpartition("_")[2]
            raise CheckpointError(
                f"{path} is a checkpoint of {shards} processes that share its features; resume with {shards} shards "
                "(trainer.devices, trainer.strategy), or join them with open_clt.training.parallel.merge_checkpoint."
            )
        content, tensors = files.read_saved(
            path, _STATE, lambda saved: (FORMAT.read(saved(_STATE)), files.read_tensors(saved(_TENSORS)))
        )
        state = _state(path, content, tensors)
        for part in ("state_dict", "optimizer_states"):
            for name, tensor in nested_tensors(state.get(part), part):
                check_finite(tensor, f"{path}: {name}", error=CheckpointError)
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint if it exists."""
        if is_checkpoint(Path(path)):
            remove_checkpoint(Path(path))


def read_values(path: Path) -> dict[str, Any]:
    """Read a checkpoint without its tensors, each of which is empty; of several processes, read the first slice."""
    path = _first_slice(path)
    content = files.read_saved(path, _STATE, lambda saved: FORMAT.read(saved(_STATE)))
    return _state(path, content, defaultdict(lambda: torch.empty(0)))


def _state(path: Path, content: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of a training run whose JSON form and tensors were read from ``path``."""
    try:
        state = _decode(content["state"], tensors)
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in cast(dict[Any, Any], state)):
            raise TypeError("it is not an object of names and values")
        return cast(dict[str, Any], state)
    except (*files.WRONG_VALUES, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold the complete state of a training run ({error!r}).") from error


def holds_checkpoint(path: Path) -> bool:
    """Whether a directory holds a checkpoint that can be read; a first save that was interrupted leaves none."""
    return is_checkpoint(path) and files.can_be_read(_first_slice(path), _STATE)


def _first_slice(path: Path) -> Path:
    """The directory of the state of a checkpoint; of several processes, that of the first one."""
    return next(iter(sorted(path.glob("shard_0_of_*"))), path)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint of OpenCLT, of one process or of several, or the start of one."""
    return any(files.is_ours(folder, _STATE, FORMAT) for folder in (path, *path.glob("shard_*_of_*")))


def finish_checkpoints(directory: Path) -> None:
    """Finish interrupted saves of the checkpoints in a directory: each is then the former or the new one."""
    for journal in (*directory.glob("*/.saving-*"), *directory.glob("*/shard_*_of_*/.saving-*")):
        files.finish_save(journal.parent, _STATE)


def remove_checkpoint(path: Path) -> None:
    """Delete the files of a checkpoint, and its directories if they hold nothing else."""
    for folder in (*path.glob("shard_*_of_*"), path):
        if files.is_ours(folder, _STATE, FORMAT):
            files.remove_saved(folder, _STATE, (_TENSORS, _LOWEST_FVU))
        with suppress(OSError):
            folder.rmdir()


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a value; its tensors are added to ``tensors`` under consecutive numbers."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor() if value.layout == torch.strided:
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().clone().contiguous()
            return {"tensor": name}
        case tuple():
            return {"tuple": [_encode(item, tensors) for item in cast(tuple[Any, ...], value)]}
        case list():
            return [_encode(item, tensors) for item in cast(list[Any], value)]
        case dict():
            items = cast(dict[Any, Any], value).items()
            return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in items]}
        case _:
            raise CheckpointError(
                f"A checkpoint cannot hold {value!r}, a {type(value).__name__}; it holds tensors and plain values only."
            )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value whose JSON form ``_encode`` made."""
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"dict": pairs}:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in pairs}
        case list():
            return [_decode(item, tensors) for item in cast(list[Any], value)]
        case _:
            return value
