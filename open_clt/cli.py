"""The command line of the package, ``open-clt``.

    open-clt train --config FILE --output T                   train a transcoder; every setting is also a flag
    open-clt evaluate --transcoder T --text FILE              measure a transcoder on held-out text
    open-clt compare A B --text FILE                          compare several transcoders in one table and one figure
    open-clt attribute --model M --transcoder T --prompt P    compute, check, save and draw attribution graphs
    open-clt report --prompt P --output report.html           show predictions, graph and features in one HTML file
    open-clt explore --model M --transcoder T                 trace, label, group and steer in a browser
    open-clt attention --prompt P --layer L --head H --key K  explain why a head looked at a position
    open-clt features --transcoder T --text FILE              measure every feature of a transcoder on a text
    open-clt intervene --prompt P --ablate 2:5:417            change features and compare the predictions
    open-clt generate --model M --transcoder T --prompt P     continue a prompt with the original and the replacement
    open-clt verify circuit.yaml                              test the claims of a saved circuit again
    open-clt convert --transcoder T --text FILE --output J    convert TopK or BatchTopK to JumpReLU
    open-clt info T                                           say what a transcoder or a graph is
    open-clt push T org/name                                  upload a transcoder to the Hugging Face hub
    open-clt harvest --text FILE --output D                   write activations to the disk, to train on them
    open-clt scramble D SHUFFLED --seed S                     put all activations of a dataset in random order
    open-clt serve D                                          serve datasets of activations over HTTP
    open-clt upload D URL                                     upload a dataset of activations to a server
    open-clt embedded evaluate                                measure what the embedded model knows
    open-clt doctor                                           check this installation, and say what to do
    open-clt completion bash                                  print a script that lets a shell complete commands

Each command has its own module in ``commands/``; this module parses the arguments and runs the command. A user's
mistake gives an error message of one line and exit status 2. Modules are imported in functions, after signals are
handled (``program.py``).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias, cast

from open_clt.program import run_program

Command: TypeAlias = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; without ``arguments``, the command of this process."""
    return run_program("open-clt", lambda: _run(arguments), ends_process=arguments is None)


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(arguments)
    with _loudness(parsed), _importable_working_directory() if parsed.trust_code else nullcontext():
        return cast(Command, parsed.command)(parsed)


def _commands() -> Sequence[Any]:
    """The module of each command."""
    from open_clt.commands import (
        attention,
        attribute,
        compare,
        completion,
        convert,
        doctor,
        embedded,
        evaluate,
        explore,
        features,
        generate,
        harvest,
        info,
        intervene,
        push,
        report,
        scramble,
        serve,
        train,
        upload,
        verify,
    )

    return (
        train,
        evaluate,
        compare,
        attribute,
        report,
        explore,
        attention,
        features,
        intervene,
        generate,
        verify,
        convert,
        info,
        push,
        harvest,
        scramble,
        serve,
        upload,
        embedded,
        doctor,
        completion,
    )


@contextmanager
def _importable_working_directory() -> Generator[None]:
    """Let ``class_path`` name a module of the working directory, unless Python's option -P forbids it.

    Other commands cannot import from there: the working directory may be one that was downloaded, and libraries look
    for optional packages whose names its files may have.
    """
    if sys.flags.safe_path or "" in sys.path:
        yield
        return
    sys.path.append("")  # at the end, so that a file cannot hide an installed package
    try:
        yield
    finally:
        sys.path.remove("")


@contextmanager
def _loudness(parsed: argparse.Namespace) -> Generator[None]:
    """Show what the options ask for on standard error: warnings and bars, with ``--verbose`` also what is done."""
    logger = logging.getLogger("open_clt")
    former = logger.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    with ExitStack() as stack:
        if parsed.quiet:
            from open_clt.progress import hidden_bars

            stack.enter_context(hidden_bars())
        if parsed.quiet or parsed.verbose:
            logger.setLevel(logging.ERROR if parsed.quiet else logging.INFO)
            logger.addHandler(handler)
        try:
            yield
        finally:
            logger.setLevel(former)
            logger.removeHandler(handler)


class _Version(argparse.Action):
    """Prints the version; it is looked up only then."""

    def __call__(self, *_: Any) -> None:
        from open_clt import __version__

        print(f"open-clt {__version__}")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    from open_clt.commands.options import Parser, add_loudness_options

    parser = Parser(prog="open-clt", description="Train, evaluate and use cross-layer transcoders of language models.")
    parser.set_defaults(trust_code=False, program=parser)
    parser.add_argument("--version", action=_Version, nargs=0, help="Print the version, and exit.")
    add_loudness_options(parser, default=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _commands():
        command.add_to(commands.add_parser)
    return parser
