"""The types of settings: every config checks them, and is converted to plain JSON values and back.

``to_dict`` and ``from_dict`` work on any frozen dataclass whose fields are plain values, further such dataclasses, or
tuples and dicts of these. Among several alternative classes, the ``kind`` of a value chooses one. An unknown key is an
error that suggests the nearest name.
"""

from __future__ import annotations

import builtins
import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from os import PathLike
from typing import Any, TypeVar, cast

from open_clt.errors import ConfigError, short_value

Config = TypeVar("Config")
_IF_GIVEN = "if given"
IF_GIVEN = {_IF_GIVEN: True}
"""Metadata of a field that ``to_dict`` leaves out while it is None.

Files without the setting are then the same as before it existed, so that older releases read them."""
_LONGEST_VALUE = 60
"""Largest number of characters of a wrong value in an error."""


class CheckedConfig:
    """Base class of the configs: a wrong type is an error when a config is made, from Python as from a file."""

    def __post_init__(self) -> None:
        """Raise ConfigError, which names the field and its value, if the value of a field does not have its type."""
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            setting = f"{type(self).__name__}.{name}"
            checked = _checked(hint, value, setting)
            numbers = cast(tuple[Any, ...], checked) if isinstance(checked, tuple) else (checked,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise _illegal(setting, value, "finite")
            if checked is not value:
                object.__setattr__(self, name, checked)

    def __repr__(self) -> str:
        """The settings that differ from their defaults, as Python code that makes the config."""
        settings = [
            f"{entry.name}={getattr(self, entry.name)!r}"
            for entry in fields(cast(Any, self))
            if entry.init and getattr(self, entry.name) != _default(entry)
        ]
        return f"{type(self).__name__}({', '.join(settings)})"


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def check_record(record: object) -> None:
    """Raise ConfigError if a field of a NamedTuple or dataclass, or of one inside it, does not have its type.

    A number may be NaN, which says that it is not known, but not infinite.
    """
    for name, hint in _hints(type(record)).items():
        _check_records(hint, getattr(record, name), f"{type(record).__name__}.{name}")


def _check_records(hint: Any, value: Any, name: str) -> None:
    """Check a value and every record in it."""
    _checked(hint, value, name)
    for item in cast(tuple[Any, ...], value) if type(value) is tuple else (value,):
        if type(item) is str:
            continue
        if hasattr(item, "_fields"):
            check_record(item)
        elif isinstance(item, float) and math.isinf(item):
            raise _illegal(name, value, "finite")


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of the fields of a config or a record."""
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in fields(kind)] if is_dataclass(kind) else cast(Any, kind)._fields
    return {name: hints[name] for name in names}


def to_dict(config: object) -> dict[str, Any]:
    """Turn a config and the configs in it into plain values that JSON can hold."""
    if not is_dataclass(config):
        raise ConfigError(f"{config!r} is not a config; give one of the classes of open_clt.config.")
    values = {entry: getattr(config, entry.name) for entry in fields(config)}
    return {
        entry.name: _plain(value)
        for entry, value in values.items()
        if value is not None or _IF_GIVEN not in entry.metadata
    }


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build a config of class ``kind`` from plain values.

    Raises ConfigError for a key that is unknown or missing, and for an illegal value.
    """
    hints = _hints(kind)
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
    match typing.get_origin(hint):
        case typing.Union | types.UnionType:
            return _alternative(typing.get_args(hint), value, setting)
        case builtins.tuple:
            return _checked_tuple(typing.get_args(hint), value, setting)
        case builtins.dict:
            return _checked_dict(typing.get_args(hint)[1], value, setting)
        case typing.Literal:
            if isinstance(value, str) and value in typing.get_args(hint):
                return value
            raise _illegal(setting, value, " or ".join(map(repr, typing.get_args(hint))))
        case _:
            return _checked_plain(hint, value, setting)


def _checked_tuple(hints: tuple[Any, ...], value: Any, setting: str) -> tuple[Any, ...]:
    """Check the items of a list or tuple; ``hints`` are one type and an ellipsis, or one type for each item."""
    item_hint = hints[0]
    n_items = None if hints[-1] is Ellipsis else len(hints)
    if not isinstance(value, list | tuple) or len(cast(Sequence[Any], value)) != (n_items or len(value)):
        count = "" if n_items is None else f"{n_items} values of "
        raise _illegal(setting, value, f"a list of {count}{getattr(item_hint, '__name__', item_hint)}")
    items = cast(Sequence[Any], value)
    if item_hint in (str, float) and n_items is None and all(type(item) is item_hint for item in items):
        return tuple(items)  # the long lists of records, such as the tokens of an example
    return tuple(_checked(item_hint, item, setting) for item in items)


def _checked_dict(item_hint: Any, value: Any, setting: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _illegal(setting, value, "an object")
    items = cast(dict[str, Any], value).items()
    return {key: _checked(item_hint, item, f"{setting}[{key!r}]") for key, item in items}


def _checked_plain(hint: Any, value: Any, setting: str) -> Any:
    """Check a value that is not a container; numbers of NumPy become Python's, and paths become texts."""
    if hint is Any:
        return value
    is_bool = isinstance(value, bool)
    if hint is int and isinstance(value, Integral) and not is_bool:
        if abs(int(value)) < 2**63:
            return int(value)
        raise _illegal(setting, value, "an integer of at most 64 bits")
    if hint is float and isinstance(value, Real) and not is_bool:
        return _number(value, setting)
    if hint is str and isinstance(value, PathLike):
        return str(cast(Any, value))
    if hint in (int, float) or not isinstance(value, cast(type, hint)):
        raise _illegal(setting, value, getattr(hint, "__name__", str(hint)))
    return value


def _number(value: Any, setting: str) -> int | float:
    """A number as a file can hold it: an integer of at most 64 bits, or the nearest number of float64."""
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise _illegal(setting, value, "a number that float64 can hold") from error


def _illegal(setting: str, value: Any, legal: str) -> ConfigError:
    try:
        shown = repr(value)
    except ValueError:  # Python refuses to print the longest integers
        shown = short_value(value)
    shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}..."
    return ConfigError(f"{setting} is {shown}; it must be {legal}.")


def _alternative(hints: tuple[Any, ...], value: Any, setting: str) -> Any:
    """Check ``value`` against alternative types; among several configs, the ``kind`` in ``value`` chooses one."""
    classes = [hint for hint in hints if is_dataclass(hint)]
    if len(classes) == 1 and isinstance(value, dict):
        return from_dict(cast(type[Any], classes[0]), cast(dict[str, Any], value))
    if classes and isinstance(value, dict):
        class_of_kind = {cast(Any, config).kind: config for config in classes}
        values = cast(dict[str, Any], value)
        if not isinstance(values.get("kind"), str) or values["kind"] not in class_of_kind:
            kinds = ", ".join(class_of_kind)
            raise ConfigError(f"{setting}.kind is {values.get('kind')!r}; it must be one of {kinds}.")
        return from_dict(cast(type[Any], class_of_kind[values["kind"]]), values)
    # The value's own type comes first, because the errors of other types take much longer than the check.
    for hint in sorted(hints, key=lambda hint: hint is not type(value)):
        try:
            return _checked(hint, value, setting)
        except (ConfigError, TypeError):
            continue
    raise _illegal(setting, value, " or ".join(getattr(hint, "__name__", str(hint)) for hint in hints))


def nearest_name(name: str, known: Sequence[str]) -> str:
    """The end of an error message: it suggests the known name nearest to ``name``, or lists all known names."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known names are {', '.join(known)}."
