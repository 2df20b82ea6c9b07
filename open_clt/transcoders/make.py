"""The table of the kinds of transcoder, and ``make_transcoder``, which builds the transcoder that a config describes.

Users may define a subclass of Transcoder, which is built from a config, a ``seed`` and further keyword arguments. Such
a transcoder remembers its class and arguments, and its checkpoint stores them, so that loading builds the same class.
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
    """A kind of transcoder: the class of its config, and the class that is built from a config."""

    config: type[TranscoderConfig]
    transcoder: Callable[..., Transcoder]


KINDS = {
    kind.config.kind: kind
    for kind in (
        Kind(CrossLayerConfig, CrossLayerTranscoder),
        Kind(MoltConfig, Molt),
    )
}
"""Every kind of transcoder, by the ``kind`` of its config. A new kind is a line here and in ``TranscoderConfig``."""
_ARCHITECTURE_ATTRIBUTE = "_made_as"


class OwnArchitecture(NamedTuple):
    """A user's subclass of Transcoder, and the arguments that it is built with."""

    class_path: str
    """Module and name of the subclass of Transcoder, such as ``my_module.MyTranscoder``."""
    init_args: dict[str, Any]
    """Keyword arguments beside config and seed; their values are plain values that JSON can hold."""


def make_transcoder(config: TranscoderConfig, *, seed: int = 0, own: OwnArchitecture | None = None) -> Transcoder:
    """Build an untrained transcoder of any kind, with weights drawn from ``seed``.

    ``own`` builds a user's subclass of Transcoder instead. That class is imported, so the code of its module runs.
    Raises ConfigError if the class cannot be imported, is not a subclass of Transcoder, or refuses its arguments.
    """
    return KINDS[config.kind].transcoder(config, seed=seed) if own is None else _make_own(own, config, seed)


def own_architecture(transcoder: Transcoder) -> OwnArchitecture | None:
    """The class and arguments of a transcoder of a user's subclass; None for the kinds of this package.

    The arguments are known only for a transcoder that ``make_transcoder`` built, and for its copies.
    """
    cls = type(transcoder)
    if any(cls is kind.transcoder for kind in KINDS.values()):
        return None
    return vars(transcoder).get(_ARCHITECTURE_ATTRIBUTE) or OwnArchitecture(f"{cls.__module__}.{cls.__qualname__}", {})


def _make_own(own: OwnArchitecture, config: TranscoderConfig, seed: int) -> Transcoder:
    transcoder_class = _import_class(own.class_path)
    try:
        json.dumps(own.init_args)
        transcoder = transcoder_class(config, seed=seed, **own.init_args)
    except TypeError as error:
        raise ConfigError(f"{own.class_path} cannot be made with init_args {own.init_args}: {error}.") from error
    vars(transcoder)[_ARCHITECTURE_ATTRIBUTE] = own  # a plain attribute, which deep copies keep
    return transcoder


def _import_class(class_path: str) -> Any:
    """Import a subclass of Transcoder; any other class that an untrusted checkpoint names is refused, not called."""
    module, _, name = class_path.rpartition(".")
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The transcoder's class {class_path!r} cannot be imported ({error}); add the directory of its module to "
            "PYTHONPATH."
        ) from error
    if not (isinstance(imported, type) and issubclass(imported, Transcoder)):
        raise ConfigError(f"{class_path!r} is not a subclass of Transcoder; name a class that is one.")
    return imported
