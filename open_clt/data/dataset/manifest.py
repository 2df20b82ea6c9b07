"""The manifest of a dataset of activations: what was harvested, and which files hold it.

The manifest, ``manifest.json``, is written last, so a directory without one holds no complete dataset. Until then,
another file says how far a harvest (``unfinished.py``) or a scramble has come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, final

from open_clt import files
from open_clt.config.checks import check_counts, check_not_negative, check_seed
from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.data.dataset.encoding import StorageType, bytes_per_token
from open_clt.errors import CheckpointError, ConfigError

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
UNFINISHED_FILES = "unfinished*.json"
"""Pattern of the files that stand in place of the manifest until a harvest is complete, one for each process."""
SCRAMBLING = "scrambling.json"
"""What stands in place of the manifest until a scramble is complete."""
MANIFEST_FORMAT = files.FileFormat("open-clt-activations", newest=1)
_LARGEST_SIZE = 2**31
"""Largest number of layers, dimensions or tokens of a shard."""
_Record = TypeVar("_Record")


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class HarvestedText(CheckedConfig):
    """The text of a dataset, and how contexts were cut from it."""

    source: str
    """Description of the text: a file, a data set, or generated sentences."""
    column: str | None = None
    """Column that holds the texts, if the source has columns and the user named one."""
    split: str | None = None
    """Split of the data set, if the user named one."""
    context_length: int
    """Number of tokens in a context, BOS included."""
    from_start: bool = False
    """Whether every context begins where a text begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "context_length")


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Harvested(CheckedConfig):
    """What a dataset is harvested from, and how it is stored; the same values give the same dataset, bit for bit."""

    model: str
    """Name of the language model."""
    vocabulary: str
    """SHA-256 of the vocabulary of the tokenizer."""
    n_layers: int
    d_model: int
    input_hook: str
    """Hook of the inputs."""
    target_hook: str
    """Hook of the targets."""
    text: HarvestedText
    dtype: StorageType = "bfloat16"
    """Type of inputs and targets in the shards."""
    tokens: int
    """Largest number of tokens; there are fewer if the text ends before."""
    shard_tokens: int
    """Number of tokens in a shard; the last one may have fewer."""
    shards_mixed: int = 4
    """Number of consecutive shards whose tokens are mixed with one another."""
    seed: int = 0
    """Seed of the order of the tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "n_layers", "d_model", "tokens", "shard_tokens", "shards_mixed")
        check_seed(self)
        for name in ("n_layers", "d_model", "shard_tokens"):
            if getattr(self, name) >= _LARGEST_SIZE:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be below {_LARGEST_SIZE}.")

    @property
    def bytes_per_token(self) -> int:
        """Number of bytes that a token takes on the disk."""
        return bytes_per_token(self.dtype, self.n_layers, self.d_model)


@final
@dataclass(frozen=True, kw_only=True)
class Shard(CheckedConfig):
    """A file of activations."""

    file: str
    """Name of the file."""
    tokens: int
    """Number of its tokens."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "tokens")
        _check_digest(self.sha256)


@final
@dataclass(frozen=True, kw_only=True)
class Scrambled(CheckedConfig):
    """How the tokens of another dataset were put in random order."""

    seed: int
    shard_tokens: int
    """Number of tokens in a shard; the last one may have fewer."""
    manifest_sha256: str
    """SHA-256 of the manifest of the other dataset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self)
        check_counts(self, "shard_tokens")
        _check_digest(self.manifest_sha256)


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class DatasetManifest(CheckedConfig):
    """The manifest of a complete dataset."""

    harvested: Harvested
    scrambled: Scrambled | None = None
    """How the tokens were put in another order after the harvest, if they were."""
    shards: tuple[Shard, ...]
    tokens: int
    """Number of tokens of all shards."""
    statistics_sha256: str
    """SHA-256 of ``norm_stats.json``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_digest(self.statistics_sha256)
        check_not_negative(self, "tokens")
        if self.tokens != sum(shard.tokens for shard in self.shards):
            raise ConfigError(f"tokens is {self.tokens}, which is not the number of tokens of all shards.")
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ConfigError("two shards have the same file.")


def shard_name(index: int) -> str:
    """The name of a shard's file."""
    return f"shard-{index:05d}.safetensors"


def write_manifest(directory: Path, manifest: DatasetManifest) -> None:
    """Write the manifest, which makes the dataset complete."""
    files.write_json(directory / MANIFEST, {**MANIFEST_FORMAT.header(), **to_dict(manifest)}, finite=True)


def read_manifest(directory: Path) -> DatasetManifest:
    """Read the manifest of a dataset; raises CheckpointError if it is missing, damaged, or the dataset unfinished."""
    path = directory / MANIFEST
    files.check_readable(directory)
    if not path.exists() and any(any(directory.glob(name)) for name in (UNFINISHED_FILES, SCRAMBLING)):
        raise CheckpointError(
            f"{directory} holds a dataset that is not complete; run the command that writes it again to finish it."
        )
    return manifest_of(files.read_json(path, finite=True), path)


def manifest_of(content: object, path: Path) -> DatasetManifest:
    """The manifest that the values of a JSON file describe; raises CheckpointError, which names the path, if none."""
    manifest = record_of(DatasetManifest, MANIFEST_FORMAT.check(content, path), MANIFEST_FORMAT, path)
    for shard in manifest.shards:
        files.inside(path.parent, shard.file)
    return manifest


def record_of(kind: type[_Record], content: object, form: files.FileFormat | None, path: Path) -> _Record:
    """Make a record of the values of a JSON file; raises CheckpointError, which names the file, if they are illegal."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not describe a dataset of activations; it is damaged.")
    header = form.header() if form else {}
    values = {key: value for key, value in cast(dict[str, Any], content).items() if key not in header}
    try:
        return from_dict(kind, values)
    except ConfigError as error:
        raise CheckpointError(f"{path} does not describe a dataset of activations ({error})") from error


def _check_digest(digest: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(f"sha256 is {digest[:70]!r}; it must be 64 hexadecimal digits.")
