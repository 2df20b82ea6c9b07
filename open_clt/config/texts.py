"""Settings of texts: where they come from, and how they are cut into contexts."""

from __future__ import annotations

from dataclasses import dataclass

from open_clt.config.checks import check_counts
from open_clt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TextsConfig:
    """Where texts come from, how contexts are cut from them, and which contexts are held out."""

    source: str | None = None
    """A text, .jsonl or .parquet file, or a Hugging Face data set: its name on the hub, or its local directory."""
    column: str = "text"
    """Column that holds the text, where rows have several."""
    subset: str | None = None
    """Part of a data set that has several (its configuration)."""
    split: str = "train"
    """Split of a data set."""
    streaming: bool = True
    """Read a data set row by row as it is needed, and download no more of it."""
    from_start: bool = False
    """Begin every context where a text begins, and drop the rest of a text that does not fit: for short texts."""
    held_out_contexts: int | None = None
    """Contexts from the beginning that are measured on and never trained on; 0 holds none out.

    None holds out 64, or a tenth of the contexts where the texts fill fewer than 640."""
    max_contexts: int | None = None
    """Contexts to train on at most, after those that are held out; None is all that the texts fill."""

    def __post_init__(self) -> None:
        check_counts(self, "max_contexts")
        if self.held_out_contexts is not None and self.held_out_contexts < 0:
            raise ConfigError(f"held_out_contexts is {self.held_out_contexts}; it must be at least 0.")
