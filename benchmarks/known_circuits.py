"""Two hops, seen and tested: does the graph hold the fact in the middle, and does the answer hang on it?

    python benchmarks/known_circuits.py                      the embedded model and its transcoder
    python benchmarks/known_circuits.py --limit 20 --strength 2

"The capital of the state containing Dallas is" -> " Austin" needs a fact that the prompt does not name: Texas. For each
held-out two-hop prompt that the embedded model answers rightly, three questions:

    path       in the pruned graph, do positive edges lead from the city over a feature of the state to the answer?
    ablation   with all features of the state at 0, is the answer no longer the likeliest token?
    swap       with another state's features in their place, is the likeliest token that state's capital?

Which features are a state's is found without two-hop prompts, capitals or answers: from one-hop prompts ("Dallas is a
city in", every way of saying it) about the cities of all states. A feature counts as active for a city if it is active
at the city's token or later in at least half of the prompts about it. It is a feature of a state if it is active for
most of the state's cities (``--own``) and for few cities of other states (``--others``); the city that a two-hop prompt
asks about does not vote, nor do state capitals. The supernode is those of them that are active in the two-hop
prompt at the city's token or later.

Interventions are iterative and on the model itself: its MLPs answer, and nothing is frozen. The swap takes the other
state's features, and how strongly and where they are active, from the same sentence about one of that state's cities,
times ``--strength``. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from open_clt.activations.language_model import LanguageModel
from open_clt.analysis.graph_operations import NodeQuery, find_nodes
from open_clt.attribution.attribute import attribute
from open_clt.attribution.graph import AttributionGraph
from open_clt.attribution.nodes import NodeKind
from open_clt.attribution.targets import TokenLogits
from open_clt.embedded import facts, templates
from open_clt.embedded.evaluation import EvaluationPrompt, evaluation_prompts
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.intervene import intervene
from open_clt.replacement.interventions import Intervention, Iterative
from open_clt.replacement.model import ReplacementModel
from open_clt.replacement.observation import Observed, observe

AIM = 0.8
STATES = {state.name: state for state in facts.STATES}
CITIES = [(city, state.name) for state in facts.STATES for city in state.cities]


class Question(NamedTuple):
    """A two-hop prompt, taken apart."""

    prompt: str
    answer: str
    city: str
    state: str


class Outcome(NamedTuple):
    """What was found for one prompt."""

    question: Question
    features: int
    """Features of the state that are active."""
    path: bool
    ablated_to: str
    """Likeliest token with the state's features at 0."""
    swapped_for: str
    """The other state's capital."""
    swapped_to: str

    @property
    def ablation(self) -> bool:
        return self.features > 0 and self.ablated_to != self.question.answer

    @property
    def swap(self) -> bool:
        return self.swapped_to == self.swapped_for


class StateFeatures:
    """For which cities each feature is active, and so whose it is."""

    def __init__(self, replacement: ReplacementModel, own: float, others: float) -> None:
        self._own, self._others = own, others
        prompts = [[template.format(x=city) for city, _ in CITIES] for template in templates.CITY_TEMPLATES]
        counts = sum(_active(replacement, row, [city for city, _ in CITIES]).float() for row in prompts)
        self._active = torch.as_tensor(counts) >= len(prompts) / 2

    def of(self, state: str, without: str) -> Tensor:
        """(layer, feature): the features of a state, as its cities but one would have it."""
        mine = torch.tensor([name == state and city != without for city, name in CITIES])
        theirs = torch.tensor([name != state for _, name in CITIES])
        own, others = (self._active[rows].float().mean(0) for rows in (mine, theirs))
        return (own >= self._own) & (others <= self._others)


@torch.no_grad()
def _active(replacement: ReplacementModel, prompts: Sequence[str], cities: Sequence[str]) -> Tensor:
    """(prompt, layer, feature): which features are active at the city's token or later."""
    model, transcoder = replacement.model, replacement.transcoder
    tokens = [model.tokenize(prompt) for prompt in prompts]
    captured = model.capture(pad_sequence(tokens, batch_first=True), transcoder.config.input_hook)
    found = torch.zeros(len(prompts), transcoder.config.n_layers, transcoder.config.n_features, dtype=torch.bool)
    for row, (prompt, city, ids) in enumerate(zip(prompts, cities, tokens, strict=True)):
        start = city_position(model, prompt, city)
        features = transcoder.encode(captured.inputs[row, start : len(ids)])
        for layer, active in enumerate(features):
            found[row, layer, active.features[active.values > 0].cpu()] = True
    return found


