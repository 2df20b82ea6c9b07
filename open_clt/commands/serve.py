"""The command ``open-clt serve``: let other computers read datasets of activations, and upload them.

It listens on the loopback interface only, unless ``--host`` says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser, add_command, integer
from open_clt.errors import MissingExtraError

if TYPE_CHECKING:
    from open_clt.data.server.access import Access


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "serve", "Serve datasets of activations over HTTP.")
    option = parser.add_argument
    option("directory", type=Path, metavar="DIR", help="A dataset, or a directory whose folders are datasets.")
    option("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1, this computer only).")
    option("--port", type=integer(least=0, most=65535), default=8042, help="Port (default: 8042; 0 is any free one).")
    option(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="Further name under which clients may reach the server, such as that of a computer. May be repeated.",
    )
    option(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="File of tokens that allow to upload datasets into DIR and to read, one on each line; without this option "
        "nothing can be uploaded.",
    )
    option(
        "--read-token-file",
        type=Path,
        metavar="FILE",
        help="File of tokens that allow to read, one on each line; without this option, reading needs no token.",
    )
    option("--log-file", type=Path, metavar="FILE", help="File to which the log goes (default: stderr).")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Listen, print the address, and answer requests until a signal ends the program."""
    try:
        import fastapi
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(
            "The server needs FastAPI and uvicorn; install them with `pip install open-clt[server]`."
        ) from error
    del fastapi, uvicorn
    from open_clt.data.server.access import Access, read_tokens
    from open_clt.data.server.app import make_app
    from open_clt.data.server.datasets import Datasets
    from open_clt.data.server.serve import serve, url_of
    from open_clt.files import locked
    from open_clt.web_checks import take_address

    datasets = Datasets(arguments.directory)
    writing = () if arguments.token_file is None else read_tokens(arguments.token_file)
    reading = None if arguments.read_token_file is None else read_tokens(arguments.read_token_file)
    access = Access(writing, reading)
    lock = locked(arguments.directory) if writing else nullcontext()
    with _log(arguments.log_file) as log, take_address(arguments.host, arguments.port) as taken, lock:
        app = make_app(datasets, (arguments.host, *arguments.allow_host), access, log)
        number = len(datasets.names())
        print(f"datasets: {number}, at {url_of(taken)} (Ctrl-C ends the server)", flush=True)
        _warn(arguments.host, access, names=bool(arguments.allow_host))
        serve(app, taken)
    return 0


def _warn(host: str, access: Access, *, names: bool) -> None:
    """Say what other computers can do, if they can reach the server."""
    from open_clt.web_checks import is_loopback

    if is_loopback(host):
        return
    who = "without a token" if access.reading is None else "with a token"
    writers = ", and upload datasets with a token" if access.writing else ""
    print(f"Every computer that reaches {host} can read the datasets {who}{writers}; nothing is encrypted.", flush=True)
    if host in ("0.0.0.0", "::") and not names:
        print("It answers no other computer yet; add --allow-host NAME for each name that clients call it.", flush=True)


def _log(path: Path | None) -> AbstractContextManager[Callable[[str], None]]:
    """A function that writes a line of the log."""
    from open_clt.files import appending

    def to_stderr(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    return nullcontext(to_stderr) if path is None else appending(path)
