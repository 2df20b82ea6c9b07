"""Progress: bars on standard error, in a terminal or a notebook and never in a pipe or a file; and listeners.

A listener is what a program with pages of its own shows instead of a bar. Long computations report to it what they have
reached, and a listener stops the computation by raising an exception.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from typing import TypeAlias

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

Listener: TypeAlias = Callable[[str, int, int], None]
"""Function of a phase, such as ``features``, of the number of steps that are done, and of the number of all steps."""

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def hidden_bars() -> Generator[None]:
    """Show no progress bar during the block."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Let a listener hear the progress of what this thread computes during the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_progress(phase: str, done: int, total: int) -> None:
    """Tell the listener of this thread, if it has one, how many steps of a phase are done."""
    listener = _listener.get()
    if listener is not None:
        listener(phase, done, total)


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
        disable=_hidden.get() or not (shown and (console.is_terminal or console.is_jupyter)),
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
    if are_progress_bars_disabled() or (not _hidden.get() and (console.is_terminal or console.is_jupyter)):
        without_widget_advice()
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