def city_position(model: LanguageModel, prompt: str, city: str) -> int:
    """Position of the last token of the city's name, BOS counted."""
    end, length = prompt.index(city) + len(city), 0
    for position, text in enumerate(model.token_strings(model.tokenize(prompt))[1:], start=1):
        length += len(text)
        if length >= end:
            return position
    raise ValueError(f"{city!r} is not in {prompt!r}")


def questions(limit: int | None) -> list[Question]:
    """The held-out two-hop prompts about capitals."""
    return [_question(prompt) for prompt in evaluation_prompts("two_hop", limit)]


def _question(prompt: EvaluationPrompt) -> Question:
    assert prompt.intermediate is not None
    state = prompt.intermediate.strip()
    city = next(city for city in STATES[state].cities if city in prompt.prompt)
    return Question(prompt.prompt, prompt.answer, city, state)


def supernode(features: Tensor, run: Observed, start: int) -> list[tuple[int, int, int, float]]:
    """(layer, position, feature, activation) of a state's features where they are active, from the city on."""
    found: list[tuple[int, int, int, float]] = []
    for layer, active in enumerate(run.features):
        mine = features[layer][active.features.cpu()] & (active.rows.cpu() >= start) & (active.values.cpu() > 0)
        columns = (column.cpu()[mine].tolist() for column in (active.rows, active.features, active.values))
        found += [(layer, position, feature, value) for position, feature, value in zip(*columns, strict=True)]
    return found


def holds_path(graph: AttributionGraph, start: int, members: Sequence[str], answer: int) -> bool:
    """Whether positive edges lead from the token at ``start`` to one of the members, and from there to the answer."""
    names = graph.ids()
    edges = [column[graph.edges.weight > 0] for column in graph.edges]
    city = find_nodes(graph, NodeQuery(kinds=(NodeKind.EMBEDDING,), positions=(start,)))
    output = (graph.of_kind(NodeKind.LOGIT) & (graph.nodes.index == answer)).nonzero().flatten()
    after = _reached([names.index(name) for name in city], edges[1], edges[0], len(names))
    before = _reached(output.tolist(), edges[0], edges[1], len(names))
    return any(bool((after & before)[names.index(name)]) for name in members if name in names)


def _reached(start: Sequence[int], sources: Tensor, targets: Tensor, count: int) -> Tensor:
    reached = torch.zeros(count, dtype=torch.bool)
    reached[list(start)] = True
    while True:
        more = reached.index_fill(0, targets[reached[sources]], True)
        if torch.equal(more, reached):
            return reached
        reached = more


