"""Targets: reading them from text, resolving them on a prompt, and turning them into seeds and nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.attribution.adjoint import Seeds, feature_seeds
from open_clt.attribution.sources import Sources
from open_clt.errors import AttributionError, ConfigError
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.graphs.targets import (
    Direction,
    FeaturePreactivation,
    LogitDifference,
    SalientLogits,
    Target,
    TokenLogits,
)
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature, FeaturePlace

_MINUS = "--"
"""Separator between the two tokens of a logit difference."""


def read_target(model: LanguageModel, text: str, position: int = -1) -> Target:
    """Read a target from text, in the first of these notations that fits:

        2:5:417             a feature, as ``layer:position:feature``
        " Paris"            a single token, including its leading space, at ``position``
        " Paris-- Rome"     the logit of the first token minus that of the second, at ``position``

    Raises AttributionError if the text fits none of them.
    """
    if (place := _feature_place(text)) is not None:
        feature, feature_position = place
        if feature_position is None:
            last = place._replace(position=-1)
            raise AttributionError(f"The target {text!r} names every position; give one position, as in {last}.")
        return FeaturePreactivation(layer=feature.layer, feature=feature.index, position=feature_position)
    positive, separator, negative = text.partition(_MINUS)
    if not separator or len(model.token_ids([text])[0]) == 1:
        return TokenLogits(tokens=(_token_id(model, text),), position=position)
    first, second = (_token_id(model, token) for token in (positive, negative))
    return LogitDifference(positive=first, negative=second, position=position)


def names_feature(text: str) -> bool:
    """Whether ``read_target`` reads a text as a feature; the answer is the same for every language model."""
    return _feature_place(text) is not None


def _feature_place(text: str) -> FeaturePlace | None:
    """The feature and position that a text names, or None if it does not name a feature."""
    if ":" not in text:
        return None
    try:
        return FeaturePlace.parse(text)
    except ConfigError:
        return None


class Resolved(NamedTuple):
    """Targets that are resolved on a prompt, with their seeds, nodes and names."""

    targets: tuple[Target, ...]
    """The requested targets, with token ids and with positions counted from the prompt's start."""
    seeds: Seeds
    """Seeds of all rows of the targets."""
    nodes: NodeTable
    """One node for each seed."""
    names: tuple[str, ...]
    """One name for each seed."""

    __repr__ = short_repr


class _Rows(NamedTuple):
    """The seeds of one target, with one node and one name for each."""

    seeds: Seeds
    nodes: NodeTable
    names: tuple[str, ...]


def resolve_targets(model: LanguageModel, sources: Sources, targets: Sequence[Target]) -> Resolved:
    """Turn targets into seeds and nodes; raises AttributionError if the prompt or the model lacks a target."""
    if not targets:
        raise AttributionError("targets is empty; give at least one target, or None for the likeliest tokens.")
    resolved = tuple(_resolved(model, sources, target) for target in targets)
    parts = [_rows(model, sources, target, index) for index, target in enumerate(resolved)]
    seeds = Seeds(*(torch.cat([getattr(part.seeds, name) for part in parts]) for name in Seeds.__dataclass_fields__))
    nodes = NodeTable.stacked([part.nodes for part in parts])
    return Resolved(resolved, seeds, nodes, tuple(name for part in parts for name in part.names))


def target_seeds(model: LanguageModel, sources: Sources, target: Target) -> Seeds:
    """The seeds of a resolved target, such as a graph's settings hold."""
    return _rows(model, sources, target, 0).seeds


def _resolved(model: LanguageModel, sources: Sources, target: Target) -> Target:
    """The same target with token ids, a position from the prompt's start, and a copy of its vector on the CPU."""
    target = replace(target, position=_position(sources, target.position))
    match target:
        case TokenLogits():
            if not target.tokens:
                raise AttributionError("TokenLogits has no tokens; give at least one.")
            return replace(target, tokens=tuple(_token_id(model, token) for token in target.tokens))
        case LogitDifference():
            positive, negative = (_token_id(model, token) for token in (target.positive, target.negative))
            return replace(target, positive=positive, negative=negative)
        case Direction():
            return replace(target, vector=_checked(sources, target).detach().cpu().clone())
        case SalientLogits() | FeaturePreactivation():
            return target


def _rows(model: LanguageModel, sources: Sources, target: Target, index: int) -> _Rows:
    """The rows of a resolved target, which is target number ``index`` of its graph."""
    position = target.position
    match target:
        case SalientLogits():
            return _logits(model, sources, position, _salient(sources, position, target))
        case TokenLogits():
            tokens = torch.tensor([_token_id(model, token) for token in target.tokens], dtype=torch.long)
            return _logits(model, sources, position, tokens)
        case LogitDifference():
            tokens = [_token_id(model, token) for token in (target.positive, target.negative)]
            positive, negative = model.token_strings(tokens)
            vector = _unembedding(sources, tokens[0]) - _unembedding(sources, tokens[1])
            bias = _unembedding_bias(sources, tokens[0]) - _unembedding_bias(sources, tokens[1])
            seeds = _direction_seeds(sources, position, vector, bias)
            return _Rows(seeds, _target_node(seeds, index), (f"{positive!r} - {negative!r}",))
        case Direction():
            seeds = _direction_seeds(sources, position, _checked(sources, target), 0.0)
            return _Rows(seeds, _target_node(seeds, index), (target.name,))
        case FeaturePreactivation():
            return _feature(sources, position, target, index)


