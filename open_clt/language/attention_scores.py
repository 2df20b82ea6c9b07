"""Attention scores: the score of each head as a bilinear function of the residual stream, with norms frozen.

A head at layer ``l`` scores the key at position ``k`` for the query at position ``q`` by

    score = scale * (Q_q x_q + c_q) . (K_k x_k + c_k) + slope * (k - q)

where ``x`` is the stream before the attention of block ``l``. The matrices hold the norm before attention, the weights
and biases of the projection, the norm of queries or keys, and the rotation of their positions. ``slope`` is zero except
in models whose attention falls with distance (ALiBi). Families take these steps in different orders and conventions.
The candidates are compared with the model's own queries, keys and patterns, so names and families do not matter. A
model that no candidate expresses raises an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.errors import LanguageModelError
from open_clt.language.frozen_hooks import read_norm
from open_clt.language.language_model import LanguageModel
from open_clt.language.loading import TOLERANCE
from open_clt.short_repr import short_repr

_HOOKS = ("hook_q", "hook_k", "hook_pattern", "hook_cos", "hook_sin", "q_norm.hook_scale", "k_norm.hook_scale")


@final
@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary positions: the first numbers of a vector are turned in pairs by angles that depend on the position."""

    cos: Float[Tensor, "position rotated"]
    sin: Float[Tensor, "position rotated"]
    adjacent: bool
    """Whether a pair is two neighbours; otherwise it is a number of the first half and one of the second half."""

    def forward(self, vectors: Float[Tensor, "own_head position d_head"]) -> Float[Tensor, "own_head position d_head"]:
        """Turn the vectors of all positions."""
        return self._turned(vectors, slice(None))

    def at(self, columns: Float[Tensor, "column d_head"], own_head: int, position: int) -> Tensor:
        """Turn vectors at one position."""
        return self._turned(columns, position)

    def _turned(self, vectors: Float[Tensor, "*batch d_head"], position: int | slice) -> Float[Tensor, "*batch d_head"]:
        width = self.cos.shape[-1]
        turned, rest = vectors[..., :width], vectors[..., width:]
        if self.adjacent:
            crossed = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
        else:
            crossed = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
        return torch.cat((turned * self.cos[position] + crossed * self.sin[position], rest), dim=-1)

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class HeadNorm:
    """A norm of queries or keys with its denominators frozen: ``(x - mean(x)) / scale * weight + bias``."""

    scale: Float[Tensor, "own_head position 1"]
    weight: Float[Tensor, "own_head 1 d_head"]
    bias: Float[Tensor, "own_head 1 d_head"]
    centred: bool

    def forward(self, vectors: Float[Tensor, "own_head position d_head"]) -> Float[Tensor, "own_head position d_head"]:
        """Normalise the vectors of all heads and positions."""
        centred = vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors
        return centred / self.scale * self.weight + self.bias

    def at(self, columns: Float[Tensor, "column d_head"], own_head: int, position: int) -> Tensor:
        """Apply the norm to the columns of a linear function, of which the last is its constant."""
        centred = columns - columns.mean(-1, keepdim=True) if self.centred else columns
        scaled = centred / self.scale[own_head, position] * self.weight[own_head]
        return torch.cat([scaled[:-1], scaled[-1:] + self.bias[own_head]])

    __repr__ = short_repr


Step: TypeAlias = HeadNorm | Rotation


