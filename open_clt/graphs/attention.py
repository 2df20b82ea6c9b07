"""Explained attention of a graph: which heads carry its edges, and the pairs of sources that made them look.

``attribution/graph_attention.py`` computes it. A graph keeps it in its own files: plain values in ``graph.json``, with
a format of their own, and tensors named ``attention.*`` in ``graph.safetensors``. Sources are named by their ids, since
pruning may have removed them from the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from open_clt import files
from open_clt.graphs.info import GraphInfo
from open_clt.graphs.nodes import NodeId, NodeKind
from open_clt.short_repr import short_repr

FORMAT = files.FileFormat("open-clt-attention", newest=1)
PREFIX = "attention."
"""Prefix of the names of the tensors."""
_INTEGERS = {"nodes": 4, "looks": 4, "pairs": 3, "by_query": 2, "by_key": 2, "carried": 3}
"""Tables of integers, with the number of their columns."""
_NUMBERS = {
    "activations": 1,
    "scores": 4,
    "pair_weights": 1,
    "query_weights": 1,
    "key_weights": 1,
    "carried_weights": 1,
}
"""Tables of numbers, with the number of their columns."""
_LENGTHS = {
    "activations": "nodes",
    "scores": "looks",
    "pair_weights": "pairs",
    "query_weights": "by_query",
    "key_weights": "by_key",
    "carried_weights": "carried",
}
"""The table of integers that each table of numbers is as long as."""
_UNUSED = -1


class Look(NamedTuple):
    """A head, the position that it looks from, and the position that it looks at."""

    layer: int
    head: int
    query: int
    key: int
    versus: int | None = None
    """Another key, if the difference between the scores of the two keys is meant."""

    def __str__(self) -> str:
        compared = "" if self.versus is None else f" rather than {self.versus}"
        return f"head {self.layer}.{self.head} from position {self.query} at {self.key}{compared}"


class Pair(NamedTuple):
    """One entry of the table of a score."""

    query: NodeId
    """Source on the side of the query."""
    key: NodeId
    """Source on the side of the key."""
    weight: float
    """Part of the score that the two sources make together."""

    def to_json(self) -> dict[str, Any]:
        """The pair as plain values."""
        return {"query": str(self.query), "key": str(self.key), "weight": self.weight}


class Part(NamedTuple):
    """The part of a score that one source makes with all sources of the other side."""

    source: NodeId
    weight: float


class Carried(NamedTuple):
    """A part of an edge: what one head carries from one position to the position of the edge's target."""

    source: NodeId
    target: NodeId
    look: Look
    weight: float


@final
@dataclass(frozen=True)
class ExplainedLook:
    """Why a head looked at a position: the numbers of its score, and the largest entries of its table.

    Biases and positional embeddings, which are the same for every text, are in the score and not in the lists.
    """

    look: Look
    """The head and its two positions."""
    score: float
    """The model's own score, before a soft cap."""
    attention: float
    """Share of the query's attention that the key gets, from 0 to 1."""
    constant_part: float
    """Part of the score that pairs with a bias or a positional embedding make."""
    missing_share: float
    """Difference between the score and the sum of its table, as a share of the absolute entries."""
    pairs: tuple[Pair, ...]
    """Largest entries of the table, largest first."""
    by_query: tuple[Part, ...]
    """Largest sources on the side of the query, largest first."""
    by_key: tuple[Part, ...]
    """Largest sources on the side of the key, largest first."""

    def sources(self) -> set[NodeId]:
        """All sources that the lists name."""
        of_pairs = {node for pair in self.pairs for node in (pair.query, pair.key)}
        return of_pairs | {part.source for part in (*self.by_query, *self.by_key)}

    __repr__ = short_repr


