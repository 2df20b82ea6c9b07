"""The source ``neurons``: the name under which a language model's own neurons are used as a transcoder."""

from __future__ import annotations

from pathlib import Path

from open_clt.errors import ConfigError

NEURONS = "neurons"
"""The source that means the neurons of the language model."""


def is_neurons(source: str | Path | None) -> bool:
    """Whether a source means the neurons of a language model; a Path is a directory, whatever its name."""
    return isinstance(source, str) and source == NEURONS


def not_stored(action: str) -> ConfigError:
    """The error for what needs a transcoder that is stored, or that has weights of its own."""
    return ConfigError(
        f"{NEURONS!r} means the language model's own neurons, which are not stored as a transcoder and cannot be "
        f"{action}; give a transcoder that was trained."
    )
