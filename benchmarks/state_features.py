"""Which features are a state's: what ``known_circuits.py`` looks for in graphs, and takes as a control.

Found without two-hop prompts, capitals or answers, from one-hop prompts ("Dallas is a city in", every way of saying it)
about the cities of all states. A feature is one of a state's if it is on average at least ``factor`` times as active
for the state's cities as for all cities of other states; at the city's token, and after it (where it is most active),
apart. The city that a two-hop prompt asks about does not vote, and state capitals are no cities here.
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
"""Layer, position and feature."""
Activations: TypeAlias = dict[Place, float]


@final
class StateFeatures:
    """How active every feature is for every city, at its token and after it, and so whose it is."""

    def __init__(self, means: Float[Tensor, "city 2 layer feature"], factor: float) -> None:
        self._means, self._factor = means, factor

    def of(self, state: str, without: str) -> Bool[Tensor, "2 layer feature"]:
        """The features of a state, as its cities but one would have it: at the city's token, and after it."""
        mine = torch.tensor([name == state and city != without for city, name in CITIES])
        theirs = torch.tensor([name != state for _, name in CITIES])
        own, others = (self._means[rows].mean(0) for rows in (mine, theirs))
        return (own > 0) & (own >= self._factor * others)


def city_activations(model: LanguageModel, transcoder: Transcoder) -> Float[Tensor, "city 2 layer feature"]:
    """Mean activations for each city, over every way of saying which state it is in."""
    return torch.stack([_activations(model, transcoder, template) for template in templates.CITY_TEMPLATES]).mean(0)


@torch.no_grad()
def _activations(model: LanguageModel, transcoder: Transcoder, template: str) -> Float[Tensor, "city 2 layer feature"]:
    """Activations for one way of saying it: at the city's token, and the largest after it."""
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
    """Position of the last token of the city's name, BOS counted."""
    end, length = prompt.index(city) + len(city), 0
    for position, text in enumerate(model.token_strings(model.tokenize(prompt))[1:], start=1):
        length += len(text)
        if length >= end:
            return position
    raise ValueError(f"{city!r} is not in {prompt!r}")


def active(run: Observed, start: int) -> Activations:
    """All that is active from a position on."""
    found: Activations = {}
    for layer, features in enumerate(run.features):
        columns = (column.cpu().tolist() for column in (features.rows, features.features, features.values))
        entries = zip(*columns, strict=True)
        found |= {(layer, row, feature): value for row, feature, value in entries if row >= start and value > 0}
    return found


def on_path(graph: AttributionGraph, start: int) -> set[Place]:
    """Features on a path of positive edges from the token at ``start`` to the graph's one output."""
    positive = graph.part(torch.ones(graph.n_nodes, dtype=torch.bool), graph.edges.weight > 0)
    (city,) = find_nodes(positive, NodeQuery(kinds=(NodeKind.EMBEDDING,), positions=(start,)))
    (answer,) = find_nodes(positive, NodeQuery(kinds=(NodeKind.LOGIT,)))
    try:
        path = path_subgraph(positive, city, answer)
    except AttributionError:  # there is none
        return set()
    nodes, wanted = path.nodes, path.of_kind(NodeKind.FEATURE)
    layers, positions, features = (column[wanted].tolist() for column in (nodes.layer, nodes.position, nodes.index))
    return set(zip(layers, positions, features, strict=True))


Enough: TypeAlias = Callable[[Sequence[float], Sequence[float]], int]
"""How many of the others to take: from what the members write, and what the others write, in their order."""


def as_many(members: Sequence[float], others: Sequence[float]) -> int:
    """The same number."""
    return min(len(members), len(others))


def as_much(members: Sequence[float], others: Sequence[float]) -> int:
    """As many as together write as much, to within half of the last one."""
    total = sum(members)
    for count, written in enumerate(others):
        if total <= written / 2:
            return count
        total -= written
    return len(others)


def matched(
    members: Activations,
    pool: Activations,
    norms: Float[Tensor, "layer feature"],
    enough: Enough,
    generator: torch.Generator,
) -> Activations:
    """Other features at the same layers and positions, drawn at random: as many, or writing as much.

    What a feature writes is its activation times the norm of its decoders. Where a place has too few others, all.
    """

    def written(places: Sequence[Place]) -> list[float]:
        return [pool[place] * float(norms[place[0], place[2]]) for place in places]

    chosen: list[Place] = []
    for own, others in _by_token(members, pool):
        order = torch.randperm(len(others), generator=generator).tolist()
        shuffled = [others[number] for number in order]
        chosen += shuffled[: enough(written(own), written(shuffled))]
    return {place: pool[place] for place in chosen}


def _by_token(members: Mapping[Place, float], pool: Activations) -> list[tuple[list[Place], list[Place]]]:
    """For each layer and position that has members: these, and the others active there."""
    tokens = sorted({place[:2] for place in members})
    return [
        (
            [place for place in members if place[:2] == token],
            [place for place in pool if place[:2] == token and place not in members],
        )
        for token in tokens
    ]
