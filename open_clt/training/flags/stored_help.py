"""The stored help of ``open-clt train``: making it imports Lightning, which takes seconds.

``help.txt`` begins with a hash of everything that the help is made from: our configs and flags, and the versions of
Lightning and jsonargparse. If the hash is another one here, the text is not used, and the command makes its help anew.
``make train-help`` writes the file.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pkgutil import get_data

NAME = "help.txt"
_MADE_OF = (
    *(f"config/{name}.py" for name in ("dataset", "texts", "training", "transcoder", "use")),
    *(f"training/flags/{name}.py" for name in ("command_line", "settings", "source")),
    "training/callbacks.py",
    "training/trainer.py",
)
"""Files of the package whose text decides on the help."""
_LIBRARIES = ("jsonargparse", "lightning")


def stored_help() -> str | None:
    """The help of ``open-clt train``; None if it was made from other files, or with other versions."""
    made_of, _, text = _content(f"training/flags/{NAME}").decode().partition("\n")
    return text if made_of == digest() else None


def digest() -> str:
    """A hash of what the help is made from."""
    state = hashlib.sha256(repr([version(name) for name in _LIBRARIES]).encode())
    for name in _MADE_OF:
        state.update(_content(name))
    return state.hexdigest()


def _content(name: str) -> bytes:
    """A file of the package, with the same ends of lines on every system."""
    content = get_data("open_clt", name)
    return (content or b"").replace(b"\r\n", b"\n")
