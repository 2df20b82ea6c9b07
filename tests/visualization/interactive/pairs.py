"""Pairs of a static and an interactive figure of the same contents, and the way plotly reads a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from open_clt import visualization_utils as utils
from open_clt.graphs.supernodes import Supernode, group
from tests.graphs.hand_graph import hand_graph
from tests.visualization.test_figures import CORRELATIONS, HEAT, NAMES, SPARSE, TOKENS, Curves
from tests.visualization.test_report_figures import report

MARKUP = [
    "<b>x</b>",
    "</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;",
    "a\nb",
    "שלום",
    "\u200b\u202eab",
    "$x_1$",
    "%{meta.static}",
    "你好",
    "\ud800",
]
"""Texts that a page or plotly could take for something else than text."""
RNG = np.random.default_rng(1)
STEPS = list(range(0, 500, 10))
CURVES = Curves(
    STEPS,
    *(RNG.random((3, 50)) * [[3], [1], [20]]).tolist(),
    np.linspace(0, 0.2, 50).tolist(),
)


class Pair(NamedTuple):
    """A static and an interactive function, and the arguments of both."""

    static: Callable[..., Figure]
    interactive: Callable[..., go.Figure]
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = {}  # noqa: RUF012 (a pair does not change it)

    def drawn(self, **settings: Any) -> Figure:
        return self.static(*self.arguments, **self.settings, **settings)

    def shown(self, **settings: Any) -> go.Figure:
        return self.interactive(*self.arguments, **self.settings, **settings)


def pair(name: str, *arguments: Any, **settings: Any) -> Pair:
    """The two functions of one name, such as ``feature_heatmap``."""
    return Pair(getattr(utils, f"visualize_{name}"), getattr(utils, f"interactive_{name}"), arguments, settings)


def grouped() -> Any:
    graph = hand_graph()
    features = [node for node in graph.ids() if node.count(":") == 2 and node[0].isdigit()]
    return group(graph, [Supernode("two features", tuple(features[:2]))])


VECTORS = RNG.normal(size=(40, 8))
REPORTS = [report(), report("sparser", l0=8.0, fvu=0.2, ce_replacement=3.4), report("dominated", l0=20.0, fvu=0.3)]
PAIRS = {
    "heatmap": pair("feature_heatmap", HEAT, TOKENS, NAMES),
    "signed heatmap": pair("feature_heatmap", HEAT - 1, TOKENS, NAMES),
    "long text": pair(
        "feature_heatmap",
        RNG.random((20, 1000)).astype(np.float32),
        [f" {number}" for number in range(1000)],
        [f"L0/{row}" for row in range(20)],
    ),
    "layer activity": pair("layer_activity", HEAT[:4], TOKENS),
    "pca": pair("feature_embedding", VECTORS, np.arange(40) % 4, method="pca"),
    "tsne": pair("feature_embedding", VECTORS, np.arange(40) % 4, method="tsne", sizes=RNG.random(40)),
    "correlations": pair("cross_layer_correlations", CORRELATIONS, NAMES, layers=[0] * 5 + [1] * 5 + [2] * 10),
    "small correlations": pair("cross_layer_correlations", CORRELATIONS[:4, :4], NAMES[:4]),
    "many correlations": pair(
        "cross_layer_correlations",
        np.corrcoef(RNG.normal(size=(300, 9))).astype(np.float32),
        [f"L0/{row}" for row in range(300)],
    ),
    "importance": pair("feature_importance", SPARSE),
    "density": pair("feature_density", SPARSE),
    "many layers": pair("feature_density", RNG.random((60, 30)) ** 4),
    "curves": pair("training_curves", CURVES),
    "report": pair("report", report()),
    "report without graphs": pair("report", report()._replace(graphs=())),
    "comparison": pair("comparison", REPORTS),
    "many transcoders": pair("comparison", [report(f"T{i}", l0=float(i + 1)) for i in range(40)]),
    "graph": pair("attribution_graph", hand_graph()),
    "supernodes": pair("attribution_graph", grouped()),
}


def texts_in(value: object) -> Iterator[str]:
    """Every text of a figure's JSON, without the names of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list | tuple | np.ndarray):
        for part in value:
            yield from texts_in(part)


_ENTITIES = {"mu": "μ", "amp": "&", "lt": "<", "gt": ">", "nbsp": "\u00a0", "times": "×", "plusmn": "±", "deg": "°"}


def displayed(text: str) -> str:
    """The characters that plotly shows for a text, by the rules of its ``svg_text_utils.js``; direction marks left out.

    Breaks become line ends, the tags that it knows vanish, others stay, and entities become characters.
    """

    def character(match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("#x"):
            return chr(int(name[2:], 16))
        return chr(int(name[1:])) if name.startswith("#") else _ENTITIES.get(name, match[0])

    shown: list[str] = []
    for part in re.split(r"(<[^<>]*>)", re.sub(r"(\r\n?|\n)", " ", text)):
        tag = re.fullmatch(r"<(/?)([^ >]*)(\s+(.*))?>", part, re.DOTALL)
        if tag and tag[2].lower() == "br":
            shown.append("\n")
        elif tag and tag[2].lower() in {"sup", "sub", "s", "u", "b", "i", "a", "span", "em", "strong"}:
            continue
        else:
            shown.append(re.sub(r"&(#\d+|#x[\da-fA-F]+|[a-z]+);", character, part))
    return re.sub("[\u2068\u2069]", "", "".join(shown))