@final
@dataclass(frozen=True)
class GraphAttention:
    """The heads that carry at least a share of an edge of a graph, and why each of them looked there."""

    share: float
    """Least share of an edge that a head carries from one position."""
    carried: tuple[Carried, ...]
    """Parts of edges."""
    looks: tuple[ExplainedLook, ...]
    """Why the heads looked; each look stands here once."""
    activations: Mapping[NodeId, float]
    """Activation of each feature that the explanations name."""

    def of_edge(self, source: NodeId, target: NodeId) -> list[Carried]:
        """The parts of one edge, largest first."""
        parts = [part for part in self.carried if (part.source, part.target) == (source, target)]
        return sorted(parts, key=lambda part: -abs(part.weight))

    def explained(self, look: Look) -> ExplainedLook:
        """Why a head looked there; raises KeyError if that is not stored."""
        for each in self.looks:
            if each.look == look:
                return each
        raise KeyError(str(look))

    def missing_share(self) -> float:
        """The largest missing share of all looks; 0 without any."""
        return max((look.missing_share for look in self.looks), default=0.0)

    def summary(self) -> str:
        """A sentence on what is stored."""
        heads = len({look.look[:2] for look in self.looks})
        return (
            f"{len(self.looks):,} looks of {heads:,} heads which carry at least {self.share:.1%} of an edge; "
            f"largest missing share {self.missing_share():.1e}"
        )

    def problem(self, info: GraphInfo) -> str | None:
        """What does not fit the graph, as the end of a sentence; None if everything fits."""
        length = len(info.tokens)
        named = [node for part in self.carried for node in (part.source, part.target)]
        for look in self.looks:
            named += look.sources()
            if not (0 <= look.look.layer < info.n_layers and 0 <= look.look.key <= look.look.query < length):
                return f"{look.look} is explained, but the graph has {info.n_layers} layers and {length} tokens"
        for node in named:
            if node.position is None or not 0 <= node.position < length or node.layer > info.n_layers:
                return f"{node} is explained, but the graph has {info.n_layers} layers and {length} tokens"
        return None

    __repr__ = short_repr


class StoredAttention(NamedTuple):
    """Explained attention in the form that files store."""

    facts: dict[str, Any]
    """Plain values."""
    tensors: dict[str, Tensor]
    """Tensors, by names with ``PREFIX``."""

    __repr__ = short_repr


def stored_attention(attention: GraphAttention) -> StoredAttention:
    """The explained attention as plain values and tensors."""
    nodes: dict[NodeId, int] = {}
    looks = {look.look: row for row, look in enumerate(attention.looks)}

    def row(node: NodeId) -> int:
        return nodes.setdefault(node, len(nodes))

    pairs = [(at, pair) for at, look in enumerate(attention.looks) for pair in look.pairs]
    sides = [
        [(at, part) for at, look in enumerate(attention.looks) for part in parts(look)]
        for parts in (lambda look: look.by_query, lambda look: look.by_key)
    ]
    tables: dict[str, list[Any]] = {
        "looks": [list(look.look[:4]) for look in attention.looks],
        "scores": [[look.score, look.attention, look.constant_part, look.missing_share] for look in attention.looks],
        "pairs": [[at, row(pair.query), row(pair.key)] for at, pair in pairs],
        "pair_weights": [[pair.weight] for _, pair in pairs],
        "by_query": [[at, row(part.source)] for at, part in sides[0]],
        "query_weights": [[part.weight] for _, part in sides[0]],
        "by_key": [[at, row(part.source)] for at, part in sides[1]],
        "key_weights": [[part.weight] for _, part in sides[1]],
        "carried": [[looks[part.look], row(part.source), row(part.target)] for part in attention.carried],
        "carried_weights": [[part.weight] for part in attention.carried],
    }
    tables["nodes"] = [[int(node.kind), node.layer, node.position, node.index] for node in nodes]
    tables["activations"] = [[attention.activations.get(node, 0.0)] for node in nodes]
    columns = {**_INTEGERS, **_NUMBERS}
    tensors = {
        PREFIX + name: torch.tensor(table, dtype=torch.int64 if name in _INTEGERS else torch.float32).reshape(
            -1, columns[name]
        )
        for name, table in tables.items()
    }
    return StoredAttention({**FORMAT.header(), "share": attention.share}, tensors)


