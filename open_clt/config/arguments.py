"""The types of arguments: public functions check what they are given, as configs check their fields.

    @checked_arguments
    def load_graph(directory: str | Path) -> Graph: ...

    load_graph(3)       ConfigError: The argument directory of load_graph is 3; it must be a path.

The annotations are the rules. An integer has at most 64 bits, a number is finite, and a path is not empty; ``Count``,
``Seed`` and the like also bound a number. Values are checked, never converted. An annotation that exists for type
checkers only is not checked, because such a function passes the value on to one that has the type. The function itself
checks what an array holds.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from itertools import islice
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

from open_clt.errors import ConfigError, short_value


class Bounds(NamedTuple):
    """The legal values of a number, in an annotation ``Annotated[int, Bounds(...)]``."""

    least: float
    most: float
    words: str
    """The legal values in words, after "it must be"."""


Count: TypeAlias = Annotated[int, Bounds(1, math.inf, "an integer of at least 1")]
NotNegative: TypeAlias = Annotated[int, Bounds(0, math.inf, "an integer of at least 0")]
Seed: TypeAlias = Annotated[int, Bounds(0, 2**32 - 1, "an integer of at least 0 and below 2**32")]
Perplexity: TypeAlias = Annotated[float, Bounds(1, math.inf, "a finite number of at least 1")]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_UNIONS = (typing.Union, types.UnionType)
_MOST_ITEMS = 1000
"""Number of items of a sequence whose types are checked."""


def checked_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function raise ConfigError, which names the argument and its value, if an argument has a wrong type."""
    signature = inspect.signature(function)
    hints = cache(lambda: _hints(function, signature))

    @wraps(function)
    def checked(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            bound = signature.bind_partial(*arguments, **named)
        except TypeError:
            return function(*arguments, **named)  # Python's own error names the unknown parameter
        values = {**bound.arguments, **cast(dict[str, Any], bound.arguments.get("settings", {}))}
        for name, hint in hints().items():
            if name in values and not _has_type(hint, values[name]):
                legal = " or ".join(_legal(hint))
                raise ConfigError(
                    f"The argument {name} of {_name(function)} is {short_value(values[name])}; it must be {legal}."
                )
        return function(*arguments, **named)

    return checked


def _name(function: Callable[..., Any]) -> str:
    """The name under which a user calls a function: a class is called by its own name."""
    return function.__qualname__.removesuffix(".__init__").rpartition(".")[2]


def _hints(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """The types of a function's parameters by name; of keyword arguments that it passes on, those of each."""
    hints: dict[str, Any] = {}
    namespace = inspect.unwrap(function).__globals__
    for name, parameter in signature.parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            continue
        try:
            stand_in = cast(Any, types.SimpleNamespace(__annotations__={name: parameter.annotation}))
            hint = typing.get_type_hints(stand_in, namespace, include_extras=True)[name]
        except NameError:  # a type that is imported for type checkers only
            continue
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            hints[name] = tuple[hint, ...] if parameter.kind is inspect.Parameter.VAR_POSITIONAL else hint
        elif typing.get_origin(hint) is typing.Unpack:
            hints |= typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
    return hints


def _has_type(hint: Any, value: Any) -> bool:
    """Whether a value has the type that an annotation states; an annotation that cannot be checked allows any value."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin is Annotated:
        bounds = cast(Bounds, parts[1])
        return _has_type(parts[0], value) and bounds.least <= value <= bounds.most
    if origin in _UNIONS:
        return _is_path(value) if Path in parts and isinstance(value, str) else any(_has_type(p, value) for p in parts)
    if origin is typing.Literal:
        return isinstance(value, str) and value in parts
    if origin is type:
        return isinstance(value, type)
    if isinstance(origin, type):
        return isinstance(value, origin) and _items_have_types(origin, parts, value)
    return _is_plain(hint, value)


def _items_have_types(origin: type[Any], parts: tuple[Any, ...], value: Any) -> bool:
    """Whether the items of a list, tuple, mapping or other collection have their types; iterators are not consumed."""
    if issubclass(origin, Mapping) and len(parts) == 2:
        items = islice(cast(Mapping[Any, Any], value).items(), _MOST_ITEMS)
        return all(_has_type(parts[0], key) and _has_type(parts[1], item) for key, item in items)
    if not issubclass(origin, Sequence) or isinstance(value, str):
        return True
    return all(_has_type(parts[0], item) for item in value[:_MOST_ITEMS])


def _is_plain(hint: Any, value: Any) -> bool:
    """Whether a value has a type without parameters."""
    if hint is type(None) or hint is None:
        return value is None
    if hint is Path:
        return _is_path(value)
    if hint is int:
        return type(value) is not bool and isinstance(value, Integral) and abs(int(value)) < 2**63
    if hint is float:
        return _is_finite(value)
    if _array(hint) is not None and not _is_dense(value):
        return False
    try:
        return isinstance(value, hint)
    except TypeError:  # a protocol that is not for run time, or a form of annotation that has no instances
        return True


def _is_dense(value: Any) -> bool:
    """Whether an array holds all of its numbers, as sparse tensors and tensors of the device meta do not."""
    return not getattr(value, "is_meta", False) and str(getattr(value, "layout", "torch.strided")) == "torch.strided"


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        return type(value) is not bool and isinstance(value, Real) and math.isfinite(float(value))
    except OverflowError:
        return False


def _is_path(value: Any) -> bool:
    """Whether a value is a path: an empty text would mean the working directory, and no name of a file has a null."""
    if not isinstance(value, str | PathLike):
        return False
    text = str(fspath(cast(Any, value)))
    return text != "" and "\0" not in text


def _legal(hint: Any) -> list[str]:
    """The alternatives that an annotation allows, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        words = [word for part in parts if not (part is str and Path in parts) for word in _legal(part)]
        return list(dict.fromkeys(words))
    if origin is Annotated:
        return [parts[1].words]
    if origin is typing.Literal:
        return [repr(part) for part in parts]
    if isinstance(origin, type):
        item = f" of {_legal(parts[0])[0]}" if parts and issubclass(origin, Sequence | Iterable) else ""
        if issubclass(origin, Mapping) and len(parts) == 2:
            item = f" from {_legal(parts[0])[0]} to {' or '.join(_legal(parts[1]))}"
        return [f"{_KINDS.get(origin, origin.__name__)}{item}"]
    name = getattr(hint, "__name__", str(hint))
    return [_WORDS.get(hint) or _array(hint) or _CLASSES.get(name, name)]


def _array(hint: Any) -> str | None:
    """The words for an array of jaxtyping."""
    if not hasattr(hint, "dim_str"):
        return None
    numbers, kind = hint.__name__.partition("[")[0], getattr(hint.array_type, "__name__", "array")
    words = f" of {_NUMBERS[numbers]}" if numbers in _NUMBERS else ""
    return f"a dense {'tensor of PyTorch' if kind == 'Tensor' else 'array'} ({hint.dim_str}){words}"


_CLASSES = {"dtype": "a dtype such as torch.float32"}
_NUMBERS = {"Float": "floating-point numbers", "Int": "integers", "Integer": "integers", "Bool": "True and False"}
_WORDS: dict[Any, str] = {
    Any: "any value",
    int: "an integer of at most 64 bits",
    float: "a finite number",
    str: "a text",
    bool: "True or False",
    Path: "a path ('.' is the working directory)",
    type(None): "None",
}
_KINDS: dict[Any, str] = {
    list: "a list",
    tuple: "a list",
    dict: "a dict",
    type: "a class",
    collections.abc.Sequence: "a list",
    collections.abc.Iterable: "an iterable",
    collections.abc.Mapping: "a mapping",
    Mapping: "a mapping",
}
