"""Configs through JSON: to plain values, and back with every key and value checked.

``to_dict`` and ``from_dict`` work on any frozen dataclass whose fields are plain values, such dataclasses, or tuples
and dicts of them; one of several alternatives is found by its ``kind``. A key that no setting has is an error that
suggests the nearest name.
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
    """Turn a config into plain JSON-ready values, nested configs included."""
    if not is_dataclass(config):
        raise ConfigError(f"{config!r} is no config.")
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build a config of class ``kind`` from plain values; raises ConfigError on unknown or missing keys."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(cast(Any, kind))}
    for key in values:
        if key not in known:
            raise ConfigError(f"{kind.__name__} has no setting {key!r}; {nearest_name(key, list(known))}")
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{kind.__name__} needs the setting {name!r}, which is missing.")
    return kind(**{key: _typed(hints[key], value, f"{kind.__name__}.{key}") for key, value in values.items()})


def _plain(value: object) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in cast(tuple[Any, ...], value)]
    return to_dict(value) if is_dataclass(value) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check ``value`` against a field's type, and build nested configs."""
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(cast(type[Any], hint), cast(dict[str, Any], value))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _one_of(typing.get_args(hint), value, where)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; it must be a list of {getattr(item, '__name__', item)}.")
        return tuple(_typed(item, element, where) for element in cast(Sequence[Any], value))
    if typing.get_origin(hint) is dict:
        item = typing.get_args(hint)[1]
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}; it must be an object.")
        entries = cast(dict[str, Any], value).items()
        return {key: _typed(item, element, f"{where}[{key!r}]") for key, element in entries}
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
        expected = " or ".join(map(repr, typing.get_args(hint))) or getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{where} is {value!r}; it must be {expected}.")
    return value


def _one_of(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """Pick the alternative that a value belongs to: among several configs by its ``kind``, else by its type."""
    classes = [option for option in options if is_dataclass(option)]
    if len(classes) == 1 and isinstance(value, dict):
        return from_dict(cast(type[Any], classes[0]), cast(dict[str, Any], value))
    if classes and isinstance(value, dict):
        configs = {cast(Any, option).kind: option for option in classes}
        values = cast(dict[str, Any], value)
        if values.get("kind") not in configs:
            raise ConfigError(f"{where}.kind is {values.get('kind')!r}; it must be one of {', '.join(configs)}.")
        return from_dict(cast(type[Any], configs[values["kind"]]), values)
    for option in options:
        try:
            return _typed(option, value, where)
        except (ConfigError, TypeError):
            continue
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"{where} is {value!r}; it must be {names}.")


def nearest_name(name: str, known: Sequence[str]) -> str:
    """Half a sentence that suggests the known name most like ``name``, or lists all known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
