"""The hidden hop of a graph: the supernode between a token of the prompt and the output, with its name.

"The capital of the state containing Dallas is" -> " Austin" passes through a state that the prompt does not name.
``find_hidden_hop`` finds the features that carry it, and the word that they stand for, in four steps. It uses neither
a language model that writes labels nor any table of facts.

    1. source       the token that the model expected least (" Dallas"), unless the caller names another one
    2. change       how much more active each feature of the pruned graph is than in prompts with similar tokens in the
                    place of the source, after which the model predicts something else: what these features say of any
                    city cancels out
    3. candidates   the words that are near in a text where features change in this way. A ridge regression estimates
                    how much the change raises the chance that each word is near.
    4. name         of the candidates that are neither in the prompt nor the output, the one with the largest product of
                    its rise and its support, among those for which the features are active, too, when the word takes
                    the place of the source: the cosine of both changes, after the source, must be at least
                    ``similarity``. The support is how often the word is near the source and near its peers in the text.
                    A peer is a similar token that leads to the same prediction and has such a cosine, too. A state is
                    near all of its cities; a city is seldom near the other cities.

The supernode holds the features whose activations rise and that raise the chance of the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.circuits.encoded_text import EncodedText, NearbyWords
from open_clt.circuits.substitution import Cell, Substitutions, most_surprising, substitute
from open_clt.config.arguments import checked_arguments
from open_clt.config.json import CheckedConfig
from open_clt.errors import AttributionError, ConfigError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.supernodes import Supernode
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder


@final
@dataclass(frozen=True, kw_only=True)
class HopSettings(CheckedConfig):
    """Settings of the search for the hidden hop; the defaults were chosen on prompts of the embedded model."""

    threshold: float = 0.9
    """Share of the graph's influence that its nodes hold after pruning."""
    similar: int = 150
    """Number of similar tokens that are tried in the place of the source."""
    counted: int = 50
    """Largest number of these prompts from which the change is measured."""
    candidates: int = 40
    """Number of words that are tried in the place of the source."""
    similarity: float = 0.3
    """Least cosine of the change for a name, and for a peer of the source, in the place of the source: -1 to 1."""
    rarest: float = 3e-4
    """Least share of the text's tokens that a name must be near."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("similar", "counted", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name, least, most in (("threshold", 0, 1), ("similarity", -1, 1), ("rarest", 0, 1)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie between {least} and {most}.")


class Candidate(NamedTuple):
    """A word that a supernode may stand for."""

    word: str
    """The word."""
    rise: float
    """Estimated rise of the chance that the word is near."""
    similarity: float
    """Cosine of the features' change with their change for the word in the place of the source; NaN if not tried."""
    support: float
    """Share of the occurrences of the source in the text that the word is near; mean over the source and its peers."""


@final
@dataclass(frozen=True)
class HiddenHop:
    """The supernode between a token of the prompt and the output."""

    supernode: Supernode
    """The features, under the name."""
    source: int
    """Position of the token that the hop depends on."""
    strengths: tuple[float, ...]
    """Activation of each member."""
    changes: tuple[float, ...]
    """How much more active each member is than in prompts with similar tokens in the place of the source."""
    output: str
    """Token that the model predicts."""
    candidates: tuple[Candidate, ...]
    """The words for the name, best first; those that are not similar enough follow, without a support."""

    @property
    def name(self) -> str:
        """The word that the supernode stands for."""
        return self.supernode.label

    __repr__ = short_repr


class Change(NamedTuple):
    """The change of a graph's features that comes with the source, and the prompts with similar tokens."""

    cells: list[Cell]
    """The features of the pruned graph from the source on."""
    usual: Float[Tensor, "cell"]
    """Mean activations in the prompts with similar tokens that end in another prediction."""
    values: Float[Tensor, "cell"]
    """Activations in the prompt."""
    similar: list[int]
    """The similar tokens, most similar first."""
    variants: Substitutions
    """The prompts with these tokens."""
    predicted: int
    """Token that the model predicts after the prompt."""

    @property
    def change(self) -> Float[Tensor, "cell"]:
        """Activations less the usual ones."""
        return self.values - self.usual

    __repr__ = short_repr


