"""The explanation of one attention score: a table of sources, which is kept as two factors.

The entry of a source on the query's side and a source on the key's side is the product of the parts that they make of
the two vectors; all entries add up to the score (``qk.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.graphs.attention import ExplainedLook, Look, Pair, Part
from open_clt.graphs.nodes import NodeId, NodeKind, NodeTable
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature

Labels: TypeAlias = Mapping[Feature, str]
"""Labels of features, which stand beside their names."""
_TABLE_NUMBERS = 2**24
"""Largest number of entries of the table that are in memory at a time."""
_CONSTANTS = (NodeKind.BIAS, NodeKind.POSITIONAL)
"""Kinds of sources that are the same for every text."""


@final
@dataclass(frozen=True, eq=False)
class AttentionExplanation:
    """The score of one head for one query and one key, or the difference between two keys, as a table of sources."""

    look: Look
    model: str
    """Name of the language model."""
    prompt: str
    """Text of the prompt."""
    token_strings: tuple[str, ...]
    """Text of each token of the prompt."""
    score: float
    """The model's own score, before a soft cap; the difference of two scores if two keys are compared."""
    attention: float
    """Share of the query's attention that the key gets, from 0 to 1."""
    versus_attention: float | None
    """Share of the key that it is compared with; None without one."""
    distance: float
    """Part of the score that depends only on the distance of the positions (ALiBi); zero for other models."""
    cap: float | None
    """Bound on the scores, which enter the softmax as ``cap * tanh(score / cap)``; None for models without a bound."""
    query_nodes: NodeTable
    """Sources of the query's vector."""
    key_nodes: NodeTable
    """Sources of the key's vector."""
    query_vectors: Float[Tensor, "query_source d_head"]
    """Part of the query's vector that each source makes, times the model's scaling of scores."""
    key_vectors: Float[Tensor, "key_source d_head"]
    """Part of the key's vector, or of the difference of two keys, that each source makes."""

    def table(self) -> Float[Tensor, "query_source key_source"]:
        """The whole table; it has as many entries as there are pairs of sources."""
        return self.query_vectors @ self.key_vectors.T

    def table_of_text(self) -> Float[Tensor, "query_source key_source"]:
        """The whole table, in which biases and positional embeddings have entries of zero."""
        query, key = (_depends_on_text(nodes) for nodes in self._nodes())
        return (self.query_vectors * query[:, None]) @ (self.key_vectors * key[:, None]).T

    def by_query(self) -> Float[Tensor, "query_source"]:
        """The part of the score that each source on the query's side makes with all sources of the key."""
        return self.query_vectors @ self.key_vectors.sum(0)

    def by_key(self) -> Float[Tensor, "key_source"]:
        """The part of the score that each source on the key's side makes with all sources of the query."""
        return self.key_vectors @ self.query_vectors.sum(0)

    def by_position(self, *, constants: bool = False) -> Float[Tensor, "query_position key_position"]:
        """The table added up over the sources of each position, from the first position to those of the look.

        By default, biases and positional embeddings are left out: what they add is the same for every text.
        """
        sides = ((self.query_nodes, self.query_vectors), (self.key_nodes, self.key_vectors))
        query, key = (_at_positions(nodes, vectors, constants=constants) for nodes, vectors in sides)
        return query @ key.T

    def missing(self) -> float:
        """The part of the score that the table lacks; it is zero up to rounding."""
        query, key = self.query_vectors.double().sum(0), self.key_vectors.double().sum(0)
        return self.score - self.distance - float(query @ key)

    def check(self) -> float:
        """The missing part as a share of the sum of the absolute entries.

        Rounding in float32 makes it about 1e-7, and up to about 1e-5 if query and key are almost at a right angle.
        """
        everything = (torch.arange(len(nodes)) for nodes in self._nodes())
        absolute = sum(float(part.abs().sum()) for _, part in self._parts(*everything))
        return abs(self.missing()) / max(absolute, 1e-30)

    def pairs(self, count: int = 10, *, constants: bool = True) -> list[Pair]:
        """The entries with the largest absolute values, largest first.

        Without ``constants``, pairs that have a bias or a positional embedding on one side are left out: these are the
        same for every text, and most of their entries are the same for every key.
        """
        kept = [
            torch.ones_like(nodes.kind, dtype=torch.bool) if constants else _depends_on_text(nodes)
            for nodes in self._nodes()
        ]
        rows, columns = (mask.nonzero().flatten() for mask in kept)
        found: list[tuple[float, int, int]] = []
        for begin, part in self._parts(rows, columns):
            top = part.flatten().abs().topk(min(count, part.numel())).indices
            own_rows, own_columns = top // part.shape[1], top % part.shape[1]
            places = (rows[begin + own_rows].tolist(), columns[own_columns].tolist())
            found += zip(part[own_rows, own_columns].tolist(), *places, strict=True)
        queries, keys = (nodes.ids() for nodes in self._nodes())
        found.sort(key=lambda entry: (-abs(entry[0]), entry[1:]))
        return [Pair(queries[row], keys[column], weight) for weight, row, column in found[:count]]

    def constant_part(self) -> float:
        """The part of the score that pairs with a bias or a positional embedding on one side make."""
        sides = zip(self._nodes(), (self.query_vectors, self.key_vectors), strict=True)
        query, key = (vectors[_depends_on_text(nodes)].sum(0) for nodes, vectors in sides)
        return float((self.query_vectors.sum(0) @ self.key_vectors.sum(0)) - query @ key)

    def summary(self, count: int = 10, *, constants: bool = False, labels: Labels | None = None) -> str:
        """A few lines for people: the score, the attention, the proof, and the largest pairs."""
        look, tokens = self.look, self.token_strings
        attention = f"{self.attention:.1%} of the attention"
        if self.versus_attention is not None:
            attention += f", {self.versus_attention:.1%} at {look.versus} {tokens[look.versus or 0]!r}"
        measured = "score" if look.versus is None else "difference of scores"
        lines = [
            f"{look}: from {tokens[look.query]!r} at {tokens[look.key]!r}, {attention}",
            f"{measured} {self.score:.3f}, of which pairs with biases or positions make {self.constant_part():.3f}; "
            f"missing share {self.check():.1e}",
        ]
        if self.distance:
            lines.append(f"the distance of the positions adds {self.distance:.3f} of it")
        lines.append(f"{'part':>9}  source of the query | source of the key")
        for pair in self.pairs(count, constants=constants):
            lines.append(f"{pair.weight:9.3f}  {self.name(pair.query, labels)} | {self.name(pair.key, labels)}")
        return "\n".join(lines)

    def name(self, node: NodeId, labels: Labels | None = None) -> str:
        """A source with its token, and with its label if it is a feature that has one."""
        return source_name(node, self.token_strings, labels)

    def to_json(self, count: int = 10, *, constants: bool = True) -> dict[str, Any]:
        """The explanation as plain values: the score, its largest pairs, and the largest sources of both sides."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "tokens": list(self.token_strings),
            **self.look._asdict(),
            "score": self.score,
            "attention": self.attention,
            "versus_attention": self.versus_attention,
            "distance": self.distance,
            "cap": self.cap,
            "missing": self.missing(),
            "check": self.check(),
            "constant_part": self.constant_part(),
            "pairs": [pair.to_json() for pair in self.pairs(count, constants=constants)],
            "by_query": _largest(self.query_nodes, self.by_query(), count),
            "by_key": _largest(self.key_nodes, self.by_key(), count),
        }

    def _nodes(self) -> tuple[NodeTable, NodeTable]:
        return self.query_nodes, self.key_nodes

    def _parts(
        self, rows: Int[Tensor, "row"], columns: Int[Tensor, "column"]
    ) -> Iterator[tuple[int, Float[Tensor, "row_of_part column"]]]:
        """Some rows and columns of the table in parts, each with the place of its first row among the rows."""
        keys = self.key_vectors[columns].T
        size = max(1, _TABLE_NUMBERS // max(1, keys.shape[1]))
        for begin in range(0, len(rows) if len(columns) else 0, size):
            yield begin, self.query_vectors[rows[begin : begin + size]] @ keys

    __repr__ = short_repr


def explained_look(explanation: AttentionExplanation, count: int = 10) -> ExplainedLook:
    """What a graph keeps of an explanation: its numbers, and its largest entries and sources without constants."""
    sides = ((explanation.query_nodes, explanation.by_query()), (explanation.key_nodes, explanation.by_key()))
    by_query, by_key = (_largest_of_text(nodes, parts, count) for nodes, parts in sides)
    return ExplainedLook(
        look=explanation.look,
        score=explanation.score,
        attention=explanation.attention,
        constant_part=explanation.constant_part(),
        missing_share=explanation.check(),
        pairs=tuple(explanation.pairs(count, constants=False)),
        by_query=by_query,
        by_key=by_key,
    )


def activations(explanation: AttentionExplanation) -> dict[NodeId, float]:
    """The activation of each feature among the sources."""
    return {
        node: value
        for nodes in (explanation.query_nodes, explanation.key_nodes)
        for node, value in zip(nodes.ids(), nodes.value.tolist(), strict=True)
        if node.kind is NodeKind.FEATURE
    }


def source_name(node: NodeId, token_strings: Sequence[str], labels: Labels | None = None) -> str:
    """A source with its token, and with its label if it is a feature that has one."""
    label = (labels or {}).get(Feature(node.layer, node.index)) if node.kind is NodeKind.FEATURE else None
    return f"{node} {token_strings[node.position or 0]!r}" + (f" {label}" if label else "")


def _depends_on_text(nodes: NodeTable) -> Bool[Tensor, "source"]:
    """Whether sources depend on the text, as all do but biases and positional embeddings."""
    return ~torch.isin(nodes.kind, torch.tensor([int(kind) for kind in _CONSTANTS]))


def _at_positions(
    nodes: NodeTable, vectors: Float[Tensor, "source d_head"], *, constants: bool
) -> Float[Tensor, "position d_head"]:
    """The vectors of the sources of each position, added up."""
    kept = torch.ones_like(nodes.kind, dtype=torch.bool) if constants else _depends_on_text(nodes)
    sums = vectors.new_zeros(1 + int(nodes.position.max()), vectors.shape[1])
    return sums.index_add_(0, nodes.position[kept], vectors[kept])


def _largest_of_text(nodes: NodeTable, parts: Float[Tensor, "source"], count: int) -> tuple[Part, ...]:
    """The sources with the largest parts, without those that are the same for every text."""
    kept = _depends_on_text(nodes).nonzero().flatten()
    top = kept[parts[kept].abs().topk(min(count, len(kept))).indices]
    return tuple(Part(*part) for part in zip(nodes[top].ids(), parts[top].tolist(), strict=True))


def _largest(nodes: NodeTable, parts: Float[Tensor, "source"], count: int) -> list[dict[str, Any]]:
    top = parts.abs().topk(min(count, parts.shape[0])).indices
    return [
        {"node": str(node), "weight": weight}
        for node, weight in zip(nodes[top].ids(), parts[top].tolist(), strict=True)
    ]
