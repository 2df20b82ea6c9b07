"""How records show in notebooks: as HTML, which ``visualization/notebook`` makes when a notebook asks for it.

A class of records uses it as ``_repr_html_ = html_repr``. The function is here, below all records, and finds the views
by name, because what draws stands above what is drawn: importing a record never imports a library that draws.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_VIEWS = "open_clt.visualization.notebook.views"


def html_repr(self: Any) -> str | None:
    """The record as HTML; None for a record without a view, which a notebook then shows as text."""
    return import_module(_VIEWS).view_of(self)
