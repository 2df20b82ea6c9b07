"""What a graph explains: the sum type of targets, and how each becomes rows to compute."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.attribution.adjoint import Seeds, feature_seeds
from open_clt.attribution.nodes import NodeKind, NodeTable
from open_clt.attribution.sources import Sources
from open_clt.errors import AttributionError
from open_clt.replacement.interventions import feature_place

_PLACE = re.compile(r"\d+:(-?\d+|\*):\d+", re.ASCII)
_LESS = "--"
"""Stands between the two tokens of a difference."""


@final
@dataclass(frozen=True, kw_only=True)
class SalientLogits:
    """The likeliest tokens: as few as hold ``probability``, and ``max_count`` at most."""

    max_count: int = 10
    probability: float = 0.95
    position: int = -1
    """Where the prediction is made; negative counts from the end."""
    kind: Literal["salient_logits"] = "salient_logits"


@final
@dataclass(frozen=True, kw_only=True)
class TokenLogits:
    """Given tokens, as texts (``" Paris"``, leading space and all) or ids."""

    tokens: tuple[str | int, ...]
    position: int = -1
    kind: Literal["token_logits"] = "token_logits"


@final
@dataclass(frozen=True, kw_only=True)
class LogitDifference:
    """The logit of one token less that of another."""

    positive: str | int
    negative: str | int
    position: int = -1
    kind: Literal["logit_difference"] = "logit_difference"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """Any direction in the space after the final norm, such as a probe: ``vector . final_norm(stream)``."""

    vector: Float[Tensor, "d_model"]
    name: str = "direction"
    position: int = -1
    kind: Literal["direction"] = "direction"


@final
@dataclass(frozen=True, kw_only=True)
class FeaturePreactivation:
    """A feature's pre-activation, less its encoder bias; the feature need not be active."""

    layer: int
    feature: int
    position: int = -1
    kind: Literal["feature"] = "feature"


Target: TypeAlias = SalientLogits | TokenLogits | LogitDifference | Direction | FeaturePreactivation


def read_target(model: LanguageModel, text: str, position: int = -1) -> Target:
    """Read a target that is written as a text; the first of these that fits:

        2:5:417             a feature, ``layer:position:feature``
        " Paris"            one token, leading space and all, at ``position``
        " Paris-- Rome"     the logit of one token less that of another, at ``position``

    Raises AttributionError if none does.
    """
    if _PLACE.fullmatch(text):
        layer, place, feature = feature_place(text)
        if place is None:
            raise AttributionError(f"The target {text!r} names every position; name one: {layer}:-1:{feature}.")
        return FeaturePreactivation(layer=layer, feature=feature, position=place)
    positive, found, negative = text.partition(_LESS)
    if not found or len(model.token_ids([text])[0]) == 1:
        return TokenLogits(tokens=(_token_id(model, text),), position=position)
    first, second = (_token_id(model, token) for token in (positive, negative))
    return LogitDifference(positive=first, negative=second, position=position)


def target_facts(model: LanguageModel, sources: Sources, target: Target) -> dict[str, Any]:
    """A target as plain values, tokens by their ids and positions from the start: what a graph remembers of it."""
    facts = {entry.name: getattr(target, entry.name) for entry in fields(target) if entry.name != "vector"}
    facts["position"] = _position(sources, target.position)
    if isinstance(target, TokenLogits):
        facts["tokens"] = [_token_id(model, token) for token in target.tokens]
    if isinstance(target, LogitDifference):
        facts["positive"], facts["negative"] = (_token_id(model, t) for t in (target.positive, target.negative))
    return facts


class Resolved(NamedTuple):
    """Targets as rows to compute, as nodes, and by name."""

    seeds: Seeds
    nodes: NodeTable
    names: tuple[str, ...]


def resolve_targets(model: LanguageModel, sources: Sources, targets: Sequence[Target]) -> Resolved:
    """Turn what was asked for into seeds and nodes; raises AttributionError on what this prompt or model lacks."""
    if not targets:
        raise AttributionError("No target was given; leave targets out to explain the likeliest tokens.")
    parts = [_resolve(model, sources, target, number) for number, target in enumerate(targets)]
    seeds = Seeds(*(torch.cat([getattr(part.seeds, name) for part in parts]) for name in Seeds.__dataclass_fields__))
    nodes = NodeTable.stacked([part.nodes for part in parts])
    return Resolved(seeds, nodes, tuple(name for part in parts for name in part.names))


def _resolve(model: LanguageModel, sources: Sources, target: Target, number: int) -> Resolved:
    position = _position(sources, target.position)
    match target:
        case SalientLogits():
            return _logits(model, sources, position, _salient(sources, position, target))
        case TokenLogits():
            tokens = torch.tensor([_token_id(model, token) for token in target.tokens], dtype=torch.long)
            if tokens.numel() == 0:
                raise AttributionError("TokenLogits names no token; give at least one.")
            return _logits(model, sources, position, tokens)
        case LogitDifference():
            tokens = [_token_id(model, token) for token in (target.positive, target.negative)]
            positive, negative = model.token_strings(tokens)
            vector = _unembedding(sources, tokens[0]) - _unembedding(sources, tokens[1])
            bias = _unembedding_bias(sources, tokens[0]) - _unembedding_bias(sources, tokens[1])
            return _direction(sources, position, vector, bias, f"{positive!r} - {negative!r}", number)
        case Direction():
            return _direction(sources, position, _checked(sources, target), 0.0, target.name, number)
        case FeaturePreactivation():
            return _feature(sources, position, target, number)