@final
@dataclass(frozen=True, eq=False)
class Projection:
    """The way from the normed stream to the queries, or to the keys, of each head of one layer."""

    weight: Float[Tensor, "own_head d_model d_head"]
    """One matrix for each head, or for each group of heads that share their keys."""
    bias: Float[Tensor, "own_head d_head"] | None
    steps: tuple[Step, ...]
    """What is done to the projected vectors, in this order; norms hold one denominator for each head and position."""

    def own_head(self, head: int, n_heads: int) -> int:
        """The head whose matrix a head uses."""
        return head // (n_heads // self.weight.shape[0])

    def project(self, normed: Float[Tensor, "position d_model"]) -> Float[Tensor, "own_head position d_head"]:
        """The vectors of all heads before the steps."""
        vectors = torch.einsum("pd,gde->gpe", normed, self.weight)
        return vectors if self.bias is None else vectors + self.bias[:, None]

    def finish(self, vectors: Float[Tensor, "own_head position d_head"]) -> Float[Tensor, "own_head position d_head"]:
        """Apply the steps to the vectors of all heads."""
        for step in self.steps:
            vectors = step.forward(vectors)
        return vectors

    def at(self, own_head: int, position: int) -> tuple[Float[Tensor, "d_head d_model"], Float[Tensor, "d_head"]]:
        """The matrix and the constant that take the normed stream at a position to the finished vector of a head."""
        constant = self.weight.new_zeros(self.weight.shape[-1]) if self.bias is None else self.bias[own_head]
        columns = torch.cat([self.weight[own_head], constant[None]])
        for step in self.steps:
            columns = step.at(columns, own_head, position)
        return columns[:-1].T, columns[-1]

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class AttentionScores:
    """How the heads of one layer score keys for queries."""

    queries: Projection
    keys: Projection
    scale: float
    slopes: Float[Tensor, "head"]
    """What a step of one position towards the query adds to the score of each head; zero but for ALiBi."""
    cap: float | None
    """Bound on the scores, which enter the softmax as ``cap * tanh(score / cap)``; None for models without a bound."""
    q: Float[Tensor, "head query d_head"]
    """The model's own queries after all steps."""
    k: Float[Tensor, "head key d_head"]
    """The model's own keys after all steps, one for each head."""
    pattern: Float[Tensor, "head query key"]

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self.q.shape[0]

    def distance(self, head: int, query: int, key: int) -> float:
        """The part of a score that depends on the distance alone."""
        return float(self.slopes[head]) * (key - query)

    def score(self, head: int, query: int, key: int) -> float:
        """The model's own score, before ``cap`` is applied."""
        product = self.scale * float(self.q[head, query].double() @ self.k[head, key].double())
        return product + self.distance(head, query, key)

    def scores(self) -> Float[Tensor, "head query key"]:
        """All scores of the model, before ``cap`` is applied."""
        positions = torch.arange(self.q.shape[1], device=self.q.device)
        distances = (positions - positions[:, None]) * self.slopes[:, None, None]
        return self.scale * torch.einsum("hqe,hke->hqk", self.q, self.k) + distances

    __repr__ = short_repr


@torch.no_grad()
def read_attention_scores(
    model: LanguageModel, tokens: Int[Tensor, "position"], normed: Sequence[Float[Tensor, "position d_model"]]
) -> tuple[AttentionScores, ...]:
    """Run a model once and read how each layer scores; ``normed`` is what the attention of each layer reads.

    Raises LanguageModelError, which names the block, if its scores are not a bilinear function of the normed stream.
    """
    known = model.bridge.hook_dict
    names = [
        name for layer in range(model.n_layers) for part in _HOOKS if (name := f"blocks.{layer}.attn.{part}") in known
    ]
    cache: dict[str, Tensor] = {}
    with model.hooks([(name, partial(cache.__setitem__, name)) for name in names]):
        model.states(tokens[None])
    return tuple(_read_layer(model, layer, stream, cache) for layer, stream in enumerate(normed))


class _Seen(NamedTuple):
    """What one pass shows of the attention of one layer."""

    queries: Projection
    keys: Projection
    q: Float[Tensor, "head position d_head"]
    k: Float[Tensor, "kv_head position d_head"]
    pattern: Float[Tensor, "head query key"]

    __repr__ = short_repr


def _read_layer(model: LanguageModel, layer: int, normed: Tensor, cache: dict[str, Tensor]) -> AttentionScores:
    values = {part: cache[name][0].float() for part in _HOOKS if (name := f"blocks.{layer}.attn.{part}") in cache}
    bridge = model.bridge.blocks[layer].attn
    try:
        seen = _Seen(
            queries=_projection(bridge.W_Q, bridge.b_Q),
            keys=_projection(bridge.W_K, bridge.b_K),
            q=values["hook_q"].transpose(0, 1),
            k=values["hook_k"].transpose(0, 1),
            pattern=values["hook_pattern"],
        )
    except (AttributeError, KeyError) as error:
        raise _inexpressible(model, layer, f"TransformerLens does not show {error}") from error
    tolerance = TOLERANCE.get(model.dtype, 1e-3)
    for projection, own in ((seen.queries, seen.q), (seen.keys, seen.k)):
        deviation = float((projection.project(normed) - own).norm() / own.norm().clamp(min=1e-30))
        if not deviation <= tolerance:
            raise _inexpressible(model, layer, f"its projections deviate from the model's own by {deviation:.1e}")
    best, smallest = None, float("inf")
    for candidate in _candidates(model, layer, seen, values):
        deviation = _deviation(candidate)
        if best is None or deviation < smallest:
            best, smallest = candidate, deviation
    assert best is not None
    if smallest > tolerance:
        best = _with_slopes(best)
        smallest = _deviation(best)
    if not smallest <= tolerance:
        raise _inexpressible(model, layer, f"its pattern deviates from that of the scores by {smallest:.1e}")
    return best


def _projection(weight: Tensor, bias: Tensor | None) -> Projection:
    return Projection(weight.detach().float(), None if bias is None else bias.detach().float(), ())


