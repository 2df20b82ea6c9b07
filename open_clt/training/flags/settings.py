"""Settings as flags and as keys of a YAML file: the configs of ``open_clt.config``, laid flat for jsonargparse.

A config becomes one flag for each of its fields, with dotted names. Alternatives (a sum type) become one group: their
``kind``, and the fields of all of them; which of these the chosen kind understands is checked when the config is made.
What nobody sets is not there at all, so that a default stands in the config and nowhere else.

Where a class of the user's own may stand, ``class_path`` names it and ``init_args`` holds what it is made with.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import inspect
import re
import sys
import textwrap
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Union, cast

from jsonargparse import ArgumentParser

from open_clt.config.json import from_dict
from open_clt.errors import ConfigError, MissingExtraError, OpenCLTError
from open_clt.training.trainer import Settings, listed

_EXTRAS = ("tensorboard", "wandb")


def add_settings(parser: ArgumentParser, key: str, hint: Any, *, skip: Collection[str] = ()) -> None:
    """Add a flag for each field of a config, or of several alternatives, below ``key``."""
    kinds = _configs(hint)
    flags: dict[str, list[tuple[Any, Field[Any], str]]] = {}
    for kind in kinds:
        hints, said = typing.get_type_hints(kind), _said(kind)
        for field in fields(kind):
            if field.name not in skip:
                flags.setdefault(field.name, []).append((hints[field.name], field, said.get(field.name, "")))
    if flags.pop("kind", None):
        names = tuple(kind.kind for kind in kinds)
        _add_flag(parser, f"{key}.kind", Literal[names], "Which of the alternatives.")
    for name, found in flags.items():
        hint, field, said = found[0]
        if _configs(hint):
            add_settings(parser, f"{key}.{name}", hint)
        else:
            _add_flag(parser, f"{key}.{name}", Union[tuple(hint for hint, _, _ in found)], said + _default(field))


def add_class(parser: ArgumentParser, key: str, what: str) -> None:
    """Add the flags that name a class of the user's own, and what it is made with."""
    _add_flag(parser, f"{key}.class_path", str, what)
    _add_flag(parser, f"{key}.init_args", dict[str, Any], "what it is made with, by name")


def read_settings(hint: Any, values: Settings, key: str) -> Any:
    """The config that the settings below ``key`` make; raises ConfigError if one is unknown, missing or wrong."""
    kinds = {getattr(kind, "kind", None): kind for kind in _configs(hint)}
    name = values.get("kind", next(iter(kinds)))
    if name not in kinds:
        raise ConfigError(f"{key}.kind is {name!r}; it must be one of {', '.join(map(str, kinds))}.")
    return from_dict(kinds[name], _with_kinds(kinds[name], values, key))


class NamedClass(NamedTuple):
    """A class (or function) of the user's own, as settings name it."""

    class_path: str
    init_args: Settings


def named_class(values: Settings, key: str) -> NamedClass | None:
    """Take ``class_path`` and ``init_args`` out of some settings; None if they name no class."""
    path: str | None = values.pop("class_path", None)
    arguments: Settings = values.pop("init_args", {})
    if path is None and arguments:
        raise ConfigError(f"{key}.init_args is given without {key}.class_path; name the class, too.")
    return None if path is None else NamedClass(path, arguments)


def user_class(values: Settings, key: str) -> Callable[..., Any] | None:
    """The class (or function) that ``class_path`` names, given its ``init_args``; None if there is none."""
    named = named_class(values, key)
    if named is None:
        return None
    path, arguments = named
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}.class_path {path!r} cannot be imported: {error}.") from error

    def make(*given: Any, **named: Any) -> Any:
        try:
            return found(*given, **named, **arguments)
        except TypeError as error:
            raise ConfigError(f"{path} cannot be made with init_args {arguments}: {error}.") from error

    return make


def in_one_line(error: argparse.ArgumentError, parser: ArgumentParser) -> str:
    """What jsonargparse has to say about a mistake, in one sentence, with the nearest flag if one was misspelt."""
    message = str(error)
    known = [flag for action in parser._actions for flag in action.option_strings]  # pyright: ignore[reportPrivateUsage]
    if found := re.search(r"unrecognized arguments: (\S+)|Option '(\S+)' is not accepted", message):
        typed = (found[1] or f"--{found[2]}").split("=")[0]
        return f"There is no setting {typed.removeprefix('--')!r}; {_nearest(typed, known)}"
    if found := re.search(r"ambiguous option: (\S+) could match", message):
        group = found[1].split("=")[0].removeprefix("--")
        inside = [flag.removeprefix("--") for flag in known if flag.startswith(f"--{group}.")]
        return f"{group} is no setting of its own, but a group: set {' or '.join(inside)}."
    if found := re.search(r'Parser key "(\S+)":(.*?)(?:Given value: (.*))?$', message, re.DOTALL):
        key, reason, value = found[1], " ".join(found[2].split()), found[3]
        expected = re.findall(r"Expected an? (.+?)(?= -|\. Got|$| Given)", reason)
        wanted = " or ".join(dict.fromkeys(map(_plainly, expected)))
        got = value or (re.search(r"Got value: (.*)", reason) or [None, None])[1]
        return f"{key} is {got!r}; it must be {wanted}." if wanted and got else f"{key}: {reason}"
    return " ".join(message.split())