@checked_arguments
def find_hidden_hop(
    model: LanguageModel,
    transcoder: Transcoder,
    graph: AttributionGraph,
    text: EncodedText,
    *,
    source: int | None = None,
    search: HopSettings | None = None,
) -> HiddenHop | None:
    """Find and name the hidden hop of a graph, as the module's docstring describes; None if no word can be its name.

    ``graph`` is the whole graph of a prompt, and ``source`` a position of the prompt. Raises AttributionError if the
    prompt has no such position, or if the graph has no feature from there on.
    """
    settings = search or HopSettings()
    prompt = torch.tensor(graph.info.tokens, device=model.device)
    first = transcoder.first_position
    if source is not None and not first <= source < len(prompt):
        raise AttributionError(f"source is {source}; the prompt has the positions {first} to {len(prompt) - 1}.")
    source = most_surprising(model, prompt) if source is None else source
    change = change_at(model, transcoder, graph, source, settings)
    if change is None:
        return None
    features = list(dict.fromkeys(Feature(layer, index) for layer, _, index in change.cells))
    nearby = text.nearby(features)
    rises = _rises(nearby, features, change)
    candidates = _candidates(
        model, transcoder, graph, nearby=nearby, rise=rises.sum(0), change=change, source=source, settings=settings
    )
    good = [candidate for candidate in candidates if candidate.similarity >= settings.similarity and candidate.rise > 0]
    if not good:
        return None
    peers = _peers(change, source, settings)
    supports = text.support(model.token_strings([int(prompt[source]), *peers]), [candidate.word for candidate in good])
    good = [candidate._replace(support=support) for candidate, support in zip(good, supports.tolist(), strict=True)]
    good.sort(key=lambda candidate: (-candidate.rise * candidate.support, -candidate.rise))
    best = good[0]
    raises = (rises[:, nearby.words.index(best.word)] > 0) & (change.change > 0)
    chosen = raises.nonzero().flatten().tolist()
    ids = tuple(f"{layer}:{position}:{index}" for layer, position, index in (change.cells[row] for row in chosen))
    return HiddenHop(
        Supernode(best.word, ids),
        source,
        tuple(change.values[chosen].tolist()),
        tuple(change.change[chosen].tolist()),
        model.token_strings([change.predicted])[0],
        (*good, *(candidate for candidate in candidates if candidate.word not in {other.word for other in good})),
    )


def change_at(
    model: LanguageModel, transcoder: Transcoder, graph: AttributionGraph, source: int, settings: HopSettings
) -> Change | None:
    """The change of the pruned graph's features from the source on, or None, as for ``change_of``."""
    nodes = graph.prune(settings.threshold).nodes
    chosen = (nodes.kind == NodeKind.FEATURE) & (nodes.position >= source)
    columns = (column[chosen].tolist() for column in (nodes.layer, nodes.position, nodes.index))
    prompt = torch.tensor(graph.info.tokens, device=model.device)
    return change_of(model, transcoder, prompt, source, list(zip(*columns, strict=True)), settings=settings)


def change_of(
    model: LanguageModel,
    transcoder: Transcoder,
    prompt: Int[Tensor, "position"],
    source: int,
    cells: list[Cell],
    *,
    settings: HopSettings,
) -> Change | None:
    """How some activations change with the source; None without activations, or if the prediction never changes."""
    if not cells:
        return None
    similar = model.unembedding.similar_tokens(int(prompt[source]), settings.similar)
    tokens, activations, predicted = substitute(
        model, transcoder, prompt, source, [int(prompt[source]), *similar], cells=cells
    )
    others = (predicted != predicted[0]).nonzero().flatten()[: settings.counted]
    if not len(others):
        return None
    variants = Substitutions(tokens[1:], activations[1:], predicted[1:])
    return Change(cells, activations[others].mean(0), activations[0], similar, variants, int(predicted[0]))


