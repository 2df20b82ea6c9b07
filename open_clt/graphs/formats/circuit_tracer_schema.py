"""The schema of circuit-tracer's viewer and Neuronpedia: kinds of nodes, numbers of features, views and metadata.

The file of a graph holds ``metadata``, ``qParams`` (what a user pinned, grouped and labelled), ``nodes`` and ``links``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, cast, final

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.graphs.supernodes import Supernode
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature

SCHEMA_VERSION = 1
METADATA_FILE = "graph-metadata.json"
_SLUG = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]+")
_SCAN = re.compile(r"(\.?/)?[A-Za-z0-9_.@-]+(/+[A-Za-z0-9_.@-]+)*")


class FeatureType(StrEnum):
    """The kinds of nodes that the viewers draw."""

    FEATURE = "cross layer transcoder"
    ERROR = "mlp reconstruction error"
    EMBEDDING = "embedding"
    LOGIT = "logit"


def cantor_pair(feature: Feature) -> int:
    """Return the number of a feature in the viewer: Cantor's pairing of layer and index."""
    diagonal = feature.layer + feature.index
    return diagonal * (diagonal + 1) // 2 + feature.index


def cantor_unpair(number: int) -> Feature:
    """Return the feature to which ``cantor_pair`` gives a number."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return Feature(diagonal - index, index)


@final
@dataclass(frozen=True, kw_only=True)
class GraphView:
    """The nodes that a user pinned, grouped and clicked in the viewer: the file's ``qParams`` without the labels."""

    pinned: tuple[str, ...] = ()
    """Ids of the pinned nodes."""
    supernodes: tuple[Supernode, ...] = ()
    """Groups of pinned nodes."""
    clicked: str = ""
    """Id of the clicked node; empty if there is none."""
    link_type: Literal["both", "either"] = "both"
    """Links that the viewer draws (``linkType``)."""
    positions: str = ""
    """Places that the pinned nodes were dragged to, in the viewer's notation (``sg_pos``)."""
    pruning_threshold: float | None = None
    """Share of the influence that the viewer shows at first; None shows the whole file."""

    __repr__ = short_repr


@final
@dataclass(frozen=True, kw_only=True)
class GraphCard:
    """The name and the description of a graph in a file; raises ConfigError on names that the viewers do not accept."""

    slug: str
    """Name of the graph and of its file: letters, digits, ``_``, ``.`` and ``-``."""
    scan: str | None = None
    """Source of the features that the viewers show; None is the language model's name.

    The source is a model id of Neuronpedia or a repository on Hugging Face. For circuit-tracer's local viewer, it is
    ``./directory`` (of ``write_feature_json``) or any name with a leading slash (for ``write_feature_files``).
    """
    description: str | None = None
    """Description of the graph for readers."""
    creator: str | None = None
    """Name of the graph's author."""
    creator_url: str | None = None
    """Web address of the graph's author."""
    source_urls: tuple[str, ...] = ()
    """Web addresses that the graph refers to."""
    created: datetime | None = None
    """Time at which the graph was made."""
    feature_url: str | None = None
    """Base address of feature JSON files (``feature_json_base_url``)."""
    source_set: str | None = None
    """Neuronpedia's name for the set of transcoders (``neuronpedia_source_set``)."""

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.slug):
            raise ConfigError(f"slug is {self.slug!r}; use letters, digits, '_', '.' and '-', and more than dots.")
        if self.scan is not None and not _SCAN.fullmatch(self.scan):
            raise ConfigError(f"scan is {self.scan!r}; give a model id, a repository or './directory'.")


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object; raises CheckpointError if it cannot be read or lacks one of the given keys.

    After an interrupted save, the former object is read.
    """
    return check_object(files.read_saved_file(path, lambda path: files.read_json(path, finite=True)), path, *keys)


def check_object(content: object, path: Path, *keys: str) -> dict[str, Any]:
    """Return the content of a file; raises CheckpointError, which names the path, if it lacks one of the keys."""
    absent = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if absent or not isinstance(content, dict):
        raise CheckpointError(f"{path} lacks {', '.join(absent)}; it is not a file in circuit-tracer's format.")
    return cast(dict[str, Any], content)
