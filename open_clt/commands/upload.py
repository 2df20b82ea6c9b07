"""The command ``open-clt upload``: send a dataset of activations to a server that ``open-clt serve`` runs.

The same command goes on with an upload that was stopped, at any moment and on either side.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.options import AddOption, AddParser, add_command

if TYPE_CHECKING:
    from open_clt.data.server.client import Target


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "upload", "Upload a dataset of activations to a server of datasets.")
    option = parser.add_argument
    option("directory", type=Path, metavar="DIR", help="Directory of a complete dataset.")
    option("url", metavar="URL", help="Address of the server, such as http://lab:8042.")
    option("--name", help="Name of the dataset on the server (default: the name of the directory).")
    add_token_option(option)
    option(
        "--discard",
        action="store_true",
        help="First delete what an unfinished upload of another dataset of this name has left on the server.",
    )
    parser.set_defaults(command=run)


def add_token_option(option: AddOption) -> None:
    """Add the option that names the file of a token."""
    option(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="File that holds the token of the server (default: the environment variable OPEN_CLT_TOKEN).",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the dataset and the server, and upload with a progress bar."""
    from open_clt.data.dataset.manifest import read_manifest
    from open_clt.data.server.access import own_token
    from open_clt.data.server.client import target_of

    target = target_of(arguments.url, arguments.directory, arguments.name)
    token = own_token(arguments.token_file)
    read_manifest(arguments.directory)
    send(arguments.directory, target, token, discard=arguments.discard)
    return 0


def send(directory: Path, target: Target, token: str | None, *, discard: bool = False) -> None:
    """Upload a dataset with a progress bar, and print its address."""
    from rich.progress import TransferSpeedColumn

    from open_clt.data.dataset.manifest import read_manifest
    from open_clt.data.server.client import upload
    from open_clt.program import Stopped
    from open_clt.progress import progress_bar

    size = sum((directory / shard.file).stat().st_size for shard in read_manifest(directory).shards)
    with progress_bar("uploading", TransferSpeedColumn()) as bar:
        task = bar.add_task("upload", total=size)
        try:
            upload(
                directory,
                target,
                token=token,
                discard=discard,
                on_bytes=lambda number: bar.update(task, completed=number),
            )
        except Stopped as stopped:
            raise Stopped(stopped.number, "The same command goes on with the upload.") from None
    print(f"uploaded: {target.url}")
