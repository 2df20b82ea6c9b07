"""Features of states: those that ``known_circuits.py`` looks for in graphs, and those that it uses as controls.

A state's features are found with one-hop prompts ("Dallas is a city in", in every wording) about the cities of all
states, and without two-hop prompts, capitals or answers. A feature belongs to a state if its mean activation for the
state's cities is at least ``factor`` times its mean activation for the cities of all other states. Two activations
count separately: the one at the city's token, and the largest one after that token. The city that a two-hop prompt asks
about is left out of the mean, and state capitals do not count as cities here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from open_clt.embedded import facts, templates
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import NodeQuery, find_nodes, path_subgraph
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.observation import Observed
from open_clt.transcoders.transcoder import Transcoder

CITIES = [(city, state.name) for state in facts.STATES for city in state.cities]

Place: TypeAlias = tuple[int, int, int]
"""An active feature: layer, position and index of the feature."""
Activations: TypeAlias = dict[Place, float]


@final
class StateFeatures:
    """The states' features, from the activation of every feature for every city, at the city's token and after it."""

    def __init__(self, means: Float[Tensor, "city 2 layer feature"], factor: float) -> None:
        self._means, self._factor = means, factor

    def of(self, state: str, without: str) -> Bool[Tensor, "2 layer feature"]:
        """Whether each feature belongs to a state, at the city's token and after it, by all cities but ``without``."""
        of_state = torch.tensor([name == state and city != without for city, name in CITIES])
        of_others = torch.tensor([name != state for _, name in CITIES])
        inside, outside = (self._means[rows].mean(0) for rows in (of_state, of_others))
        return (inside > 0) & (inside >= self._factor * outside)


def city_activations(model: LanguageModel, transcoder: Transcoder) -> Float[Tensor, "city 2 layer feature"]:
    """Mean activations for each city, over every wording of the sentence that says which state the city is in."""
    return torch.stack([_activations(model, transcoder, template) for template in templates.CITY_TEMPLATES]).mean(0)


@torch.no_grad()
def _activations(model: LanguageModel, transcoder: Transcoder, template: str) -> Float[Tensor, "city 2 layer feature"]:
    """Activations for one wording: at the city's token, and the largest after it."""
    prompts = [template.format(x=city) for city, _ in CITIES]
    tokens = [model.tokenize(prompt) for prompt in prompts]
    inputs = model.capture(pad_sequence(tokens, batch_first=True), transcoder.config.input_hook).inputs
    layers = [layer.dense().unflatten(0, inputs.shape[:2]) for layer in transcoder.encode(inputs.flatten(0, 1))]
    features = torch.stack(layers, dim=2).cpu()  # (city, position, layer, feature)
    rows: list[Tensor] = []
    for row, ((city, _), prompt) in enumerate(zip(CITIES, prompts, strict=True)):
        start = city_position(model, prompt, city)
        rows.append(torch.stack([features[row, start], features[row, start + 1 : len(tokens[row])].amax(0)]))
    return torch.stack(rows)


def city_position(model: LanguageModel, prompt: str, city: str) -> int:
    """Position of the last token of the city's name; BOS is at position 0."""
    end, length = prompt.index(city) + len(city), 0
    for position, text in enumerate(model.token_strings(model.tokenize(prompt))[1:], start=1):
        length += len(text)
        if length >= end:
            return position
    raise ValueError(f"The tokens of {prompt!r} do not contain {city!r}.")


def active(run: Observed, start: int) -> Activations:
    """All features that are active at position ``start`` or later."""
    activations: Activations = {}
    for layer, features in enumerate(run.features):
        columns = (column.cpu().tolist() for column in (features.rows, features.features, features.values))
        entries = zip(*columns, strict=True)
        activations |= {
            (layer, position, feature): value for position, feature, value in entries if position >= start and value > 0
        }
    return activations


def on_path(graph: AttributionGraph, start: int) -> set[Place]:
    """Features on a path of positive edges from the token at ``start`` to the graph's one output."""
    positive = graph.part(torch.ones(graph.n_nodes, dtype=torch.bool), graph.edges.weight > 0)
    (city,) = find_nodes(positive, NodeQuery(kinds=(NodeKind.EMBEDDING,), positions=(start,)))
    (answer,) = find_nodes(positive, NodeQuery(kinds=(NodeKind.LOGIT,)))
    try:
        path = path_subgraph(positive, city, answer)
    except AttributionError:  # no such path exists
        return set()
    nodes, rows = path.nodes, path.of_kind(NodeKind.FEATURE)
    layers, positions, features = (column[rows].tolist() for column in (nodes.layer, nodes.position, nodes.index))
    return set(zip(layers, positions, features, strict=True))


Enough: TypeAlias = Callable[[Sequence[float], Sequence[float]], int]
"""Returns how many of the other features to take, from how much each member and each other feature writes."""


def as_many(members: Sequence[float], others: Sequence[float]) -> int:
    """As many as there are members."""
    return min(len(members), len(others))


def as_much(members: Sequence[float], others: Sequence[float]) -> int:
    """As many as together write as much as the members, to within half of what the last one writes."""
    remaining = sum(members)
    for count, written in enumerate(others):
        if remaining <= written / 2:
            return count
        remaining -= written
    return len(others)


def matched(
    members: Activations,
    pool: Activations,
    norms: Float[Tensor, "layer feature"],
    enough: Enough,
    generator: torch.Generator,
) -> Activations:
    """Other features at the same layers and positions as the members, drawn at random, as many as ``enough`` says.

    How much a feature writes is its activation times the norm of its decoders. All other features of a layer and
    position are taken where there are too few.
    """

    def written(places: Sequence[Place]) -> list[float]:
        return [pool[place] * float(norms[place[0], place[2]]) for place in places]

    chosen: list[Place] = []
    for group, others in _by_token(members, pool):
        order = torch.randperm(len(others), generator=generator).tolist()
        shuffled = [others[index] for index in order]
        chosen += shuffled[: enough(written(group), written(shuffled))]
    return {place: pool[place] for place in chosen}


def _by_token(members: Mapping[Place, float], pool: Activations) -> list[tuple[list[Place], list[Place]]]:
    """For each layer and position that has members: its members, and the other features that are active there."""
    tokens = sorted({place[:2] for place in members})
    return [
        (
            [place for place in members if place[:2] == token],
            [place for place in pool if place[:2] == token and place not in members],
        )
        for token in tokens
    ]
