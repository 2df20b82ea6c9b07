"""Errors: the exceptions that OpenCLT raises for mistakes that a user can correct. Any other exception is a bug.

OpenCLTError
├── ConfigError            a setting is unknown, is illegal, or contradicts another setting, or a transcoder does not
│                          fit a language model (also a ValueError)
├── LanguageModelError     a language model cannot be found, cannot be read, or has a part that OpenCLT cannot express
│   └── HubUnreachableError    a model must be downloaded, and the hub does not answer or is switched off
├── TextError              a text is empty, too long, or missing (also a ValueError)
├── CheckpointError        a stored artefact is missing, damaged, written by another program, or of another version
│                          or shape
├── AttributionError       a graph cannot be computed for this prompt, model and transcoder (also a ValueError)
└── MissingExtraError      an optional dependency is not installed (also an ImportError)

Each message names the value, and says what is wrong with it and what is legal or what to do. A message is one line of
at most 300 characters: a longer message loses its middle.
"""

_LONGEST_MESSAGE = 300
"""Largest number of characters of an error's message."""


class OpenCLTError(Exception):
    """Base class of every error that a user of OpenCLT can correct."""

    def __str__(self) -> str:
        """The message on one line, without its middle if it is longer than 300 characters."""
        message = " ".join(super().__str__().split())
        if len(message) <= _LONGEST_MESSAGE:
            return message
        kept = (_LONGEST_MESSAGE - len(" ... ")) // 2
        return f"{message[:kept]} ... {message[-kept:]}"


class ConfigError(OpenCLTError, ValueError):
    """A setting is unknown, is illegal, or contradicts another; or a transcoder does not fit a language model."""


class LanguageModelError(OpenCLTError):
    """A language model cannot be found, cannot be read, or has a part that OpenCLT cannot express."""


class HubUnreachableError(LanguageModelError):
    """A language model must be downloaded, and the hub does not answer or is switched off."""


class TextError(OpenCLTError, ValueError):
    """A text is empty, too long, or missing."""


class CheckpointError(OpenCLTError):
    """A stored artefact is missing, damaged, written by another program, or of another version or shape."""


class AttributionError(OpenCLTError, ValueError):
    """A graph cannot be computed for this prompt, model and transcoder."""


class MissingExtraError(OpenCLTError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
