"""How feature records were measured: which model, transcoder and text, and how contexts were cut from the text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.errors import CheckpointError, ConfigError

ABOUT = "about.json"
_FORMAT = files.FileFormat("open-clt-features", newest=1)


@final
@dataclass(frozen=True, kw_only=True)
class AboutRecords(CheckedConfig):
    """How feature records were measured."""

    model: str
    """Name of the language model."""
    transcoder: str
    """Source of the transcoder."""
    transcoder_hash: str
    """Hash of the transcoder's config and weights."""
    text: str
    """Description of the text."""
    tokens: int
    """Number of tokens that were encoded."""
    contexts: int
    """Number of contexts that the text was cut into."""
    context_length: int
    """Number of tokens in a context, BOS included."""
    from_start: bool
    """Whether every context begins where a document begins, instead of where the context before it ends."""
    bos: str
    """The token that every context begins with."""
    encodes_first_position: bool
    """Whether features are used at the first position of a context."""
    window: int
    """Largest number of tokens in an example."""


def write_about(path: Path, about: AboutRecords) -> None:
    """Write how the records were measured as JSON."""
    files.write_json(path, {**_FORMAT.header(), **to_dict(about)})


def read_about(path: Path) -> AboutRecords | None:
    """Read how records were measured; None without a file. Raises CheckpointError if the file is damaged."""
    files.check_readable(path)
    if not path.exists():
        return None
    content = _FORMAT.read(path, finite=True)
    values = {key: value for key, value in content.items() if key not in _FORMAT.header()}
    try:
        return from_dict(AboutRecords, values)
    except ConfigError as error:
        raise CheckpointError(f"{path} does not say how features were measured ({error})") from error