def _salient(sources: Sources, position: int, target: SalientLogits) -> Int[Tensor, "target"]:
    """The fewest likeliest tokens that hold the target's probability together, and at most ``max_count``."""
    if target.max_count < 1 or not 0 < target.probability <= 1:
        raise AttributionError(
            f"max_count is {target.max_count} and probability is {target.probability}; max_count must be at least 1, "
            "and probability above 0 and at most 1."
        )
    probabilities = sources.path.probabilities(position)
    likeliest = probabilities.topk(min(target.max_count, probabilities.shape[0]))
    count = int((likeliest.values.cumsum(0) < target.probability).sum()) + 1
    return likeliest.indices[:count]


def _logits(model: LanguageModel, sources: Sources, position: int, tokens: Int[Tensor, "target"]) -> _Rows:
    """Rows of logits minus the mean logit, because a shift of all logits does not change any probability."""
    path = sources.path
    tokens = tokens.to(path.W_U.device)
    logits = path.logits(position)
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
    return _Rows(seeds, nodes, tuple(model.token_strings(tokens)))


def _direction_seeds(sources: Sources, position: int, vector: Float[Tensor, "d_model"], bias: float) -> Seeds:
    """The seed of the final norm's output along a vector, plus a constant."""
    total = sources.path.final_norm.forward(sources.path.final)[position] @ vector + bias
    biases = torch.full_like(total, bias)[None]
    return _output_seeds(sources, position, vector[None], biases, total[None])


def _feature(sources: Sources, position: int, target: FeaturePreactivation, index: int) -> _Rows:
    """The row of a feature's pre-activation."""
    config = sources.transcoder.config
    feature = Feature(target.layer, target.feature)
    if feature.layer not in config.model_layers or not 0 <= feature.index < config.n_features:
        raise AttributionError(
            f"The transcoder has no feature {feature}; it has {config.n_features} features at each of the layers "
            f"{config.layer_words}."
        )
    device = sources.path.W_U.device
    columns = (torch.tensor([entry], device=device) for entry in (feature.layer, position, feature.index))
    seeds = feature_seeds(sources, *columns)
    return _Rows(seeds, _target_node(seeds, index), (f"{feature} at position {position}",))


def _output_seeds(
    sources: Sources,
    position: int,
    vectors: Float[Tensor, "target d_model"],
    biases: Float[Tensor, "target"],
    totals: Float[Tensor, "target"],
) -> Seeds:
    """Seeds of linear functions of the final norm's output, as functions of the stream before the norm."""
    norm = sources.path.final_norm
    positions = torch.full((vectors.shape[0],), position, device=vectors.device)
    if norm.bias is not None:
        biases = biases + vectors @ norm.bias
    levels = torch.full_like(positions, sources.n_layers)
    return Seeds(levels, positions, norm.adjoint_at(vectors, positions), biases, totals)


def _target_node(seeds: Seeds, index: int) -> NodeTable:
    """The node of the target number ``index`` of a graph."""
    level, position = seeds.level.cpu(), seeds.position.cpu()
    indices, weight = torch.full_like(level, index), torch.ones(level.shape[0])
    return NodeTable.of(NodeKind.TARGET, level, position, index=indices, weight=weight, total=seeds.total.cpu())


def _unembedding(sources: Sources, token: int) -> Float[Tensor, "d_model"]:
    return sources.path.W_U[:, token]


def _unembedding_bias(sources: Sources, token: int) -> float:
    return 0.0 if sources.path.b_U is None else float(sources.path.b_U[token])


def _checked(sources: Sources, target: Direction) -> Float[Tensor, "d_model"]:
    """The vector of a direction in the model's precision; raises AttributionError if its shape does not fit."""
    if target.vector.shape != (sources.path.d_model,):
        raise AttributionError(
            f"The direction {target.name!r} has shape {tuple(target.vector.shape)}; "
            f"it must have the residual stream's shape ({sources.path.d_model},)."
        )
    return target.vector.to(sources.path.W_U)


def _position(sources: Sources, position: int) -> int:
    """The position counted from the prompt's start; raises AttributionError if the prompt does not have it."""
    count = sources.path.n_positions
    if not -count <= position < count:
        raise AttributionError(f"The target's position is {position}; it must lie between {-count} and {count - 1}.")
    return position % count


def _token_id(model: LanguageModel, token: str | int) -> int:
    """The id of a token; raises AttributionError if the model does not have it."""
    if isinstance(token, int):
        if not 0 <= token < model.vocab_size:
            raise AttributionError(f"Token id {token} is not known; {model.name} has ids 0 to {model.vocab_size - 1}.")
        return token
    ids = model.token_ids([token])[0]
    if len(ids) != 1:
        raise AttributionError(
            f"{token!r} is {len(ids)} tokens of {model.name}, not one; give the text of a single token, including its "
            "leading space, or a token id."
        )
    return ids[0]
