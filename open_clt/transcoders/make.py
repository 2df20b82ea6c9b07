"""The table of the kinds of transcoder, and ``make_transcoder``, which builds the transcoder that a config describes.

Users may define a subclass of Transcoder, which is built from a config, a ``seed`` and further keyword arguments. Such
a transcoder remembers its class and arguments, and its checkpoint stores them. Loading builds the class only if
``OwnCode`` allows it, because a checkpoint may come from a stranger.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast, final

from open_clt.config import CrossLayerConfig, MoltConfig, TranscoderConfig
from open_clt.config.arguments import checked_arguments
from open_clt.errors import CheckpointError, ConfigError
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


@final
@dataclass(frozen=True)
class OwnArchitecture:
    """A user's subclass of Transcoder, and the arguments that it is built with."""

    class_path: str
    """Module and name of the subclass of Transcoder, such as ``my_module.MyTranscoder``."""
    init_args: dict[str, Any]
    """Keyword arguments beside config and seed; their values are plain values that JSON can hold."""
    own_class: type[Any] | None = field(default=None, compare=False)
    """The class itself, if the caller has it; otherwise ``class_path`` is imported."""

    def as_dict(self) -> dict[str, Any]:
        """The form that a checkpoint stores."""
        return {"class_path": self.class_path, "init_args": self.init_args}


@final
@dataclass(frozen=True, kw_only=True)
class OwnCode:
    """Which code outside OpenCLT a checkpoint may use: none, one given class, or the class that it names."""

    own_class: type[Any] | None = None
    """The class of the transcoder if it is not one of OpenCLT's; then nothing is imported."""
    trust_code: bool = False
    """Whether the class that a checkpoint names is imported, so that the code of its module runs."""

    def architecture(self, stored: object, path: Path) -> OwnArchitecture | None:
        """The class and arguments that a checkpoint's file stores; None if it stores none.

        Raises CheckpointError if the file names a class that it may not use, ConfigError if ``own_class`` is wrong.
        """
        match stored:
            case None:
                if self.own_class is not None:
                    raise ConfigError(f"{path} holds a transcoder of OpenCLT's own classes; leave out own_class.")
                return None
            case {"class_path": str(class_path), "init_args": dict(init_args)}:
                return self._allowed(class_path, cast(dict[str, Any], init_args), path)
            case _:
                raise CheckpointError(
                    f"{path} has {stored!r} as 'architecture'; it must be an object with class_path and init_args."
                )

    def _allowed(self, class_path: str, init_args: dict[str, Any], path: Path) -> OwnArchitecture:
        if self.own_class is not None:
            own_class = _checked(self.own_class, "own_class")
            return OwnArchitecture(_path_of(own_class), init_args, own_class)
        if self.trust_code:
            return OwnArchitecture(class_path, init_args)
        raise CheckpointError(
            f"{path} names the class {class_path!r}, whose code is not imported unless you trust it; give its class as "
            "own_class, or give trust_code=True or --trust-code."
        )


NO_CODE = OwnCode()
"""No code outside OpenCLT."""


@checked_arguments
def make_transcoder(config: TranscoderConfig, *, seed: int = 0, own: OwnArchitecture | None = None) -> Transcoder:
    """Build an untrained transcoder of any kind, with weights drawn from ``seed``.

    ``own`` builds a user's subclass of Transcoder instead. That class is imported, unless ``own`` has it, so the code
    of its module runs.
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
    return vars(transcoder).get(_ARCHITECTURE_ATTRIBUTE) or OwnArchitecture(_path_of(cls), {}, cls)


def _path_of(cls: type[Transcoder]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _make_own(own: OwnArchitecture, config: TranscoderConfig, seed: int) -> Transcoder:
    transcoder_class = cast(Any, own.own_class or _import_class(own.class_path))
    try:
        json.dumps(own.init_args)
        transcoder = transcoder_class(config, seed=seed, **own.init_args)
    except TypeError as error:
        raise ConfigError(f"{own.class_path} cannot be made with init_args {own.init_args}: {error}.") from error
    vars(transcoder)[_ARCHITECTURE_ATTRIBUTE] = own  # a plain attribute, which deep copies keep
    return transcoder


def _import_class(class_path: str) -> type[Transcoder]:
    """Import a subclass of Transcoder; any other class is refused, and not called."""
    module, _, name = class_path.rpartition(".")
    try:
        imported = getattr(importlib.import_module(module), name)
    except ConfigError:  # the class itself is illegal
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The transcoder's class {class_path!r} cannot be imported ({error}); add the directory of its module to "
            "PYTHONPATH."
        ) from error
    return _checked(imported, repr(class_path))


def _checked(value: Any, name: str) -> type[Transcoder]:
    """Return a class that is a subclass of Transcoder; raises ConfigError for any other value."""
    if isinstance(value, type) and issubclass(value, Transcoder):
        return value
    raise ConfigError(f"{name} is {value!r}, which is not a subclass of Transcoder; give a class that is one.")