def as_user_error(error: ImportError | ValueError, group: str, settings: Settings) -> OpenCLTError:
    """What went wrong when jsonargparse made the classes that a group of settings names, in one sentence."""
    if isinstance(error, OpenCLTError):
        return error
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ImportError):
        cause = cause.__cause__
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    culprit = _made_in(cause, group, settings)
    if not isinstance(cause, ImportError):
        return ConfigError(f"{culprit} cannot be made: {reason}")
    for extra in _EXTRAS:
        if extra in reason.lower():
            return MissingExtraError(f"{culprit} needs the package {extra}; pip install 'open-clt[{extra}]'.")
    return MissingExtraError(f"{culprit} needs a package that is not installed: {reason}")


def _made_in(error: BaseException, group: str, settings: Settings) -> str:
    """Which of the settings of a group names the class in whose code something was raised."""
    raised_in = {str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)}
    for name, value in settings.items():
        for item in listed(value, dict):
            path = str(item.get("class_path", ""))
            module, _, kind = path.rpartition(".")
            found = getattr(sys.modules.get(module), kind, None)
            if getattr(found, "__module__", None) in raised_in:
                return f"{group}.{name} {kind}"
    return f"Something that {group} names"


@contextmanager
def older_names() -> Generator[None]:
    """Let jsonargparse be called by names that its older versions know, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _nearest(typed: str, known: list[str]) -> str:
    near = difflib.get_close_matches(typed, known, n=1)
    return f"did you mean {near[0].removeprefix('--')!r}?" if near else "`open-clt train --help` lists them all."


def _plainly(expected: str) -> str:
    """``<class 'int'>`` and ``typing.Literal['a', 'b']`` as one would say them."""
    inside = re.search(r"<class '(\w+)'>", expected)
    if inside:
        return {"NoneType": "null", "int": "a whole number", "float": "a number"}.get(inside[1], inside[1])
    literal = re.search(r"Literal\[(.*)\]", expected)
    return literal[1].replace(", ", " or ") if literal else expected


def _configs(hint: Any) -> list[type[Any]]:
    """The config classes among the alternatives of a type."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if isinstance(option, type) and is_dataclass(option)]


def _with_kinds(config: type[Any], values: Settings, key: str) -> Settings:
    """The same settings, with the ``kind`` of those nested ones that only say what differs from the default kind.

    Raises ConfigError where one is missing, or is another kind's: by its key, which is what the user typed.
    """
    _check_keys(config, values, key)
    hints = typing.get_type_hints(config)
    filled = dict(values)
    for field in fields(config):
        value = values.get(field.name)
        if isinstance(value, dict) and (nested := _configs(hints[field.name])):
            default = None if field.default_factory is MISSING else field.default_factory()
            kind = {"kind": cast(Any, default).kind} if hasattr(default, "kind") else {}
            value = cast(Settings, {**kind, **value})
            chosen = [option for option in nested if getattr(option, "kind", None) == value.get("kind")]
            filled[field.name] = _with_kinds(chosen[0], value, f"{key}.{field.name}") if chosen else value
    return filled


def _check_keys(config: type[Any], values: Settings, key: str) -> None:
    known = {field.name: field for field in fields(config)}
    kind = f"kind {config.kind!r}" if "kind" in known else key
    for name in values.keys() - known.keys():
        others = ", ".join(other for other in known if other != "kind") or "none"
        raise ConfigError(f"{key}.{name} is given, but {kind} has no such setting; it has {others}.")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{key}.{name} is missing; {kind} needs it.")


def _add_flag(parser: ArgumentParser, name: str, hint: Any, said: str) -> None:
    parser.add_argument(f"--{name}", type=hint, default=argparse.SUPPRESS, help=said.replace("%", "%%"))


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return ""
    return f" (default: {'null' if field.default is None else field.default})"


def _said(config: type[Any]) -> dict[str, str]:
    """What is said below each field of a config, the inherited ones included."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        if is_dataclass(kind):
            found |= _said_below(kind)
    return found


def _said_below(kind: type[Any]) -> dict[str, str]:
    """The string below each annotated name in the body of a class; Python keeps it in the source only."""
    try:
        source = inspect.getsource(kind)
    except OSError:  # installed without sources: flags then have no description
        return {}
    found: dict[str, str] = {}
    for field, below in pairwise(cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                found[name] = inspect.cleandoc(said)
            case _:
                pass
    return found
