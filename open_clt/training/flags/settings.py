"""Settings as flags and as keys of a YAML file: how jsonargparse sees the configs of ``open_clt.config``.

A config becomes one flag for each of its fields, with a dotted name. Several alternatives (a union of configs) become
one group, with a flag for ``kind`` and flags for the fields of all kinds; ``read_settings`` checks that the chosen kind
has each field that is set. A setting that is not given is absent, so that defaults are written in the configs only.

Where a user can bring a class, ``class_path`` names the class and ``init_args`` holds its arguments.
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
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, cast

from jsonargparse import ArgumentParser

from open_clt import files
from open_clt.config.json import from_dict
from open_clt.errors import ConfigError, MissingExtraError, OpenCLTError
from open_clt.training.trainer import Settings, listed

_GROUPS = ("transcoder", "training", "data", "trainer", "checkpoints", "report")
"""Groups of the settings of a training run."""
_EXTRAS = ("tensorboard", "wandb")


def add_settings(parser: ArgumentParser, key: str, hint: Any, *, skip: Collection[str] = ()) -> None:
    """Add a flag below ``key`` for each field of a config, or of several alternative configs."""
    kinds = _configs(hint)
    flags: dict[str, list[tuple[Any, Field[Any], str]]] = {}
    for kind in kinds:
        hints, docs = typing.get_type_hints(kind), field_docs(kind)
        for field in fields(kind):
            if field.name not in skip:
                flags.setdefault(field.name, []).append((hints[field.name], field, docs.get(field.name, "")))
    if flags.pop("kind", None):
        names = tuple(kind.kind for kind in kinds)
        _add_flag(parser, f"{key}.kind", Literal[names], "Kind of config; it decides which other settings exist.")
    for name, alternatives in flags.items():
        hint, field, doc = alternatives[0]
        if _configs(hint):
            add_settings(parser, f"{key}.{name}", hint)
        else:
            union = Union[tuple(hint for hint, _, _ in alternatives)]
            _add_flag(parser, f"{key}.{name}", union, doc + _default(field))


def add_class(parser: ArgumentParser, key: str, what: str) -> None:
    """Add the flags that name a user's own class, described by ``what``, and the arguments of the class."""
    _add_flag(parser, f"{key}.class_path", str, what)
    _add_flag(parser, f"{key}.init_args", dict[str, Any], f"Arguments by name of the class in {key}.class_path.")


def read_settings(hint: Any, values: Settings, key: str) -> Any:
    """Make a config from the settings below ``key``; raises ConfigError if a setting is unknown, missing or wrong."""
    kinds = {getattr(kind, "kind", None): kind for kind in _configs(hint)}
    name = values.get("kind", next(iter(kinds)))
    if name not in kinds:
        raise ConfigError(f"{key}.kind is {name!r}; it must be one of {', '.join(map(str, kinds))}.")
    return from_dict(kinds[name], _with_kinds(kinds[name], values, key))


class NamedClass(NamedTuple):
    """The path of a user's own class (or function), and its arguments by name."""

    class_path: str
    init_args: Settings


def named_class(values: Settings, key: str) -> NamedClass | None:
    """Remove ``class_path`` and ``init_args`` from settings, and return them; None if no class is named."""
    path: str | None = values.pop("class_path", None)
    arguments: Settings = values.pop("init_args", {})
    if path is None and arguments:
        raise ConfigError(f"{key}.init_args is given, but {key}.class_path is missing; give both.")
    return None if path is None else NamedClass(path, arguments)


def user_class(values: Settings, key: str) -> Callable[..., Any] | None:
    """A function that calls the class (or function) in ``class_path`` with its ``init_args``; None if none is named."""
    user_settings = named_class(values, key)
    if user_settings is None:
        return None
    path, init_args = user_settings
    module, _, name = path.rpartition(".")
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}.class_path is {path!r}, which cannot be imported: {error}.") from error

    def make(*arguments: Any, **keywords: Any) -> Any:
        try:
            return imported(*arguments, **keywords, **init_args)
        except TypeError as error:
            raise ConfigError(f"{path} cannot be called with init_args {init_args}: {error}.") from error

    return make


def check_config_files(arguments: Sequence[str]) -> None:
    """Raise CheckpointError or ConfigError, which names the file, if a ``--config`` file does not hold settings."""
    for number, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if flag != "--config":
            continue
        path = Path(value if separator else "".join(arguments[number + 1 : number + 2]))
        if path.exists():
            _check_names_of(files.read_yaml(path), path)


def _check_names_of(settings: Any, path: Path) -> None:
    """Raise ConfigError if the content of a file is not an object of settings, or a group of settings is not one."""
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} does not hold settings; it must be a YAML file of names and values.")
    for name, value in cast(dict[Any, Any], settings).items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{path} has a setting named {name!r}; names are words, such as data or trainer.")
        if name in (*_GROUPS, "texts", "loss") and not isinstance(value, dict):
            raise ConfigError(f"{path} has {value!r} as {name}, which is a group of settings with names and values.")
        if isinstance(value, dict):
            _check_names_of(value, path)


