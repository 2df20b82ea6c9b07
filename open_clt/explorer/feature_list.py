"""The list of features: rows of the feature files, searched, filtered, sorted, and cut into pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from open_clt.errors import ConfigError
from open_clt.features.table import FeatureRow
from open_clt.transcoders.feature import Feature

PAGE = 50
"""Number of rows on a page."""
_ORDERS: dict[str, Callable[[FeatureRow], Any]] = {
    "feature": lambda row: row.feature,
    "label": lambda row: (not row.label, row.label.lower()),
    "density": lambda row: _known(row.density),
    "max": lambda row: _known(row.max_activation),
}


@final
@dataclass(frozen=True, kw_only=True)
class Query:
    """What a person looks for in the list."""

    text: str = ""
    """Text that the label, a token that the feature fires on, or an output token contains; or a feature's name."""
    wide: bool = False
    """Whether all stored tokens, and the largest examples, are searched too."""
    layer: int | None = None
    """Layer of the features; None is all."""
    least: float = 0.0
    """Smallest density."""
    most: float = 1.0
    """Largest density."""
    order: str = "feature"
    """Column by which the rows are sorted: ``feature``, ``label``, ``density`` or ``max``."""
    descending: bool = False
    page: int = 0


def read_query(values: Mapping[str, str]) -> Query:
    """Read a query from the values of an address; raises ConfigError if one of them is not legal."""
    try:
        query = Query(
            text=values.get("q", "").strip(),
            wide=values.get("wide") == "1",
            layer=int(values["layer"]) if values.get("layer") else None,
            least=float(values.get("least") or 0),
            most=float(values.get("most") or 1),
            order=values.get("sort") or "feature",
            descending=values.get("down") == "1",
            page=int(values.get("page") or 0),
        )
    except ValueError as error:
        raise ConfigError("A layer and a page are whole numbers, and densities are numbers from 0 to 1.") from error
    if query.order not in _ORDERS:
        raise ConfigError(f"The list cannot be sorted by {query.order[:40]!r}; the columns are {', '.join(_ORDERS)}.")
    return query


def listed(
    rows: Sequence[FeatureRow], query: Query, labels: Mapping[Feature, str], among: Mapping[Feature, float] | None
) -> dict[str, Any]:
    """One page of the rows that meet a query, as plain values, and the number of all that do.

    ``labels`` are a person's, which win over those of the rows. ``among``, if given, holds the only features that are
    listed and their largest activations on a prompt.
    """
    rows = [_with_label(row, labels) for row in rows if among is None or row.feature in among]
    found = [row for row in rows if _meets(row, query)]
    found.sort(key=_ORDERS[query.order], reverse=query.descending)
    shown = found[max(0, query.page) * PAGE :][:PAGE]
    return {
        "total": len(found),
        "pages": -(-len(found) // PAGE),
        "rows": [_row(row, None if among is None else among[row.feature]) for row in shown],
    }


def _row(row: FeatureRow, here: float | None) -> dict[str, Any]:
    return {
        "feature": str(row.feature),
        "label": row.label,
        "automatic": row.automatic,
        "density": None if math.isnan(row.density) else row.density,
        "max": None if math.isnan(row.max_activation) else row.max_activation,
        "here": here,
        "firesOn": list(row.fires_on),
        "top": list(row.top_tokens),
    }


def _with_label(row: FeatureRow, labels: Mapping[Feature, str]) -> FeatureRow:
    return row._replace(label=labels[row.feature], automatic=False) if row.feature in labels else row


def _meets(row: FeatureRow, query: Query) -> bool:
    if query.layer is not None and row.feature.layer != query.layer:
        return False
    if not query.least <= (0.0 if math.isnan(row.density) else row.density) <= query.most:
        return False
    text = query.text.lower()
    words = (row.label, str(row.feature), *row.fires_on, *row.top_tokens, row.also if query.wide else "")
    return not text or any(text in word.lower() for word in words)


def _known(value: float) -> float:
    """The value for sorting; an unknown one counts as the smallest."""
    return -1.0 if math.isnan(value) else value
