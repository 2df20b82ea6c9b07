"""Interactive figures in notebooks: stored without plotly's program, and with a picture for viewers without it.

JupyterLab, Jupyter Notebook and VS Code have plotly's program, so a notebook needs only the figure's data, some 100 kB.
Viewers that have only pictures, such as GitHub and nbconvert, show the static figure of the same contents.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, final

import plotly.graph_objects as go
import plotly.io as pio
from matplotlib.figure import Figure

from open_clt import files
from open_clt.visualization.style import NotebookFigure

PLOTLY = "application/vnd.plotly.v1+json"
"""The type of a figure's data in a notebook."""
CONFIG: dict[str, Any] = {"displaylogo": False, "typesetMath": False, "showSendToCloud": False}
"""Settings of plotly's program. A figure sends nothing to a server."""
_STORE_DATA = frozenset({"plotly_mimetype", "jupyterlab", "nteract", "vscode"})
"""Plotly's names of the forms that store the data of a figure."""
_DPI = 96
"""Pixels of the picture per inch: as many as a page shows, because the picture stands in for the figure only."""


@final
class NotebookPlot(go.Figure):
    """A plotly figure that a notebook stores as data, with a picture of the same contents.

    A form that the user or the environment chooses otherwise (``plotly.io.renderers.default``) is plotly's own.
    """

    _draw: Callable[[], Figure] | None = None

    def with_picture(self, draw: Callable[[], Figure]) -> NotebookPlot:
        """Return this figure, whose picture ``draw`` makes when a notebook stores the figure."""
        self._draw = draw
        return self

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None, validate: bool = True, **settings: Any
    ) -> dict[str, Any]:
        """The figure's data and its picture, by the types of both."""
        if not _STORE_DATA & set(str(pio.renderers.default).split("+")):
            return super()._repr_mimebundle_(include, exclude, validate, **settings)
        content = files.parse_json(str(self.to_json()).encode())
        return {PLOTLY: {**content, "config": CONFIG}, **self._picture()}

    def _ipython_display_(self) -> None:
        """Show the figure; IPython would otherwise add a page with a link to plotly's program on the internet."""
        bundle = self._repr_mimebundle_()
        if PLOTLY not in bundle:
            super()._ipython_display_()
            return
        from IPython.display import display

        display(bundle, raw=True)

    def _picture(self) -> dict[str, str]:
        figure = None if self._draw is None else self._draw()
        if not isinstance(figure, NotebookFigure):
            return {}
        return {"image/png": base64.b64encode(figure.png(_DPI)).decode()}