class Bench:
    """The model, what is known of its features, and the settings."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        if arguments.transcoder is None:
            clt = OpenCrossLayerTranscoder.from_pretrained(arguments.model)
        else:
            clt = OpenCrossLayerTranscoder(arguments.model)
            clt.load_model(arguments.transcoder)
        self.model, self.transcoder = clt.language_model, clt.transcoder
        self.replacement = ReplacementModel(self.model, self.transcoder, error_correction=True)
        self.features = StateFeatures(self.replacement, arguments.own, arguments.others)
        self.strength: float = arguments.strength

    def answered(self, asked: Sequence[Question]) -> list[Question]:
        """The questions that the model answers rightly."""
        predicted = self.model.token_strings(self.model.next_tokens([question.prompt for question in asked]))
        return [question for question, found in zip(asked, predicted, strict=True) if found == question.answer]

    def examine(self, question: Question) -> Outcome:
        """Put the three questions to one prompt."""
        before = observe(self.replacement, question.prompt)
        start = city_position(self.model, question.prompt, question.city)
        members = supernode(self.features.of(question.state, question.city), before, start)
        ablation = [Intervention(layer, position, feature, value=0.0) for layer, position, feature, _ in members]
        other, swap = self.other_state(question, start)
        capital = f" {STATES[other].capital}"
        path, ablated, swapped = False, question.answer, question.answer
        if members:
            path = self.path(question, start, [f"{layer}_{feature}_{at}" for layer, at, feature, _ in members])
            ablated = self.top(before, ablation)
            swapped = self.top(before, ablation + swap)
        return Outcome(question, len(members), path, ablated, capital, swapped)

    def path(self, question: Question, start: int, members: Sequence[str]) -> bool:
        """Whether the pruned graph holds the path."""
        graph = attribute(self.model, self.transcoder, question.prompt, targets=TokenLogits(tokens=(question.answer,)))
        return holds_path(graph.prune(), start, members, self.model.token_ids([question.answer])[0][0])

    def top(self, before: Observed, interventions: Sequence[Intervention]) -> str:
        """The likeliest token with interventions."""
        return intervene(self.replacement, before, interventions, Iterative(), top=1).top_after[0].token

    def other_state(self, question: Question, start: int) -> tuple[str, list[Intervention]]:
        """The next state in the list that has features in the same sentence, and these features."""
        names = list(STATES)
        length = len(self.model.tokenize(question.prompt))
        following = names[names.index(question.state) + 1 :] + names[: names.index(question.state)]
        for name in following:
            for city in STATES[name].cities:
                prompt = question.prompt.replace(question.city, city)
                if len(self.model.tokenize(prompt)) != length:
                    continue  # another number of tokens: places would not correspond
                found = supernode(self.features.of(name, city), observe(self.replacement, prompt), start)
                if found:
                    return name, [
                        Intervention(layer, position, feature, value=self.strength * value)
                        for layer, position, feature, value in found
                    ]
        raise ValueError(f"no other state has features in {question.prompt!r}")


def table(outcomes: Sequence[Outcome], template_of: dict[str, str]) -> str:
    """One line per way of asking, and one for all."""
    lines = [f"{'prompt':<58}{'prompts':>8}{'features':>9}{'path':>7}{'ablation':>10}{'swap':>7}{'all':>7}"]
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(template_of[outcome.question.prompt], []).append(outcome)
    for name, found in (*sorted(rows.items()), ("all", list(outcomes))):
        path, ablation, swap, every = shares(found).values()
        features = sum(outcome.features for outcome in found) / len(found)
        lines.append(f"{name:<58}{len(found):>8}{features:>9.1f}{path:>7.0%}{ablation:>10.0%}{swap:>7.0%}{every:>7.0%}")
    return "\n".join(lines)


def shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Share of the prompts for which each answer is yes, and for which all are."""
    held = torch.tensor([[o.path, o.ablation, o.swap, o.path and o.ablation and o.swap] for o in outcomes])
    names = ("path_share", "ablation_share", "swap_share", "all_share")
    return dict(zip(names, held.float().mean(0).tolist(), strict=True))


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--transcoder", type=Path, default=None, help="its directory (default: the one that ships)")
    parser.add_argument("--limit", type=int, default=None, help="at most this many prompts (default: all)")
    parser.add_argument("--own", type=float, default=0.5, help="least share of the state's cities (default: 0.5)")
    parser.add_argument("--others", type=float, default=0.1, help="largest share of other cities (default: 0.1)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the features swapped in (default: 1)")
    parser.add_argument("--verbose", action="store_true", help="one line per prompt")
    arguments = parser.parse_args()
    started = time.monotonic()
    bench, asked = Bench(arguments), questions(arguments.limit)
    answered = bench.answered(asked)
    outcomes = [bench.examine(question) for question in answered]
    if arguments.verbose:
        for found in outcomes:
            print(f"{found.question.prompt!r}: {found}")
    print(table(outcomes, {q.prompt: q.prompt.replace(q.city, "...") for q in answered}))
    result = {**shares(outcomes), "prompts": len(answered), "asked": len(asked), "seconds": time.monotonic() - started}
    print(f"aim: all three for {AIM:.0%} of the prompts; {'reached' if result['all_share'] >= AIM else 'missed'}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