def read_attention(facts: object, tensors: Mapping[str, Tensor], place: Path) -> GraphAttention:
    """Read what ``stored_attention`` returned; raises CheckpointError for another version, ValueError for the rest."""
    share = FORMAT.check(facts, place).get("share")
    if not isinstance(share, float) or not 0 < share <= 1:
        raise ValueError(f"the share of explained attention is {share!r}")
    tables = {name: _table(tensors, name) for name in (*_INTEGERS, *_NUMBERS)}
    for name, other in _LENGTHS.items():
        if len(tables[name]) != len(tables[other]):
            raise ValueError(f"{PREFIX}{name} has {len(tables[name])} rows, {PREFIX}{other} {len(tables[other])}")
    nodes = [NodeId.of(NodeKind(kind), layer, position, index) for kind, layer, position, index in tables["nodes"]]
    looks = [Look(*row) for row in tables["looks"]]
    _check_rows(tables, {"pairs": (looks, nodes, nodes), "carried": (looks, nodes, nodes)})
    _check_rows(tables, {"by_query": (looks, nodes), "by_key": (looks, nodes)})
    pairs: dict[int, list[Pair]] = {}
    for (at, query, key), (weight,) in zip(tables["pairs"], tables["pair_weights"], strict=True):
        pairs.setdefault(at, []).append(Pair(nodes[query], nodes[key], weight))
    by_query, by_key = (
        _parts(tables[name], tables[weights], nodes)
        for name, weights in (("by_query", "query_weights"), ("by_key", "key_weights"))
    )
    explained = tuple(
        ExplainedLook(
            look=look,
            score=score,
            attention=attention,
            constant_part=constant_part,
            missing_share=missing_share,
            pairs=tuple(pairs.get(at, ())),
            by_query=by_query.get(at, ()),
            by_key=by_key.get(at, ()),
        )
        for at, (look, (score, attention, constant_part, missing_share)) in enumerate(
            zip(looks, tables["scores"], strict=True)
        )
    )
    carried = (
        Carried(nodes[source], nodes[target], looks[at], weight)
        for (at, source, target), (weight,) in zip(tables["carried"], tables["carried_weights"], strict=True)
    )
    named = {node for look in explained for node in look.sources() if node.kind is NodeKind.FEATURE}
    activations = {node: value for node, (value,) in zip(nodes, tables["activations"], strict=True) if node in named}
    return GraphAttention(share, tuple(carried), explained, activations)


def _parts(
    rows: Iterable[Sequence[int]], weights: Iterable[Sequence[float]], nodes: Sequence[NodeId]
) -> dict[int, tuple[Part, ...]]:
    """The parts of one side, by the row of their look."""
    found: dict[int, tuple[Part, ...]] = {}
    for (at, node), (weight,) in zip(rows, weights, strict=True):
        found[at] = (*found.get(at, ()), Part(nodes[node], weight))
    return found


def _table(tensors: Mapping[str, Tensor], name: str) -> list[list[Any]]:
    """The rows of a table; raises ValueError or LookupError if it is not one."""
    tensor = tensors[PREFIX + name]
    is_integer, columns = name in _INTEGERS, {**_INTEGERS, **_NUMBERS}[name]
    if tensor.dtype != (torch.int64 if is_integer else torch.float32) or tensor.ndim != 2 or tensor.shape[1] != columns:
        raise ValueError(f"{PREFIX}{name} has the shape {tuple(tensor.shape)} and the data type {tensor.dtype}")
    if not is_integer and not bool(tensor.isfinite().all()):
        raise ValueError(f"{PREFIX}{name} has numbers that are not finite")
    if is_integer and tensor.numel() and int(tensor.min()) < _UNUSED:
        raise ValueError(f"{PREFIX}{name} has the number {int(tensor.min())}")
    return tensor.tolist()


def _check_rows(tables: Mapping[str, list[list[Any]]], targets: Mapping[str, tuple[Sequence[Any], ...]]) -> None:
    """Raise ValueError if a table refers to rows that do not exist."""
    for name, referred in targets.items():
        for row in tables[name]:
            if not all(0 <= at < len(rows) for at, rows in zip(row, referred, strict=True)):
                raise ValueError(f"{PREFIX}{name} refers to rows {row}, which do not exist")
