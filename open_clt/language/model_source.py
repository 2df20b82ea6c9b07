"""The source of a language model: the embedded model, a directory, a ``.gguf`` file, or a name on the Hugging Face hub.

``find_model`` checks the name before any library loads the model, and raises one clear error where transformers would
search, retry for half a minute, or fail with a traceback. It asks the hub once, and only for a model that is not on
this machine.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from open_clt import files
from open_clt.errors import CheckpointError, HubUnreachableError, LanguageModelError, MissingExtraError
from open_clt.hub.reachable import answers

_LOCAL = "a local directory or .gguf file, or 'embedded', the model that needs no network"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that name the files of a model whose weights are divided."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The source of a language model, as transformers needs it to load the model."""

    name: str
    """Name of the model, as the user gave it."""
    location: str
    """Directory of the model, or its name on the hub."""
    gguf_file: str | None = None
    """Name of the GGUF file inside the directory, or None for a model that is not in GGUF."""
    local: bool = True
    """Whether all files are on this machine, so that no network is needed."""


def find_model(name: str) -> ModelSource:
    """Find the source of the model with this name; raises LanguageModelError, within seconds, if it has none."""
    if name == "embedded":
        return _embedded()
    try:
        path = files.existing_path(name)
    except CheckpointError as error:
        raise LanguageModelError(str(error)) from error
    if name.endswith(".gguf"):
        return _gguf(name, path)
    if path is not None and path.is_dir():
        return _directory(name, path)
    if not _HUB_NAME.fullmatch(name):
        problem = "does not exist" if path is None else "is a file, but not a .gguf file"
        raise LanguageModelError(f"{name!r} {problem}; give a Hugging Face name, {_LOCAL}.")
    return _hub(name)


def _embedded() -> ModelSource:
    folder = Path(str(resources.files("open_clt"))) / "embedded" / "model"
    if not (folder / "config.json").is_file():
        raise LanguageModelError(f"The embedded model is missing from {folder}; reinstall the package open-clt.")
    return ModelSource(name="embedded", location=str(folder))


def _gguf(name: str, path: Path | None) -> ModelSource:
    if path is None or not path.is_file():
        raise LanguageModelError(f"The file {name} does not exist; check the path, or give {_LOCAL}.")
    with files.opened(path, unpack=False) as file:
        if file.read(4) != b"GGUF":
            raise LanguageModelError(f"{path} is not a GGUF file; download it again, or give {_LOCAL}.")
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("Reading a .gguf file needs the package gguf; run pip install 'open-clt[gguf]'.")
    return ModelSource(name=name, location=str(path.parent), gguf_file=path.name)


def _directory(name: str, folder: Path) -> ModelSource:
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if not (folder / "config.json").is_file():
        advice = f"did you mean the file {folder / ggufs[0]}?" if ggufs else f"give {_LOCAL}."
        raise LanguageModelError(f"The directory {folder} has no config.json, so it is not a language model; {advice}")
    if not _has_weights(folder):
        raise LanguageModelError(
            f"The directory {folder} has no weights (such as model.safetensors); add them, or give {_LOCAL}."
        )
    _check_shards(folder)
    return ModelSource(name=name, location=str(folder))


def _has_weights(folder: Path) -> bool:
    return any(path.is_file() for pattern in _WEIGHTS for path in folder.glob(pattern))


def _check_shards(folder: Path) -> None:
    """Raise LanguageModelError if an index names files outside its directory, or special files such as devices."""
    try:
        for index in (folder / name for name in _INDICES):
            content = files.read_json(index) if index.is_file() else {}
            shards = cast(dict[str, Any], content).get("weight_map", {}) if isinstance(content, dict) else None
            if not isinstance(shards, dict):
                raise LanguageModelError(f"{index} does not say which file holds which weight; download it again.")
            for name in cast(dict[str, Any], shards).values():
                files.check_regular(files.inside(folder, name))
    except CheckpointError as error:
        raise LanguageModelError(str(error)) from error


def _hub(name: str) -> ModelSource:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise LanguageModelError(
            f"{name!r} is not a name of the Hugging Face hub; check it, or give {_LOCAL}."
        ) from error
    if isinstance(cached, str) and _has_weights(Path(cached).parent):
        _check_shards(Path(cached).parent)
        return ModelSource(name=name, location=str(Path(cached).parent))
    if constants.HF_HUB_OFFLINE:
        reason = "the environment variable HF_HUB_OFFLINE forbids asking the hub"
    elif not answers(f"{constants.ENDPOINT}/{name}/resolve/main/config.json"):
        reason = f"{constants.ENDPOINT} does not answer"
    else:
        return ModelSource(name=name, location=name, local=False)
    raise HubUnreachableError(f"The language model {name!r} is not on this machine, and {reason}; give {_LOCAL}.")
