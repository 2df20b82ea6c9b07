"""``open-clt``: what the package does, from a shell.

    open-clt embedded evaluate                                what the embedded model knows, against its bars
    open-clt generate --model M --transcoder T --prompt P     the same prompt continued by both models
    open-clt attribute --model M --transcoder T --prompt P    attribution graphs, saved, drawn and checked
    open-clt intervene --prompt P --ablate 2:5:417            what becomes of a prediction without a feature
    open-clt train --config FILE --output T                   a transcoder from text; every setting is a flag, too
    open-clt evaluate --transcoder T --text FILE              a transcoder on held-out text
    open-clt compare A B --text FILE                          several, in one table and one figure
    open-clt convert --transcoder T --text FILE --output J    TopK or BatchTopK as JumpReLU, for other tools

Each command is a file of ``commands/``; this one reads what was typed and hands it on. A mistake in what was asked
gives one line and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias, cast, final

from open_clt.commands import attribute, compare, convert, embedded, evaluate, generate, intervene, train
from open_clt.errors import ConfigError, OpenCLTError

Command: TypeAlias = Callable[[argparse.Namespace], int]

_COMMANDS = (embedded, generate, attribute, intervene, train, evaluate, compare, convert)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _find_own_modules()
    try:
        parsed = _parser().parse_args(arguments)
        status = cast(Command, parsed.command)(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough (`open-clt ... | head`); Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OpenCLTError as error:
        print(f"open-clt: {error}", file=sys.stderr)
    except OSError as error:
        place = error.filename or "A file"
        print(f"open-clt: {place} cannot be read or written ({error.strerror or error}).", file=sys.stderr)
    return 2


def _find_own_modules() -> None:
    """Let ``class_path`` name what lies in the working directory, for the installed script as for ``python -m``."""
    # A script's path begins with the directory it is installed in. The working directory goes last, so that a file
    # there can hide no package; and nowhere if Python was told to leave it out (-P).
    if not sys.flags.safe_path and "" not in sys.path:
        sys.path.append("")


@final
class _Parser(argparse.ArgumentParser):
    """Reports a mistake as every other is: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` lists what there is.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="open-clt", description="Cross-layer transcoders, from text to picture.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands.add_parser)
    return parser
