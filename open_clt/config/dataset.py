"""Settings of a dataset of activations to train on, in place of a language model and texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from open_clt.config.checks import check_not_negative
from open_clt.config.json import CheckedConfig
from open_clt.errors import ConfigError


@dataclass(frozen=True, kw_only=True, repr=False)
class DatasetConfig(CheckedConfig):
    """A dataset of activations to train on, the order in which it is read, and the tokens that are held out."""

    path: str | None = None
    """Dataset of activations to train on, in place of a language model and texts: a directory, or a URL."""
    order: Literal["sequence", "random"] = "sequence"
    """Order in which the files of the dataset are read: as they were written, or at random; tokens are mixed anyway."""
    statistics: Literal["estimated", "stored"] = "estimated"
    """Statistics for standardisation: estimated from up to 200,000 tokens without norm outliers, or those that the
    dataset stores, which describe all its tokens."""
    held_out_tokens: int | None = None
    """Number of tokens that are held out: the first tokens of the dataset are used for measurements only.

    0 holds out none. None holds out 8,192, or a tenth of the tokens if there are fewer than 81,920."""
    held_out_path: str | None = None
    """Another dataset, all of whose tokens are held out; then all tokens of the first one are for training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("path", "held_out_path"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ConfigError(f"{name} is {value!r}; it must be the directory or the URL of a dataset.")
        if self.held_out_tokens is not None:
            check_not_negative(self, "held_out_tokens")
            if self.held_out_path is not None:
                raise ConfigError(
                    f"held_out_tokens is {self.held_out_tokens} and held_out_path is {self.held_out_path!r}; give one "
                    "of the two settings."
                )