def _candidates(model: LanguageModel, layer: int, seen: _Seen, values: dict[str, Tensor]) -> Iterator[AttentionScores]:
    """The ways in which a layer may score."""
    bridge, d_head = model.bridge.blocks[layer].attn, seen.q.shape[-1]
    norms = [_norm(bridge, name, vectors, values) for name, vectors in (("q_norm", seen.q), ("k_norm", seen.k))]
    own_scale = getattr(bridge.original_component, "scaling", None)
    scales = {1 / math.sqrt(d_head), 1.0, 1 / math.sqrt(d_head) / (layer + 1)}
    scales |= {float(own_scale)} if isinstance(own_scale, float) else set()
    for rotation, rotates_first in product(_rotations(bridge, values), (False, True)):
        steps = [_steps(norm, rotation, rotates_first) for norm in norms]
        queries, keys = replace(seen.queries, steps=steps[0]), replace(seen.keys, steps=steps[1])
        q, k = queries.finish(seen.q), keys.finish(seen.k)
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
        for scale, cap in product(sorted(scales, reverse=True), _caps(model)):
            yield AttentionScores(queries, keys, scale, q.new_zeros(q.shape[0]), cap, q, k, seen.pattern)


def _steps(norm: HeadNorm | None, rotation: Rotation | None, rotates_first: bool) -> tuple[Step, ...]:
    steps = [step for step in (norm, rotation) if step is not None]
    return tuple(reversed(steps) if rotates_first else steps)


def _norm(bridge: Any, name: str, vectors: Tensor, values: dict[str, Tensor]) -> HeadNorm | None:
    """The norm of queries or keys, with one denominator for each head and position; None without one."""
    scale = values.get(f"{name}.hook_scale")
    if scale is None:
        return None
    heads, positions, d_head = vectors.shape
    norm = read_norm(getattr(bridge, name), scale)
    if scale.shape == (positions, 1):  # one denominator for all heads, and one weight for each number of each head
        scale = scale.expand(heads, positions, 1)
    elif scale.shape == (positions, heads, 1):
        scale = scale.transpose(0, 1)

    def by_head(parameter: Tensor | None, default: float) -> Tensor:
        whole = vectors.new_full((d_head,), default) if parameter is None else parameter.detach()
        return whole.reshape(-1, 1, d_head).expand(heads, 1, d_head)  # one for each head, or one for all

    return HeadNorm(scale, by_head(norm.weight, 1.0), by_head(norm.bias, 0.0), norm.centred)


def _rotations(bridge: Any, values: dict[str, Tensor]) -> Iterator[Rotation | None]:
    """The ways in which positions may turn queries and keys."""
    yield None
    if "hook_cos" in values:
        cos, sin = (values[name].reshape(-1, values[name].shape[-1]) for name in ("hook_cos", "hook_sin"))
        yield Rotation(cos, sin, adjacent=False)
        yield Rotation(cos, sin, adjacent=True)
        halves = (angles[:, : angles.shape[1] // 2].repeat_interleave(2, dim=1) for angles in (cos, sin))
        yield Rotation(*halves, adjacent=True)
    table = getattr(bridge.original_component, "embed_positions", None)
    if isinstance(table, Tensor):
        positions = values["hook_q"].shape[0]
        sin, cos = (angles.repeat_interleave(2, dim=1) for angles in table[:positions].float().chunk(2, dim=-1))
        yield Rotation(cos, sin, adjacent=True)


def _caps(model: LanguageModel) -> set[float | None]:
    cap = getattr(model.bridge.cfg, "attn_scores_soft_cap", None)
    return {None} | ({float(cap)} if cap is not None and cap > 0 else set())


def _seen_keys(scores: AttentionScores) -> Bool[Tensor, "head query key"]:
    """The keys that each query may look at: masks, sliding windows among them, give other keys no attention."""
    return scores.pattern > 0


def _deviation(scores: AttentionScores) -> float:
    """The largest difference between the model's patterns and those that the scores give."""
    values = scores.scores()
    values = values if scores.cap is None else scores.cap * torch.tanh(values / scores.cap)
    patterns = values.masked_fill(~_seen_keys(scores), -torch.inf).softmax(-1)
    return float((patterns - scores.pattern).abs().max())


def _with_slopes(scores: AttentionScores) -> AttentionScores:
    """The scores with the slopes that the patterns of neighbouring keys show."""
    seen = _seen_keys(scores)
    both = seen[:, :, 1:] & seen[:, :, :-1]
    rest = torch.where(seen, scores.pattern, 1.0).log() - scores.scores()
    steps = torch.where(both, rest[:, :, 1:] - rest[:, :, :-1], 0.0)
    return replace(scores, slopes=steps.sum((1, 2)) / both.sum((1, 2)).clamp(min=1))


def _inexpressible(model: LanguageModel, layer: int, reason: str) -> LanguageModelError:
    return LanguageModelError(
        f"The attention scores of block {layer} of {model.name} cannot be explained, because they are not a product of "
        f"linear functions of the residual stream with frozen norms ({reason}); use another language model."
    )