def _rises(nearby: NearbyWords, features: list[Feature], change: Change) -> Float[Tensor, "cell word"]:
    """How much each feature raises the chance of each word; the features of a position are estimated together."""
    row_of = {feature: row for row, feature in enumerate(features)}
    rises = torch.zeros(len(change.cells), len(nearby.words), dtype=torch.double)
    for position in {cell[1] for cell in change.cells}:
        rows = [row for row, cell in enumerate(change.cells) if cell[1] == position]
        at = [row_of[Feature(change.cells[row][0], change.cells[row][2])] for row in rows]
        rises[rows] = nearby.rise(at, change.change[rows])
    return rises


def _candidates(
    model: LanguageModel,
    transcoder: Transcoder,
    graph: AttributionGraph,
    *,
    nearby: NearbyWords,
    rise: Float[Tensor, "word"],
    change: Change,
    source: int,
    settings: HopSettings,
) -> list[Candidate]:
    """The words whose chances rise most for their frequency, with their similarity, largest rise first, no support."""
    known = {text.strip() for text in (*graph.info.token_strings, *model.token_strings([change.predicted]))}
    allowed = torch.tensor([word not in known for word in nearby.words]) & (nearby.chance >= settings.rarest)
    standard = rise / ((nearby.chance * (1 - nearby.chance)).sqrt() + 1e-2)
    order = standard.masked_fill(~allowed, -torch.inf).topk(min(settings.candidates, int(allowed.sum()))).indices
    words = [nearby.words[number] for number in order.tolist()]
    prompt = torch.tensor(graph.info.tokens, device=model.device)
    similarity = similarities(model, transcoder, prompt, change, source, words=words)
    columns = zip(words, rise[order].tolist(), similarity, strict=True)
    candidates = [Candidate(word, risen, cosine, support=float("nan")) for word, risen, cosine in columns]
    return sorted(candidates, key=lambda candidate: -candidate.rise)


def _peers(change: Change, source: int, settings: HopSettings) -> list[int]:
    """The similar tokens that lead to the same prediction, and for which the features change in a similar way."""
    after = [row for row, cell in enumerate(change.cells) if cell[1] > source]
    cosines = _cosines(change, change.variants.activations[:, after], after)
    chosen = (change.variants.predicted == change.predicted) & (cosines >= settings.similarity)
    return [change.similar[row] for row in chosen.nonzero().flatten().tolist()]


def _cosines(change: Change, activations: Float[Tensor, "variant row"], after: list[int]) -> Float[Tensor, "variant"]:
    """The cosines of the changes of some features in variants of the prompt with their change in the prompt."""
    return functional.cosine_similarity(activations - change.usual[after], change.change[after][None])


def similarities(
    model: LanguageModel,
    transcoder: Transcoder,
    prompt: Int[Tensor, "position"],
    change: Change,
    source: int,
    *,
    words: list[str],
) -> list[float]:
    """For each word, the cosine of the features' change with their change for the word in the source's place.

    Only features after the source count. A word that is not one token has NaN.
    """
    space = " " if model.token_strings(prompt[source : source + 1])[0].startswith(" ") else ""
    tokens = [_token(model, space + word) or _token(model, word) for word in words]
    after = [row for row, cell in enumerate(change.cells) if cell[1] > source]
    if not after or not any(token is not None for token in tokens):
        return [float("nan")] * len(words)
    cells = [change.cells[row] for row in after]
    tried = [token for token in tokens if token is not None]
    variants = substitute(model, transcoder, prompt, source, tried, cells=cells)
    cosines = iter(_cosines(change, variants.activations, after).tolist())
    return [float("nan") if token is None else next(cosines) for token in tokens]


def _token(model: LanguageModel, text: str) -> int | None:
    """The token of a text; None if the text is not exactly one token."""
    ids = model.token_ids([text])[0]
    return ids[0] if len(ids) == 1 else None
