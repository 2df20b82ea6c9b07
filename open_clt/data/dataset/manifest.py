"""The manifest of a dataset of activations: what was harvested, and which files hold it.

The manifest, ``manifest.json``, is written last, so a directory without one holds no complete dataset. Until then,
``unfinished.json`` says how far the harvest has come: it is written again after each shard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, final

from open_clt import files
from open_clt.config.checks import check_counts, check_not_negative, check_seed
from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.data.contexts import Place
from open_clt.data.dataset.encoding import StorageType, bytes_per_token
from open_clt.data.dataset.statistics import DatasetStatistics, Moments, numbers_of
from open_clt.errors import CheckpointError, ConfigError
from open_clt.short_repr import short_repr

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SCRAMBLING = "scrambling.json"
"""What stands in place of the manifest until a scramble is complete."""
MANIFEST_FORMAT = files.FileFormat("open-clt-activations", newest=1)
UNFINISHED_FORMAT = files.FileFormat("open-clt-unfinished-activations", newest=1)
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


@final
@dataclass(frozen=True, kw_only=True)
class UnfinishedDataset:
    """How far a harvest has come."""

    harvested: Harvested
    shards: tuple[Shard, ...]
    """The shards that are written."""
    place: Place
    """Place in the texts where the block of mixed tokens begins that the last of these shards belongs to."""
    statistics: DatasetStatistics
    """Statistics of the shards that are written."""

    @property
    def block(self) -> int:
        """Index of the block of mixed tokens that the last shard belongs to; 0 before the first shard."""
        return max(0, len(self.shards) - 1) // self.harvested.shards_mixed

    __repr__ = short_repr


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
    if not path.exists() and any((directory / name).exists() for name in (UNFINISHED, SCRAMBLING)):
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


def write_unfinished(directory: Path, unfinished: UnfinishedDataset) -> None:
    """Write how far a harvest has come."""
    content = {
        "harvested": to_dict(unfinished.harvested),
        "shards": [to_dict(shard) for shard in unfinished.shards],
        "place": list(unfinished.place),
        "statistics": [
            {"tokens": moments.tokens, "mean": moments.mean.tolist(), "deviations": moments.deviations.tolist()}
            for moments in unfinished.statistics
        ],
    }
    files.write_json(directory / UNFINISHED, {**UNFINISHED_FORMAT.header(), **content}, finite=True, indent=None)


def read_unfinished(directory: Path) -> UnfinishedDataset:
    """Read how far a harvest has come; raises CheckpointError if the file is missing or damaged."""
    path = directory / UNFINISHED
    files.check_readable(directory)
    content = UNFINISHED_FORMAT.read(path, finite=True)
    match content:
        case {
            "harvested": dict(harvested),
            "shards": list(shards),
            "place": [int(item), int(token), int(used)],
            "statistics": [dict(), dict(), dict(), dict()],
        } if min(item, token, used) >= 0:
            found = record_of(Harvested, cast(dict[str, Any], harvested), None, path)
            written = [record_of(Shard, shard, None, path) for shard in cast(list[Any], shards)]
            statistics = DatasetStatistics(*(_moments(entry, found, path) for entry in content["statistics"]))
        case _:
            raise CheckpointError(f"{path} does not say how far a harvest has come; it is damaged.")
    if [shard.file for shard in written] != [shard_name(index) for index in range(len(written))]:
        raise CheckpointError(f"{path} does not list shards in their order; it is damaged.")
    return UnfinishedDataset(
        harvested=found,
        shards=tuple(written),
        place=Place(item, token, used),
        statistics=statistics,
    )


def _moments(entry: dict[str, Any], harvested: Harvested, path: Path) -> Moments:
    shape = (harvested.n_layers, harvested.d_model)
    tokens = entry.get("tokens")
    if type(tokens) is not int or tokens < 0:
        raise CheckpointError(f"{path} does not say how many tokens its statistics have; it is damaged.")
    mean, deviations = (numbers_of(entry.get(name), name, path, shape) for name in ("mean", "deviations"))
    return Moments(tokens, mean, deviations)


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
