"""The kinds of transcoder in one table, and from a config to the transcoder that it describes.

A class of a user's own is a subclass of Transcoder, made from a config, a ``seed``, and what else it needs, by name. A
transcoder remembers what it was made with, and its checkpoint says it: no other class is ever taken for it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from open_clt.config import CrossLayerConfig, MoltConfig, TranscoderConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.molt import Molt
from open_clt.transcoders.transcoder import Transcoder


class Kind(NamedTuple):
    """A kind of transcoder: the class of its configs, and the class that is made from one."""

    config: type[TranscoderConfig]
    transcoder: Callable[..., Transcoder]


KINDS = {
    kind.config.kind: kind
    for kind in (
        Kind(CrossLayerConfig, CrossLayerTranscoder),
        Kind(MoltConfig, Molt),
    )
}
"""Every kind of transcoder by the ``kind`` of its config; a new one is a line here and a member of TranscoderConfig."""
_MADE_AS = "_made_as"


class OwnArchitecture(NamedTuple):
    """A class of a user's own, and what it is made with."""

    class_path: str
    """Module and name of a subclass of Transcoder."""
    init_args: dict[str, Any]
    """What it is made with beside config and seed, by name; plain values, as JSON has them."""


def make_transcoder(config: TranscoderConfig, *, seed: int = 0, own: OwnArchitecture | None = None) -> Transcoder:
    """An untrained transcoder of any kind, its weights drawn from ``seed``; or one of a class of the user's own.

    An ``own`` class is imported, so code of its module runs. Raises ConfigError if it cannot be imported, is not a
    Transcoder, or cannot be made with these arguments.
    """
    return KINDS[config.kind].transcoder(config, seed=seed) if own is None else _make_own(own, config, seed)


def own_architecture(transcoder: Transcoder) -> OwnArchitecture | None:
    """What makes another transcoder of a user's own class; None for the kinds of this package.

    Arguments are known of those that ``make_transcoder`` made, and of their copies.
    """
    own = type(transcoder)
    if any(own is kind.transcoder for kind in KINDS.values()):
        return None
    return vars(transcoder).get(_MADE_AS) or OwnArchitecture(f"{own.__module__}.{own.__qualname__}", {})


def _make_own(own: OwnArchitecture, config: TranscoderConfig, seed: int) -> Transcoder:
    transcoder_class = _imported(own.class_path)
    try:
        json.dumps(own.init_args)
        made = transcoder_class(config, seed=seed, **own.init_args)
    except TypeError as error:
        raise ConfigError(f"{own.class_path} cannot be made with init_args {own.init_args}: {error}.") from error
    vars(made)[_MADE_AS] = own  # past nn.Module, whose attributes are tensors and modules; deep copies keep it
    return made


def _imported(class_path: str) -> Any:
    """The class; nothing but a Transcoder is ever called, whatever class a stranger's checkpoint names."""
    module, _, name = class_path.rpartition(".")
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The transcoder's class {class_path!r} cannot be imported: {error}; put the directory of its module on "
            "PYTHONPATH."
        ) from error
    if not (isinstance(imported, type) and issubclass(imported, Transcoder)):
        raise ConfigError(f"{class_path!r} is not a subclass of Transcoder, so no transcoder is made from it.")
    return imported