def _salient(sources: Sources, position: int, target: SalientLogits) -> Int[Tensor, "target"]:
    if target.max_count < 1 or not 0 < target.probability <= 1:
        raise AttributionError(
            f"max_count is {target.max_count} and probability {target.probability}; "
            "they must be at least 1, and above 0 and at most 1."
        )
    probabilities = sources.path.probabilities(position)
    likeliest = probabilities.topk(min(target.max_count, probabilities.shape[0]))
    count = int((likeliest.values.cumsum(0) < target.probability).sum()) + 1
    return likeliest.indices[:count]


def _logits(model: LanguageModel, sources: Sources, position: int, tokens: Int[Tensor, "target"]) -> Resolved:
    """Logits less the mean logit: a shift of all logits changes no probability."""
    path = sources.path
    tokens = tokens.to(path.W_U.device)
    logits = path.logits[position]
    probabilities = path.probabilities(position)[tokens]
    vectors = path.W_U[:, tokens].T - path.W_U.mean(1)
    biases = torch.zeros_like(probabilities) if path.b_U is None else path.b_U[tokens] - path.b_U.mean()
    seeds = _output_seeds(sources, position, vectors, biases, logits[tokens] - logits.mean())
    nodes = NodeTable.of(
        NodeKind.LOGIT,
        seeds.level.cpu(),
        seeds.position.cpu(),
        index=tokens.cpu(),
        value=probabilities.cpu(),
        weight=probabilities.cpu(),
        total=seeds.total.cpu(),
    )
    return Resolved(seeds, nodes, tuple(model.token_strings(tokens)))


def _direction(
    sources: Sources, position: int, vector: Float[Tensor, "d_model"], bias: float, name: str, number: int
) -> Resolved:
    total = sources.path.final_norm.forward(sources.path.final)[position] @ vector + bias
    biases = torch.full_like(total, bias)[None]
    seeds = _output_seeds(sources, position, vector[None], biases, total[None])
    return Resolved(seeds, _target_node(seeds, number), (name,))


def _feature(sources: Sources, position: int, target: FeaturePreactivation, number: int) -> Resolved:
    config = sources.transcoder.config
    if not (0 <= target.layer < config.n_layers and 0 <= target.feature < config.n_features):
        raise AttributionError(
            f"The transcoder has no feature {target.feature} in layer {target.layer}; "
            f"it has {config.n_layers} layers of {config.n_features} features."
        )
    device = sources.path.W_U.device
    columns = (torch.tensor([value], device=device) for value in (target.layer, position, target.feature))
    seeds = feature_seeds(sources, *columns)
    name = f"feature {target.feature} of layer {target.layer} at position {position}"
    return Resolved(seeds, _target_node(seeds, number), (name,))


def _output_seeds(
    sources: Sources,
    position: int,
    vectors: Float[Tensor, "target d_model"],
    biases: Float[Tensor, "target"],
    totals: Float[Tensor, "target"],
) -> Seeds:
    """Linear functions of the final norm's output as functions of the stream before it."""
    norm = sources.path.final_norm
    positions = torch.full((vectors.shape[0],), position, device=vectors.device)
    if norm.bias is not None:
        biases = biases + vectors @ norm.bias
    levels = torch.full_like(positions, sources.n_layers)
    return Seeds(levels, positions, norm.adjoint_at(vectors, positions), biases, totals)


def _target_node(seeds: Seeds, number: int) -> NodeTable:
    level, position = seeds.level.cpu(), seeds.position.cpu()
    index, weight = torch.full_like(level, number), torch.ones(level.shape[0])
    return NodeTable.of(NodeKind.TARGET, level, position, index=index, weight=weight, total=seeds.total.cpu())


def _unembedding(sources: Sources, token: int) -> Float[Tensor, "d_model"]:
    return sources.path.W_U[:, token]


def _unembedding_bias(sources: Sources, token: int) -> float:
    return 0.0 if sources.path.b_U is None else float(sources.path.b_U[token])


def _checked(sources: Sources, target: Direction) -> Float[Tensor, "d_model"]:
    if target.vector.shape != (sources.path.d_model,):
        raise AttributionError(
            f"The direction {target.name!r} has shape {tuple(target.vector.shape)}; "
            f"this model's residual stream needs ({sources.path.d_model},)."
        )
    return target.vector.to(sources.path.W_U)


def _position(sources: Sources, position: int) -> int:
    count = sources.path.n_positions
    if not -count <= position < count:
        raise AttributionError(f"The target's position is {position}; the prompt has {count} tokens.")
    return position % count


def _token_id(model: LanguageModel, token: str | int) -> int:
    if isinstance(token, int):
        if not 0 <= token < model.vocab_size:
            raise AttributionError(f"Token id {token} is unknown; {model.name} has ids 0 to {model.vocab_size - 1}.")
        return token
    ids = model.token_ids([token])[0]
    if len(ids) != 1:
        raise AttributionError(
            f"{token!r} is {len(ids)} tokens of {model.name}, not one; give a single token (mind its leading space), "
            "or its id."
        )
    return ids[0]
