"""The state of a scramble: what is written so far, in ``scrambling.json``, which stands in place of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from open_clt import files
from open_clt.config.checks import check_counts
from open_clt.config.json import CheckedConfig, to_dict
from open_clt.data.dataset.manifest import (
    MANIFEST,
    MANIFEST_FORMAT,
    SCRAMBLING,
    DatasetManifest,
    Scrambled,
    Shard,
    read_manifest,
    record_of,
    shard_name,
)
from open_clt.data.dataset.unfinished import check_empty
from open_clt.errors import CheckpointError, ConfigError

_FORMAT = files.FileFormat("open-clt-unfinished-scramble", newest=1)


@final
@dataclass(frozen=True, kw_only=True)
class Scrambling(CheckedConfig):
    """How far a scramble has come."""

    scrambled: Scrambled
    run_tokens: int
    """Number of tokens of a run; there are no runs if it is at least the number of all tokens."""
    runs: tuple[Shard, ...] = ()
    """The runs that are written."""
    shards: tuple[Shard, ...] = ()
    """The shards that are written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "run_tokens")


def run_name(index: int) -> str:
    """The name of a run's file."""
    return f"run-{index:05d}.safetensors"


def begun_scramble(output: Path, new: Scrambling) -> Scrambling | DatasetManifest:
    """What a directory holds of a scramble, which is ``new`` if it is empty; a manifest if the scramble is complete.

    Raises ConfigError if the directory holds something else, or a scramble with another source or other settings.
    """
    files.check_directory(output)
    if files.format_of(output / MANIFEST) == MANIFEST_FORMAT.name:
        manifest = read_manifest(output)
        _check_same(output, manifest.scrambled, new.scrambled)
        return manifest
    if files.format_of(output / SCRAMBLING) == _FORMAT.name:
        begun = read_scrambling(output)
        _check_same(output, begun.scrambled, new.scrambled)
        return begun
    check_empty(output)
    return new


def _check_same(output: Path, stored: Scrambled | None, given: Scrambled) -> None:
    if stored is None or stored.manifest_sha256 != given.manifest_sha256:
        raise ConfigError(f"{output} holds another dataset; give an empty or a new directory.")
    for name in ("seed", "shard_tokens"):
        theirs, ours = getattr(stored, name), getattr(given, name)
        if theirs != ours:
            raise ConfigError(
                f"{output} holds a dataset that was scrambled with {name} = {theirs}, not {ours}; give the same value "
                "to go on with it, or another directory."
            )


def read_scrambling(directory: Path) -> Scrambling:
    """Read how far a scramble has come; raises CheckpointError if the file is missing or damaged."""
    path = directory / SCRAMBLING
    files.check_readable(directory)
    scrambling = record_of(Scrambling, _FORMAT.read(path, finite=True), _FORMAT, path)
    for written, name in ((scrambling.runs, run_name), (scrambling.shards, shard_name)):
        if [one.file for one in written] != [name(index) for index in range(len(written))]:
            raise CheckpointError(f"{path} does not list its files in their order; it is damaged.")
    return scrambling


def write_scrambling(directory: Path, scrambling: Scrambling) -> None:
    """Write how far a scramble has come."""
    files.write_json(directory / SCRAMBLING, {**_FORMAT.header(), **to_dict(scrambling)}, finite=True)


def remove_leftovers(output: Path) -> None:
    """Delete the runs of a scramble that is complete, and then the file that says that they are ours."""
    if files.format_of(output / SCRAMBLING) == _FORMAT.name:
        for run in read_scrambling(output).runs:
            (output / run.file).unlink(missing_ok=True)
        (output / SCRAMBLING).unlink(missing_ok=True)
