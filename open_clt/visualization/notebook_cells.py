"""Notebook cells: a figure that a cell draws is shown below the cell, also if the cell does not return it.

Pyplot does so for figures that it made. Figures of this package are made without pyplot, so each of them asks the shell
of the notebook to call it once, when the cell has run. What is kept until then is kept by the shell. Outside of
notebooks, nothing happens.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, cast, final

from matplotlib.figure import Figure

_EVENT = "post_execute"


def show_later(figure: Figure) -> None:
    """Show a figure below the running cell, unless the cell returns or displays it itself.

    A figure that the user made, such as one of pyplot, is left to pyplot; here it only gets a form that is shown if a
    cell returns it, if pyplot did not give it one.
    """
    shell = _shell()
    if shell is None:
        return
    if hasattr(figure, "is_shown"):
        shell.events.register(_EVENT, _AfterCell(figure, shell))
    else:
        _show_as_png(shell)


@final
@dataclass(frozen=True)
class _AfterCell:
    """A call after the cell, which the shell keeps; the shell keeps equal ones only once."""

    figure: Figure
    shell: Any

    def __call__(self) -> None:
        self.shell.events.unregister(_EVENT, self)
        if not cast(Any, self.figure).is_shown:
            sys.modules["IPython"].display.display(self.figure)


def _shell() -> Any:
    """Return the shell of a notebook that runs this code; None in scripts and in terminals."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _show_as_png(shell: Any) -> None:
    """Let the shell show matplotlib's figures as PNG, unless it has a form for them, such as the one of pyplot."""
    formats = shell.display_formatter.formatters
    if not any(Figure in formatter.type_printers for formatter in formats.values()):
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})
