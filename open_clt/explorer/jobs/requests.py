"""Requests: the values that pages send, checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from open_clt.errors import ConfigError
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.models import Models
from open_clt.explorer.session.session import Session, read_session
from open_clt.explorer.traces import Trace, fits

Request: TypeAlias = Mapping[str, Any]
"""The values of a request by name."""
Work: TypeAlias = Callable[[], Any]
"""What the worker does; its result is plain values."""
MakeJob: TypeAlias = Callable[[Explorer, Request], Work]
"""Checks a request, which raises an OpenCLTError if something is wrong with it, and returns the work."""


def text_of(request: Request, name: str) -> str:
    """A text of a request."""
    text = request.get(name)
    if not isinstance(text, str):
        raise ConfigError(f"The request's {name} must be a text.")
    check_letters(text, name)
    return text


def texts_of(request: Request, name: str) -> dict[str, str]:
    """Texts of a request by their names."""
    texts = request.get(name)
    if not isinstance(texts, dict):
        raise ConfigError(f"The request's {name} must be texts by name.")
    given = cast(dict[str, Any], texts)
    return {key: text_of(given, key) for key in given}


def check_letters(text: str, name: str) -> None:
    """Raise ConfigError if a text holds half of a character, which tokenizers and files refuse."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"The request's {name} holds half of a character; write it again.") from error


def integer_of(request: Request, name: str, least: int, most: int) -> int:
    """A whole number of a request within bounds."""
    number = request.get(name)
    if type(number) is not int or not least <= number <= most:
        raise ConfigError(f"The request's {name} must be a whole number from {least} to {most}.")
    return number


def session_of(request: Request) -> Session:
    """The session of a request."""
    content = request.get("session")
    if not isinstance(content, Mapping):
        raise ConfigError("The request does not hold a session.")
    return read_session(cast(Mapping[str, Any], content))


def check_fits(trace: Trace, models: Models) -> None:
    """Raise ConfigError if the models cannot have computed a trace's graph."""
    if not fits(trace, models):
        raise ConfigError("This graph was not computed with the model and the transcoder of this explorer.")
