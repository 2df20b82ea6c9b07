"""Progress bars: they are shown on standard error, in a terminal or a notebook, and never in a pipe or a file."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(name: str, *details: ProgressColumn, shown: bool = True, transient: bool = False) -> Progress:
    """A progress bar in one line: its name, the steps, the time and ``details``; a transient one disappears at its end.

    If standard output is a terminal too, text that is printed meanwhile appears above the bar.
    """
    console, rate = Console(stderr=True), 10.0
    if console.is_jupyter and find_spec("ipywidgets") is None:  # a notebook shows a line of text as terminals do
        console, rate = Console(stderr=True, force_jupyter=False, force_terminal=True, width=100), 1.0
    steps = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn(name),
        *steps,
        *details,
        console=console,
        refresh_per_second=rate,
        transient=transient,
        disable=not (shown and (console.is_terminal or console.is_jupyter)),
        redirect_stdout=sys.stdout.isatty(),
    )


def without_widget_advice() -> None:
    """Import tqdm, which advises a notebook without ipywidgets to install them, so that libraries find it imported.

    Rooms call this before they import a library that has bars of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("tqdm.auto")


@contextmanager
def bars_of_hub() -> Generator[None]:
    """Hide the progress bars of huggingface_hub during the block, except in a terminal or a notebook."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    console = Console(stderr=True)
    if are_progress_bars_disabled() or console.is_terminal or console.is_jupyter:
        without_widget_advice()
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
