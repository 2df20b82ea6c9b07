"""The errors OpenCLT raises for mistakes a user can mend; everything else is a bug of ours.

OpenCLTError
├── ConfigError            a setting is unknown, of the wrong kind, or contradicts another, or a transcoder does not
│                          fit a language model (also a ValueError)
├── LanguageModelError     a language model cannot be found, read, or expressed
│   └── HubUnreachableError    it would have to be downloaded, and the hub does not answer (or must not be asked)
├── TextError              a text is empty, too long, or missing (also a ValueError)
├── CheckpointError        a stored artefact is truncated, foreign, newer than this version, or of another shape
├── AttributionError       a graph cannot be computed for this prompt, model and transcoder (also a ValueError)
└── MissingExtraError      an optional dependency is not installed (also an ImportError)

Each message is one sentence on what happened and one on what to do.
"""


class OpenCLTError(Exception):
    """Base of every error that a user of OpenCLT can mend."""


class ConfigError(OpenCLTError, ValueError):
    """A setting is unknown, wrong, or contradicts another; or a transcoder does not fit a language model."""


class LanguageModelError(OpenCLTError):
    """A language model cannot be found, read, or expressed."""


class HubUnreachableError(LanguageModelError):
    """A language model would have to be downloaded, and the hub does not answer, or must not be asked."""


class TextError(OpenCLTError, ValueError):
    """A text is empty, too long, or missing."""


class CheckpointError(OpenCLTError):
    """A stored artefact is truncated, foreign, newer than this version, or of another shape."""


class AttributionError(OpenCLTError, ValueError):
    """A graph cannot be computed for this prompt, model and transcoder."""


class MissingExtraError(OpenCLTError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
