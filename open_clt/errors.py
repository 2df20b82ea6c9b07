"""Errors: the exceptions that OpenCLT raises for mistakes that a user can correct. Any other exception is a bug.

OpenCLTError
├── ConfigError            a setting is unknown, is illegal, or contradicts another setting, or a transcoder does not
│                          fit a language model (also a ValueError)
├── LanguageModelError     a language model cannot be found, cannot be read, or has a part that OpenCLT cannot express
│   └── HubUnreachableError    a model must be downloaded, and the hub does not answer or is switched off
├── TextError              a text is empty, too long, or missing (also a ValueError)
├── HubRefusedError        the hub refuses an upload: a token is missing, or does not permit it
├── ServiceError           a server, such as an endpoint for labels, does not answer, refuses a request, or answers
│                          something else
├── CheckpointError        a stored artefact is missing, damaged, written by another program, or of another version
│                          or shape
├── NotFiniteError         a loss, an activation or another number is NaN or infinite (also an ArithmeticError)
├── AttributionError       a graph cannot be computed for this prompt, model and transcoder (also a ValueError)
├── ResourceError          a disk is full, a file cannot be written, or memory is too small
└── MissingExtraError      an optional dependency is not installed (also an ImportError)

Each message names the value, and says what is wrong with it and what is legal or what to do. A message is one line of
at most 300 characters: in a longer message, long words (paths, values) are cut first, and then its middle.
"""

from pathlib import PurePath
from typing import Any, cast

_LONGEST_MESSAGE = 300
"""Largest number of characters of an error's message."""

_LONGEST_VALUE = 60
"""Largest number of characters of a wrong value in an error."""

_WORD_LENGTHS = (100, 60, 40)
"""Lengths to which the words of too long a message are cut, one after another until the message is short enough."""


def one_line(message: str) -> str:
    """The message on one line of at most 300 characters. A word that is cut keeps more of its end: a path, its name."""
    words = message.split()
    for length in _WORD_LENGTHS:
        if len(" ".join(words)) <= _LONGEST_MESSAGE:
            break
        words = [_without_middle(word, length, length // 4) for word in words]
    return _without_middle(" ".join(words), _LONGEST_MESSAGE, _LONGEST_MESSAGE // 2)


def short_value(value: Any) -> str:
    """A wrong value as an error shows it: a number, a text or a path, cut to 60 characters; of others, the kind."""
    match value:
        case int() if abs(value) >= 10**_LONGEST_VALUE:  # Python refuses to print the longest integers
            return f"an integer of more than {_LONGEST_VALUE} digits"
        case None | bool() | int() | float() | complex() | str() | bytes() | PurePath():
            text = repr(str(value) if isinstance(value, PurePath) else value)
            return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
        case tuple() | list() | dict() | set() if not value:
            return repr(cast(Any, value))
        case type():
            return f"the class {cast(Any, value).__name__}"
        case _ if hasattr(value, "shape") and hasattr(value, "dtype"):
            return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
        case _:
            return f"of the type {type(value).__name__}"


def _without_middle(text: str, length: int, head: int) -> str:
    """The text if it has at most ``length`` characters, else its first ``head`` and its last characters."""
    return text if len(text) <= length else f"{text[:head]}...{text[len(text) - (length - head - len('...')) :]}"


class OpenCLTError(Exception):
    """Base class of every error that a user of OpenCLT can correct."""

    def __str__(self) -> str:
        """The message on one line of at most 300 characters."""
        return one_line(super().__str__())


class ConfigError(OpenCLTError, ValueError):
    """A setting is unknown, is illegal, or contradicts another; or a transcoder does not fit a language model."""


class LanguageModelError(OpenCLTError):
    """A language model cannot be found, cannot be read, or has a part that OpenCLT cannot express."""


class HubUnreachableError(LanguageModelError):
    """A language model must be downloaded, and the hub does not answer or is switched off."""


class HubRefusedError(OpenCLTError):
    """The Hugging Face hub refuses an upload: a token is missing, or does not permit it."""


class TextError(OpenCLTError, ValueError):
    """A text is empty, too long, or missing."""


class ServiceError(OpenCLTError):
    """A server, such as an endpoint for labels, does not answer, refuses a request, or answers something else."""


class CheckpointError(OpenCLTError):
    """A stored artefact is missing, damaged, written by another program, or of another version or shape."""


class NotFiniteError(OpenCLTError, ArithmeticError):
    """A loss, an activation or another number that must be finite is NaN or infinite."""


class AttributionError(OpenCLTError, ValueError):
    """A graph cannot be computed for this prompt, model and transcoder."""


class ResourceError(OpenCLTError):
    """A disk is full, a file cannot be written, or memory is too small."""


class MissingExtraError(OpenCLTError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
