"""The training record that is stored with a transcoder, of which the transcoder page shows the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.native import CONFIG, read_record

_RECORD = "training.json"
"""File beside the transcoder that ships with the package."""


class StoredCurves(NamedTuple):
    """The numbers of a training run over its steps; see ``Curves`` of the training room."""

    step: Sequence[int]
    loss: Sequence[float]
    fvu: Sequence[float]
    l0: Sequence[float]
    dead_share: Sequence[float]

    __repr__ = short_repr


def training_curves(folder: Path) -> StoredCurves | None:
    """The curves in a transcoder's directory; None if it has none, such as one of another program.

    Raises CheckpointError if the user has no permission to read them.
    """
    for path in (folder, folder / CONFIG, folder / _RECORD):
        files.check_readable(path)
    for read in (read_record, _read_beside):
        try:
            record = read(folder)
        except CheckpointError:
            continue
        curves = record.get("curves")
        if isinstance(curves, dict):
            return _checked(cast(dict[str, Any], curves))
    return None


def _read_beside(folder: Path) -> Mapping[str, Any]:
    content = files.read_json(folder / _RECORD)
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def _checked(curves: Mapping[str, Any]) -> StoredCurves | None:
    """The curves, if each of them is a list of finite numbers, one for each step."""
    columns = [curves.get(name) for name in StoredCurves._fields]
    lists = [cast(list[Any], column) for column in columns if isinstance(column, list) and column]
    if len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for column in lists for value in column):
        return None
    return StoredCurves(*lists)