def in_one_line(error: argparse.ArgumentError, parser: ArgumentParser) -> str:
    """One sentence for an error of jsonargparse, which suggests the nearest flag if a flag is misspelt."""
    message = str(error)
    flags = [flag for action in parser._actions for flag in action.option_strings]  # pyright: ignore[reportPrivateUsage]
    if match := re.search(r"unrecognized arguments: (\S+)|Option '(\S+)' is not accepted", message):
        typed = (match[1] or f"--{match[2]}").split("=")[0]
        return f"{typed.removeprefix('--')!r} is not a setting; {_nearest(typed, flags)}"
    if match := re.search(r"ambiguous option: (\S+) could match", message):
        group = match[1].split("=")[0].removeprefix("--")
        members = [flag.removeprefix("--") for flag in flags if flag.startswith(f"--{group}.")]
        return f"{group} is a group of settings and takes no value; set {' or '.join(members)}."
    if match := re.search(r'Parser key "(\S+)":(.*?)(?:Given value: (.*))?$', message, re.DOTALL):
        key, reason, value = match[1], " ".join(match[2].split()), match[3]
        expected = re.findall(r"Expected an? (?!path but)(.+?)(?= -|\. Got|$| Given)", reason)
        legal = " or ".join(dict.fromkeys(map(_plain_type, expected)))
        value = value or (re.search(r"Got value: (.*)", reason) or [None, None])[1]
        if value is None and "Given value type: <class 'str'>" in reason:
            value = ""  # jsonargparse does not print an empty value
        return f"{key}: {reason}" if value is None or not legal else f"{key} is {value!r}; it must be {legal}."
    return " ".join(message.split())


def as_user_error(error: ImportError | ValueError, group: str, settings: Settings) -> OpenCLTError:
    """An OpenCLTError for an error that jsonargparse raised when it made the classes that a group's settings name."""
    if isinstance(error, OpenCLTError):
        return error
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ImportError):
        cause = cause.__cause__
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    culprit = _culprit(cause, group, settings)
    if not isinstance(cause, ImportError):
        return ConfigError(f"{culprit} cannot be made: {reason}")
    for extra in _EXTRAS:
        if extra in reason.lower():
            return MissingExtraError(f"{culprit} needs the package {extra}; pip install 'open-clt[{extra}]'.")
    return MissingExtraError(f"{culprit} needs a package that is not installed: {reason}")


def _culprit(error: BaseException, group: str, settings: Settings) -> str:
    """The setting and the class whose code raised an error."""
    raised_in = {str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)}
    for name, value in settings.items():
        for item in listed(value, dict):
            path = str(item.get("class_path", ""))
            module, _, class_name = path.rpartition(".")
            named = getattr(sys.modules.get(module), class_name, None)
            if getattr(named, "__module__", None) in raised_in:
                return f"{group}.{name} {class_name}"
    return f"A class in the settings of {group}"


@contextmanager
def older_names() -> Generator[None]:
    """Silence warnings about names that jsonargparse has deprecated but its older versions need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _nearest(typed: str, known: list[str]) -> str:
    near = difflib.get_close_matches(typed, known, n=1)
    return f"did you mean {near[0].removeprefix('--')!r}?" if near else "`open-clt train --help` lists all settings."


_TYPES = {
    "NoneType": "null",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "tuple": "a list",
    "Iterable": "a list",
}


def _plain_type(expected: str) -> str:
    """Plain words for a type in jsonargparse's messages: ``<class 'int'>`` or ``typing.Literal['a', 'b']``."""
    type_name = re.search(r"<class '(?:[\w.]+\.)?(\w+)'>", expected)
    if type_name:
        return _TYPES.get(type_name[1], type_name[1])
    if expected.startswith("dot import path"):
        return "the path of a class"
    literal = re.search(r"Literal\[(.*)\]", expected)
    return literal[1].replace(", ", " or ") if literal else expected


def _configs(hint: Any) -> list[type[Any]]:
    """The config classes among the alternatives of a type."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if isinstance(option, type) and is_dataclass(option)]


def _with_kinds(config: type[Any], values: Settings, key: str) -> Settings:
    """The same settings, with the default ``kind`` added to nested settings that do not give one.

    Raises ConfigError with the full key if a setting is missing, or if the chosen kind does not have it.
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
    """Raise ConfigError if a config does not have one of these settings, or needs another one."""
    known = {field.name: field for field in fields(config)}
    owner = f"kind {config.kind!r}" if "kind" in known else key
    for name in values.keys() - known.keys():
        legal = ", ".join(legal_name for legal_name in known if legal_name != "kind") or "none"
        raise ConfigError(f"{key}.{name} is given, but {owner} has no such setting; its settings are {legal}.")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{key}.{name} is missing; {owner} needs it.")


def _add_flag(parser: ArgumentParser, name: str, hint: Any, description: str) -> None:
    parser.add_argument(f"--{name}", type=hint, default=argparse.SUPPRESS, help=description.replace("%", "%%"))


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return ""
    return f" (default: {'null' if field.default is None else field.default})"


def field_docs(config: type[Any]) -> dict[str, str]:
    """The docstring of each field of a config, including inherited fields."""
    docs: dict[str, str] = {}
    for ancestor in reversed(config.__mro__):
        if is_dataclass(ancestor):
            docs |= _own_field_docs(ancestor)
    return docs


@cache
def _own_field_docs(config: type[Any]) -> dict[str, str]:
    """The string below each field in the body of a class; Python keeps these strings in the source only."""
    try:
        source = inspect.getsource(config)
    except OSError:  # without source files, flags have no description
        return {}
    docs: dict[str, str] = {}
    for field, below in pairwise(cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = inspect.cleandoc(doc)
            case _:
                pass
    return docs
