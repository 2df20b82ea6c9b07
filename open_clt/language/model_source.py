"""Where the name of a language model leads: the embedded model, a directory, a ``.gguf`` file, or a name on a hub.

What can be known without loading a model is found out here, and told in one sentence: libraries further down would
search, retry for half a minute, or fail with a traceback. The hub is asked once, and only for what is not here yet.
"""

from __future__ import annotations

import importlib.util
import re
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from open_clt.errors import HubUnreachableError, LanguageModelError, MissingExtraError

HUB_TIMEOUT = 3.0
"""Seconds that the hub has to answer, name resolution included."""

_LOCAL = "a local directory or .gguf file, or 'embedded', the model that needs no network"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What transformers needs to know to load a model."""

    name: str
    """What the user called it."""
    location: str
    """A directory, or a name on the hub."""
    gguf_file: str | None = None
    """The file inside the directory, for a model in GGUF."""
    local: bool = True
    """Whether all files are here already, so that no network is asked."""


def find_model(name: str) -> ModelSource:
    """Find out where a name leads; raises LanguageModelError where it leads nowhere, within seconds."""
    if name == "embedded":
        return _embedded()
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _gguf(name, path)
    if name and path.is_dir():
        return _directory(name, path)
    if not _HUB_NAME.fullmatch(name):
        what = "is a file that is no .gguf" if path.is_file() else "does not exist"
        raise LanguageModelError(f"{name!r} {what}; give a Hugging Face name, {_LOCAL}.")
    return _hub(name)


def _embedded() -> ModelSource:
    folder = Path(str(files("open_clt"))) / "embedded" / "model"
    if not (folder / "config.json").is_file():
        raise LanguageModelError(f"The embedded model is missing from {folder}; reinstall the package open-clt.")
    return ModelSource(name="embedded", location=str(folder))


def _gguf(name: str, path: Path) -> ModelSource:
    if not path.is_file():
        raise LanguageModelError(f"There is no file {path}; check the path, or give {_LOCAL}.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LanguageModelError(f"{path} does not begin as GGUF files do; download it again, or give {_LOCAL}.")
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("Reading .gguf files needs the package gguf; pip install 'open-clt[gguf]'.")
    return ModelSource(name=name, location=str(path.parent), gguf_file=path.name)


def _directory(name: str, folder: Path) -> ModelSource:
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if not (folder / "config.json").is_file():
        advice = f"did you mean the file {folder / ggufs[0]}?" if ggufs else f"give {_LOCAL}."
        raise LanguageModelError(f"The directory {folder} holds no config.json, so no language model; {advice}")
    if not _has_weights(folder):
        raise LanguageModelError(
            f"The directory {folder} holds no weights (model.safetensors or the like); complete it, or give {_LOCAL}."
        )
    return ModelSource(name=name, location=str(folder))


def _has_weights(folder: Path) -> bool:
    return any(path.is_file() for pattern in _WEIGHTS for path in folder.glob(pattern))


def _hub(name: str) -> ModelSource:
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str) and _has_weights(Path(cached).parent):
        return ModelSource(name=name, location=str(Path(cached).parent))
    if constants.HF_HUB_OFFLINE:
        why = "the environment variable HF_HUB_OFFLINE forbids asking the hub"
    elif not answers(f"{constants.ENDPOINT}/{name}/resolve/main/config.json"):
        why = f"{constants.ENDPOINT} does not answer"
    else:
        return ModelSource(name=name, location=name, local=False)
    raise HubUnreachableError(f"The language model {name!r} is not on this machine, and {why}; give {_LOCAL}.")


def answers(address: str) -> bool:
    """Whether an HTTP server answers in time. The thread is there because resolving a name heeds no timeout."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(address)), daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    return any(answers)


def _ask(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # "no such model", or "not without a token": the download will tell which
    except urllib.error.URLError as error:
        # Behind a certificate of its own a hub does answer; huggingface_hub knows more certificates than we do.
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError):
        return False
