"""The table of features: one short row per record, for lists that are searched and sorted without reading records.

The file holds columns, because the names of the keys would take most of the space of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from open_clt.features.records import FeatureRecord
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature

TABLE = "table.json.gz"
_TOKENS = 5
_EXAMPLES = 3


class FeatureRow(NamedTuple):
    """What lists show of one feature."""

    feature: Feature
    """The feature."""
    label: str
    """Description of the feature in words; empty if it has none."""
    automatic: bool
    """Whether a program made the label."""
    density: float
    """Share of the tokens on which the feature is active; NaN if not known."""
    max_activation: float
    """Largest activation of the feature; NaN if not known."""
    fires_on: tuple[str, ...]
    """Tokens on which the feature is active most often."""
    top_tokens: tuple[str, ...]
    """Output tokens that the feature raises most."""
    also: str = ""
    """Text that searches go through but lists do not show: further tokens of both kinds, and the largest examples."""

    __repr__ = short_repr


def row_of(record: FeatureRecord) -> FeatureRow:
    """The row of a record."""
    return FeatureRow(
        feature=record.feature,
        label="" if record.label is None else record.label.text,
        automatic=record.label is not None and record.label.automatic,
        density=record.density,
        max_activation=record.max_activation,
        fires_on=tuple(entry.token for entry in record.fires_on[:_TOKENS]),
        top_tokens=tuple(entry.token for entry in record.top_tokens[:_TOKENS]),
        also=_also(record),
    )


def _also(record: FeatureRecord) -> str:
    further = (*record.fires_on[_TOKENS:], *record.top_tokens[_TOKENS:])
    examples = ("".join(example.tokens) for example in record.examples[:_EXAMPLES])
    return "\n".join([" ".join(entry.token for entry in further), *examples])


def to_columns(rows: Sequence[FeatureRow]) -> dict[str, list[Any]]:
    """The rows as columns of JSON values; NaN becomes null."""
    columns = {name: [getattr(row, name) for row in rows] for name in FeatureRow._fields}
    for name in ("density", "max_activation"):
        columns[name] = [None if math.isnan(value) else value for value in columns[name]]
    return columns


def read_columns(columns: Mapping[str, Sequence[Any]]) -> list[FeatureRow]:
    """The rows of such columns; raises ValueError, LookupError or TypeError if they do not describe features."""
    also = columns.get("also", [""] * len(columns["feature"]))  # tables of older versions lack it
    known = [columns[name] for name in FeatureRow._fields if name != "also"]
    rows = [FeatureRow(*values) for values in zip(*known, also, strict=True)]
    return [_read(row) for row in rows]


def _read(row: FeatureRow) -> FeatureRow:
    layer, index = row.feature
    if type(layer) is not int or type(index) is not int or min(layer, index) < 0:
        raise ValueError(f"{row.feature} is not a feature")
    return FeatureRow(
        feature=Feature(layer, index),
        label=str(row.label),
        automatic=bool(row.automatic),
        density=math.nan if row.density is None else float(row.density),  # pyright: ignore[reportUnnecessaryComparison]
        max_activation=math.nan if row.max_activation is None else float(row.max_activation),  # pyright: ignore[reportUnnecessaryComparison]
        fires_on=tuple(map(str, row.fires_on)),
        top_tokens=tuple(map(str, row.top_tokens)),
        also=str(row.also),
    )
