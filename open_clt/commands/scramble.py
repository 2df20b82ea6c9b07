"""The command ``open-clt scramble``: put the tokens of a dataset of activations in random order.

The same command goes on with a scramble that was stopped, at any moment and for any reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser, add_command, integer, seed

if TYPE_CHECKING:
    from open_clt.data.dataset.manifest import DatasetManifest
    from open_clt.data.dataset.scrambling.scramble import ScrambleJob


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(
        add_parser, "scramble", "Write the tokens of a dataset of activations to another directory, in random order."
    )
    option = parser.add_argument
    option("source", type=Path, metavar="SOURCE", help="Directory of the dataset.")
    option(
        "output",
        type=Path,
        metavar="OUTPUT",
        help="Directory of the new dataset; a scramble that was stopped there is finished.",
    )
    option("--seed", type=seed, default=0, help="Seed of the order, which depends on nothing else (default: 0).")
    option(
        "--shard-tokens",
        type=integer(least=1),
        help="Number of tokens in a file, which fit in memory (default: that of SOURCE).",
    )
    option(
        "--memory-limit",
        type=integer(least=1, most=2**60),
        metavar="BYTES",
        help="Number of bytes of memory to use for activations; a dataset that is larger is first sorted in parts, "
        "which takes its size once more on the disk (default: half of the free memory).",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Say how many bytes will be written, refuse to fill the disk, and scramble."""
    from open_clt.data.dataset.scrambling.scramble import begin_scramble

    names = ("seed", "shard_tokens", "memory_limit")
    job = begin_scramble(arguments.source, arguments.output, **{name: getattr(arguments, name) for name in names})
    if job.is_complete:
        job.run()
        print(f"{arguments.output} holds the whole dataset already: {len(job.dataset):,} tokens")
        return 0
    _say_size(job)
    manifest = _scramble(job)
    print(f"written: {arguments.output} ({manifest.tokens:,} tokens in {len(manifest.shards):,} files)")
    return 0


def _say_size(job: ScrambleJob) -> None:
    from open_clt.files import check_disk, free_bytes
    from open_clt.transcoders.formats.info import readable

    check_disk(job.output, job.bytes_to_write)
    parts = ", sorted parts included, which are deleted at the end" if job.has_runs else ""
    print(
        f"{readable(job.bytes_to_write)} will be written{parts}: {len(job.dataset):,} tokens; "
        f"{readable(free_bytes(job.output))} are free",
        flush=True,
    )


def _scramble(job: ScrambleJob) -> DatasetManifest:
    from open_clt.commands.token_progress import token_progress
    from open_clt.program import Stopped

    with token_progress("scrambling", job.dataset.manifest.harvested.bytes_per_token) as show:
        try:
            return job.run(show)
        except Stopped as stopped:
            raise Stopped(stopped.number, "The same command goes on with the scramble.") from None
