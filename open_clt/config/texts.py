"""Settings of texts: their source, and how they are cut into contexts."""

from __future__ import annotations

from dataclasses import dataclass

from open_clt.config.checks import check_counts, check_not_negative
from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError


@dataclass(frozen=True, kw_only=True, repr=False)
class TextsConfig(CheckedConfig):
    """Source of the texts, the way in which contexts are cut from them, and the contexts that are held out."""

    source: str | None = None
    """Source of the texts: a text, .jsonl or .parquet file, or the hub name or directory of a Hugging Face data set."""
    column: str = "text"
    """Column that holds the text, for a source whose rows have columns."""
    subset: str | None = None
    """Subset (configuration) of the Hugging Face data set; None is the data set's default."""
    split: str = "train"
    """Split of the Hugging Face data set."""
    streaming: bool = True
    """Download a Hugging Face data set row by row while it is read, instead of as a whole."""
    bad_rows: int = 100
    """Largest number of rows without a text, such as null or damaged ones, that are skipped; one more is an error."""
    from_start: bool = False
    """Begin every context at the start of a text, and drop the part of a text that does not fit; for short texts."""
    held_out_contexts: int | None = None
    """Number of contexts that are held out: the first contexts are used for measurements only, never for training.

    0 holds out none. None holds out 64, or a tenth of the contexts if the texts fill fewer than 640."""
    max_contexts: int | None = None
    """Largest number of contexts to train on, not counting the held-out ones; None uses all contexts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is not None and not self.source.strip():
            raise ConfigError(f"source is {self.source!r}; it must name a file, a directory or a data set of texts.")
        check_counts(self, "max_contexts")
        check_not_negative(self, "bad_rows")
        if self.held_out_contexts is not None:
            check_not_negative(self, "held_out_contexts")
