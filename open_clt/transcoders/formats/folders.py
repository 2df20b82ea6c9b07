"""Folders of layers: a layout in which each layer lies in a folder of its own, beside those of other transcoders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats.weight_files import WeightFiles

_MOST_LISTED = 3
"""Number of sets that a sentence lists."""
_Layers = Mapping[int, Sequence[str]]
"""The names of the files of each layer."""


def sets_of_layers(names: Iterable[str], pattern: re.Pattern[str]) -> dict[str, dict[int, list[str]]]:
    """The names of files by set and by layer, which the groups ``set`` and ``layer`` of a pattern match."""
    sets: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if found := pattern.fullmatch(name):
            sets.setdefault(found["set"], {}).setdefault(int(found["layer"]), []).append(name)
    return sets


def names_of_set(weight_files: WeightFiles, files: str, pattern: re.Pattern[str], selects: str) -> list[str]:
    """The names of the files of the only set, one for each layer, in order.

    ``files`` selects the files and ``pattern`` matches their names; ``selects`` is what a user writes to select a set,
    with ``{}`` in place of its name. Raises the errors of ``one_set``.
    """
    sets = sets_of_layers(weight_files.names(files), pattern)
    return one_set({selects.format(name): layers for name, layers in sets.items()}, weight_files.place)


def one_set(sets: Mapping[str, _Layers], place: Path) -> list[str]:
    """The names of the files of the only set, one for each layer, in order.

    ``sets`` are given by the patterns that select them. Raises CheckpointError, which lists these patterns, if there
    are several, and if a layer is missing or has several files.
    """
    if len(sets) > 1:
        listed = ", ".join(repr(pattern) for pattern in sorted(sets)[:_MOST_LISTED])
        others = f" and {len(sets) - _MOST_LISTED} more" if len(sets) > _MOST_LISTED else ""
        raise CheckpointError(
            f"{place} holds {len(sets)} sets of transcoders, {listed}{others}; write one of these patterns after the "
            "name of the directory."
        )
    ((pattern, layers),) = sets.items()
    for layer in range(max(layers) + 1):
        if layer not in layers:
            raise CheckpointError(
                f"{place} lacks layer {layer} of the set {pattern!r}, whose last layer is {max(layers)}; it needs all "
                "layers."
            )
        if len(layers[layer]) > 1:
            raise CheckpointError(
                f"{place} holds {len(layers[layer])} transcoders of layer {layer}, such as {layers[layer][0]!r}; list "
                "one file per layer under 'transcoders' in a config.yaml of circuit-tracer."
            )
    return [layers[layer][0] for layer in range(max(layers) + 1)]
