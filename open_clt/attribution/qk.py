"""QK attributions: why an attention head looked at a position.

A head's score for a query and a key is the product of two vectors. With norms frozen, each of them is a sum over the
sources of the prompt: features, errors, embeddings, positions, biases and the MLP outputs of the first position. The
score is therefore a table with one entry for each pair of a source on the query's side and a source on the key's side,
and the entries add up to the score exactly (Kamath et al., 2025, "Tracing attention computation through feature
interactions"). A softmax depends only on differences of scores, so an explanation can also be that of a difference
between two keys.

Each component of the two vectors is one row of the adjoint walk (``adjoint.py``). The table is kept as two factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.attribution.adjoint import before, walk
from open_clt.attribution.attention_table import AttentionExplanation, Look
from open_clt.attribution.heads import CarriedEdge, carried_edges
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.config.arguments import checked_arguments
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.language.attention_scores import AttentionScores, Projection, read_attention_scores
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.short_repr import short_repr
from open_clt.transcoders.transcoder import Transcoder

_BATCH_NUMBERS = 2**24
"""Largest number of entries in the cotangents of one walk (64 MB in float32)."""
Side: TypeAlias = Literal["query", "key"]


@final
class AttentionExplainer:
    """Explains the attention of any head on one prompt; the model is run once."""

    @checked_arguments
    @torch.no_grad()
    def __init__(
        self, model: LanguageModel, transcoder: Transcoder | str | Path, prompt: Prompt | AttributionGraph
    ) -> None:
        """Freeze the model on a prompt, or on the prompt of a graph, and split its stream into sources.

        Raises ConfigError if the transcoder does not fit the model, AttributionError if the prompt or the transcoder
        cannot be used, and LanguageModelError if attention scores are not a product of linear functions of the stream.
        """
        transcoder = attributable(transcoder, model)
        check_fits(transcoder, model, same_device=True)
        if isinstance(prompt, AttributionGraph):
            tokens, text = torch.tensor(prompt.info.tokens, device=model.device), prompt.info.prompt
        else:
            tokens = prompt_tokens(model, prompt)
            text = prompt if isinstance(prompt, str) else model.decode(tokens)
        path = read_linear_path(model, tokens, transcoder.config.input_hook, transcoder.config.target_hook)
        self._sources: Sources = find_sources(path, transcoder)
        self._scores = read_attention_scores(model, tokens, path.attention_inputs())
        self._nodes = self._sources.nodes()
        self.token_strings: tuple[str, ...] = tuple(model.token_strings(tokens))
        self._model, self._prompt = model.name, text

    @property
    def scores(self) -> tuple[AttentionScores, ...]:
        """How each layer scores."""
        return self._scores

    @checked_arguments
    def explain(self, layer: int, head: int, query: int, key: int, versus: int | None = None) -> AttentionExplanation:
        """Explain why a head looks from ``query`` at ``key``, or there rather than at ``versus``.

        Positions may be negative, counted from the end. Raises AttributionError if there is no such head or position,
        or if the head cannot look there, because the key comes later or outside a sliding window.
        """
        return next(self.explain_all([Look(layer, head, query, key, versus)]))

    def explain_all(self, looks: Iterable[Look]) -> Iterator[AttentionExplanation]:
        """Yield the explanation of each look, layer by layer; looks that share a query or a key share its rows."""
        checked = [self._checked(look) for look in looks]
        for layer, group in groupby(sorted(checked, key=lambda look: look.layer), key=lambda look: look.layer):
            yield from self._explain_layer(layer, list(group))

    def _checked(self, look: Look) -> Look:
        """A look with positions from the start; raises AttributionError if the head cannot look there."""
        n_layers, length = len(self._scores), len(self.token_strings)
        _check_index("layer", look.layer, n_layers)
        _check_index("head", look.head, self._scores[look.layer].n_heads)
        positions = {"query": look.query, "key": look.key, "versus": look.versus}
        for name, position in positions.items():
            if position is None:
                continue
            if not -length <= position < length:
                raise AttributionError(f"{name} is {position}, but the prompt has {length} tokens.")
            positions[name] = position % length
        query, pattern = positions["query"], self._scores[look.layer].pattern[look.head]
        assert query is not None
        for name in ("key", "versus"):
            key = positions[name]
            if key is not None and not float(pattern[query, key]) > 0:
                raise AttributionError(
                    f"Head {look.layer}.{look.head} cannot look from position {query} at {name} {key}; give a position "
                    "that the head attends to."
                )
        return look._replace(**positions)

    def _explain_layer(self, layer: int, looks: Sequence[Look]) -> Iterator[AttentionExplanation]:
        scores = self._scores[layer]
        sides: dict[tuple[Side, int, int], None] = {}  # in order, and each once
        for look in looks:
            sides[self._side("query", look.head, scores, look.query)] = None
            for key in (look.key, look.versus):
                if key is not None:
                    sides[self._side("key", look.head, scores, key)] = None
        vectors = dict(zip(sides, self._vectors(layer, list(sides)), strict=True))
        for look in looks:
            query = scores.scale * vectors[self._side("query", look.head, scores, look.query)]
            key = vectors[self._side("key", look.head, scores, look.key)]
            if look.versus is not None:
                key = key - vectors[self._side("key", look.head, scores, look.versus)]
            yield self._explanation(look, query, key)

    @staticmethod
    def _side(side: Side, head: int, scores: AttentionScores, position: int) -> tuple[Side, int, int]:
        """The vector that a head uses on one side; heads that share their keys share it."""
        return side, _projection(scores, side).own_head(head, scores.n_heads), position

    def _vectors(self, layer: int, sides: Sequence[tuple[Side, int, int]]) -> Iterator[Float[Tensor, "source d_head"]]:
        """The vectors of some sides, each as the parts that the sources make."""
        scores, sources = self._scores[layer], self._sources
        d_head, d_model = scores.q.shape[-1], sources.path.d_model
        length = 1 + max(position for *_, position in sides)
        size = max(1, _BATCH_NUMBERS // (d_head * length * d_model))
        for begin in range(0, len(sides), size):
            yield from self._walked(layer, sides[begin : begin + size]).unflatten(0, (-1, d_head)).transpose(1, 2)

    @torch.no_grad()
    def _walked(self, layer: int, sides: Sequence[tuple[Side, int, int]]) -> Float[Tensor, "component source"]:
        """The rows of all components of some sides."""
        scores, sources = self._scores[layer], self._sources
        norm, biases = sources.path.blocks[layer].attention_norm, sources.columns.biases
        maps = [(*_projection(scores, side).at(head, position), position) for side, head, position in sides]
        positions = torch.tensor([position for *_, position in maps], device=sources.errors.device)
        d_head = scores.q.shape[-1]
        cotangents = sources.errors.new_zeros(len(maps) * d_head, int(positions.max()) + 1, sources.path.d_model)
        constants = sources.errors.new_empty(len(maps), d_head)
        for index, (matrix, constant, position) in enumerate(maps):
            at = torch.full((d_head,), position, device=positions.device)
            stream = matrix if norm is None else norm.adjoint_at(matrix, at)
            cotangents[index * d_head : (index + 1) * d_head, position] = stream
            constants[index] = constant if norm is None or norm.bias is None else constant + matrix @ norm.bias
        repeated = positions.repeat_interleave(d_head)
        rows = walk(sources, cotangents, torch.full_like(repeated, before(layer)), positions=repeated)
        columns = biases.start + layer * sources.path.n_positions + repeated
        rows[torch.arange(rows.shape[0], device=rows.device), columns] += constants.flatten()
        return rows

    def _explanation(
        self, look: Look, query: Float[Tensor, "source d_head"], key: Float[Tensor, "source d_head"]
    ) -> AttentionExplanation:
        scores = self._scores[look.layer]
        score, distance = (part(look.head, look.query, look.key) for part in (scores.score, scores.distance))
        pattern = scores.pattern[look.head, look.query]
        if look.versus is not None:
            score -= scores.score(look.head, look.query, look.versus)
            distance -= scores.distance(look.head, look.query, look.versus)
        in_query, in_key = (vectors.cpu().abs().sum(1).nonzero().flatten() for vectors in (query, key))
        return AttentionExplanation(
            look=look,
            model=self._model,
            prompt=self._prompt,
            token_strings=self.token_strings,
            score=score,
            attention=float(pattern[look.key]),
            versus_attention=None if look.versus is None else float(pattern[look.versus]),
            distance=distance,
            cap=scores.cap,
            query_nodes=self._nodes[in_query],
            key_nodes=self._nodes[in_key],
            query_vectors=query.cpu()[in_query],
            key_vectors=key.cpu()[in_key],
        )

    __repr__ = short_repr


def _projection(scores: AttentionScores, side: Side) -> Projection:
    return scores.queries if side == "query" else scores.keys


def _check_index(name: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise AttributionError(f"{name} is {index}; it must be from 0 to {count - 1}.")


@checked_arguments
def explain_attention(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    prompt: Prompt | AttributionGraph,
    *,
    layer: int,
    head: int,
    query: int,
    key: int,
    versus: int | None = None,
) -> AttentionExplanation:
    """Explain why one head looks from position ``query`` at position ``key``, as a table of pairs of sources.

    ``prompt`` is a text or tokens, as for ``attribute``, or a graph, whose prompt is used. With ``versus``, the
    difference between the scores of ``key`` and ``versus`` is explained, which decides how the head divides its
    attention between them. Negative positions count from the end. To explain several heads of one prompt, make an
    ``AttentionExplainer``. Raises what that class raises.
    """
    return AttentionExplainer(model, transcoder, prompt).explain(layer, head, query, key, versus)


class ExplainedPart(NamedTuple):
    """A part of an edge that one head carries, and why the head looked at the key that it takes it from."""

    carried: CarriedEdge
    explanation: AttentionExplanation

    __repr__ = short_repr


@checked_arguments
def explain_edge(
    model: LanguageModel,
    transcoder: Transcoder | str | Path,
    graph: AttributionGraph,
    source: int,
    target: int,
    *,
    share: float = 0.05,
) -> list[ExplainedPart]:
    """Explain, for each head that carries at least ``share`` of an edge, why it looked; largest parts first.

    ``source`` and ``target`` are rows of the graph's nodes. Raises what ``head_contributions`` and
    ``AttentionExplainer`` raise.
    """
    parts = [part for part in carried_edges(model, transcoder, graph, target, share=share) if part.source == source]
    explained = AttentionExplainer(model, transcoder, graph).explain_all(part.look for part in parts)
    by_look = {explanation.look: explanation for explanation in explained}
    parts.sort(key=lambda part: -abs(part.weight))
    return [ExplainedPart(part, by_look[part.look]) for part in parts]
