"""Conversion of configs to plain JSON values, and back with every key and value checked.

``to_dict`` and ``from_dict`` work on any frozen dataclass whose fields are plain values, further such dataclasses, or
tuples and dicts of these. Among several alternative classes, the ``kind`` of a value chooses one. An unknown key is an
error that suggests the nearest name.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast

from open_clt.errors import ConfigError

Config = TypeVar("Config")


def to_dict(config: object) -> dict[str, Any]:
    """Turn a config and the configs in it into plain values that JSON can hold."""
    if not is_dataclass(config):
        raise ConfigError(f"{config!r} is not a config; give one of the classes of open_clt.config.")
    return {entry.name: _plain(getattr(config, entry.name)) for entry in fields(config)}


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build a config of class ``kind`` from plain values.

    Raises ConfigError for a key that is unknown or missing, and for an illegal value.
    """
    hints = typing.get_type_hints(kind)
    entries = {entry.name: entry for entry in fields(cast(Any, kind))}
    for key in values:
        if key not in entries:
            raise ConfigError(f"{kind.__name__} has no setting {key!r}; {nearest_name(key, list(entries))}")
    for name, entry in entries.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{kind.__name__} needs the setting {name!r}, which is missing.")
    return kind(**{key: _checked(hints[key], value, f"{kind.__name__}.{key}") for key, value in values.items()})


def _plain(value: object) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in cast(tuple[Any, ...], value)]
    return to_dict(value) if is_dataclass(value) else value


def _checked(hint: Any, value: Any, setting: str) -> Any:
    """Check ``value`` against a field's type and return it, with dicts turned into the configs that they describe."""
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(cast(type[Any], hint), cast(dict[str, Any], value))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _alternative(typing.get_args(hint), value, setting)
    if typing.get_origin(hint) is tuple:
        item_hint = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            name = getattr(item_hint, "__name__", item_hint)
            raise ConfigError(f"{setting} is {value!r}; it must be a list of {name}.")
        return tuple(_checked(item_hint, item, setting) for item in cast(Sequence[Any], value))
    if typing.get_origin(hint) is dict:
        item_hint = typing.get_args(hint)[1]
        if not isinstance(value, dict):
            raise ConfigError(f"{setting} is {value!r}; it must be an object.")
        items = cast(dict[str, Any], value).items()
        return {key: _checked(item_hint, item, f"{setting}[{key!r}]") for key, item in items}
    if hint is Any:
        return value
    if typing.get_origin(hint) is Literal:
        legal = isinstance(value, str) and value in typing.get_args(hint)
    elif hint is float:
        legal = isinstance(value, int | float) and not isinstance(value, bool)
    elif hint is int:
        legal = isinstance(value, int) and not isinstance(value, bool)
    else:
        legal = isinstance(value, cast(type, hint))
    if not legal:
        legal_values = " or ".join(map(repr, typing.get_args(hint))) or getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{setting} is {value!r}; it must be {legal_values}.")
    return value


def _alternative(hints: tuple[Any, ...], value: Any, setting: str) -> Any:
    """Check ``value`` against alternative types; among several configs, the ``kind`` in ``value`` chooses one."""
    classes = [hint for hint in hints if is_dataclass(hint)]
    if len(classes) == 1 and isinstance(value, dict):
        return from_dict(cast(type[Any], classes[0]), cast(dict[str, Any], value))
    if classes and isinstance(value, dict):
        class_of_kind = {cast(Any, config).kind: config for config in classes}
        values = cast(dict[str, Any], value)
        if values.get("kind") not in class_of_kind:
            kinds = ", ".join(class_of_kind)
            raise ConfigError(f"{setting}.kind is {values.get('kind')!r}; it must be one of {kinds}.")
        return from_dict(cast(type[Any], class_of_kind[values["kind"]]), values)
    for hint in hints:
        try:
            return _checked(hint, value, setting)
        except (ConfigError, TypeError):
            continue
    names = " or ".join(getattr(hint, "__name__", str(hint)) for hint in hints)
    raise ConfigError(f"{setting} is {value!r}; it must be {names}.")


def nearest_name(name: str, known: Sequence[str]) -> str:
    """The end of an error message: it suggests the known name nearest to ``name``, or lists all known names."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known names are {', '.join(known)}."
