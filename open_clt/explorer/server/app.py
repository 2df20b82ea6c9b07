"""The pages of the explorer: a Dash application whose graph, circuit and panels are drawn by ``assets/``.

The layout holds every page; the address says which one is shown, so going back and forth does not lose anything.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html
from flask import Response, abort, request, send_from_directory

from open_clt import visualization
from open_clt.explorer.server.api import add_api, guard
from open_clt.explorer.server.later import LaterExplorer, getter
from open_clt.web_checks import content_policy

if TYPE_CHECKING:
    from open_clt.explorer.explorer import Explorer

PAGES: dict[str, str] = {
    "graph": "Graph",
    "features": "Features",
    "steer": "Steer",
    "compare": "Compare",
    "transcoder": "Transcoder",
}
"""Names of the pages, which are also their addresses (``/`` is the graph), and their titles."""
_ANY_PAGE = "/<path:path>"
"""Name of Dash's rule for addresses that nothing else answers, which would answer all of them with a page."""
_SHARED = Path(visualization.__file__).parent / "assets"
_OWN = Path(__file__).parents[1] / "assets"
_SCRIPTS: dict[str, Path] = {
    "elements.js": _SHARED,
    "graph.js": _SHARED,
    "feature.js": _SHARED,
    "panel.js": _SHARED,
    "node_search.js": _SHARED,
    "client.js": _OWN,
    "store.js": _OWN,
    "say.js": _OWN,
    "selection.js": _OWN,
    "circuit.js": _OWN,
    "graph_page.js": _OWN,
    "steer.js": _OWN,
    "features.js": _OWN,
    "compare.js": _OWN,
    "transcoder.js": _OWN,
    "tools.js": _OWN,
    "start.js": _OWN,
}
"""Scripts in the order in which they are loaded, and where they are."""
_STYLES: dict[str, Path] = {
    "graph.css": _SHARED,
    "feature.css": _SHARED,
    "explorer.css": _OWN,
    "figures.css": _OWN,
}
_FIGURES: dict[str, str] = {
    "evaluation": "Evaluation",
    "curves": "Training curves",
    "density": "Density",
    "norms": "Decoder norms",
    "correlations": "Correlations",
    "importance": "Importance",
    "pca": "Map (PCA)",
    "tsne": "Map (t-SNE)",
}
"""Figures of the transcoder page, in the order in which they are made, and their titles."""
_PLOTLY: Any = {"displaylogo": False, "showSendToCloud": False, "responsive": False, "typesetMath": False}
"""Settings of plotly's program, which sends nothing to a server."""


def make_app(explorer: Explorer | LaterExplorer, allowed: Collection[str] = ()) -> Dash:
    """Return the application of an explorer; it answers for this computer's names and the ``allowed`` ones."""
    app = Dash(
        __name__,
        title="OpenCLT explorer",
        update_title="",
        include_assets_files=False,
        external_scripts=[f"/files/{name}" for name in _SCRIPTS],
        external_stylesheets=[f"/files/{name}" for name in _STYLES],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    policy = cache(lambda: content_policy(app.csp_hashes()))
    guard(app.server, allowed, policy)
    add_api(app.server, getter(explorer))

    @app.server.before_request
    def check_page() -> None:  # pyright: ignore[reportUnusedFunction]
        if request.endpoint == _ANY_PAGE and request.path.split("/")[1] not in PAGES:
            abort(404)

    @app.server.get("/files/<name>")
    def file(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        folder = (_SCRIPTS | _STYLES).get(name)
        return abort(404) if folder is None else send_from_directory(folder, name)

    app.layout = _layout()
    app.clientside_callback(
        ClientsideFunction("explorer", "navigate"),
        Output("page", "data-page"),
        Input("location", "pathname"),
        Input("location", "search"),
    )
    return app


def _layout() -> html.Div:
    links = [
        dcc.Link(title, href="/" if name == "graph" else f"/{name}", id=f"link-{name}", className="x-link")
        for name, title in PAGES.items()
    ]
    parts = {"compare": _compare_page(), "transcoder": _transcoder_page()}
    pages = [html.Main(parts.get(name), id=f"page-{name}", className="x-page", hidden=True) for name in PAGES]
    return html.Div(
        [
            dcc.Location(id="location", refresh=False),
            html.Header(
                [
                    html.B("OpenCLT", className="x-brand"),
                    html.Nav(links),
                    html.Div(id="facts", className="x-facts"),
                    html.Div(id="tools", className="x-tools"),
                ],
                className="x-header",
            ),
            html.Div(id="banner", role="status"),
            html.Div(pages, id="page"),
        ],
        id="explorer",
    )


def _figure(name: str) -> html.Div:
    """The place of a figure of plotly, which is hidden until ``assets/`` have a figure for it."""
    return html.Div(
        dcc.Graph(id=f"figure-{name}", config=_PLOTLY), id=f"holder-{name}", className="x-figure", hidden=True
    )


def _compare_page() -> list[html.Div]:
    return [html.Div(id="compare-main", className="x-fill"), _figure("comparison"), html.Div(id="compare-table")]


def _transcoder_page() -> list[html.Div]:
    cards = [
        html.Section(
            [html.H2(title), html.Div(id=f"state-{name}"), _figure(name), html.Div(id=f"below-{name}")],
            id=f"card-{name}",
            className="x-card",
            **dict[str, Any]({"aria-label": title}),
        )
        for name, title in _FIGURES.items()
    ]
    return [html.Div(id="transcoder-head", className="x-head"), html.Div(cards, className="x-cards")]
