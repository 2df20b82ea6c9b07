"""Two hops, seen and tested: does the graph hold the fact in the middle, and does the answer hang on it?

    python benchmarks/known_circuits.py                      the embedded model and its transcoder
    python benchmarks/known_circuits.py --replaced           the same in the model whose MLPs are the transcoder

"The capital of the state containing Dallas is" -> " Austin" needs a fact that the prompt does not name: Texas. For each
held-out two-hop prompt that the embedded model answers rightly, three questions:

    path       in the pruned graph, do positive edges lead from the city over a feature of the state to the answer?
    ablation   with all features of the state at 0, is the answer no longer the likeliest token?
    swap       with another state's features in their place, is the likeliest token that state's capital?

Which features are a state's is found without two-hop prompts, capitals or answers: from one-hop prompts ("Dallas is a
city in", every way of saying it) about the cities of all states. A feature counts as active for a city if it is active
at the city's token or later in at least half of the prompts about it. It is one of a state's features if it is active
for most of the state's cities (``--own``) and not for most cities of other states (``--others``): the model writes a
state as a combination of features, most of which it shares with some other states, so that few belong to one alone. The
city that a two-hop prompt asks about does not vote, nor do state capitals. The supernode is those of the state's
features that are active in the two-hop prompt at the city's token or later.

Interventions are iterative and nothing is frozen. By default they are on the model itself, whose MLPs answer and whose
errors (what the transcoder misses) go on speaking for the old state; with ``--replaced`` they are on the model whose
MLPs are the transcoder, on the prompts that it answers rightly. What is swapped in is as active as it is in the same
sentence about a city of the other state; ``strong`` is the same swap with ``--strength`` times that. ``control`` sets
as many other features to 0, drawn at random from those active at the same positions: an ablation says something about
the state as far as it breaks more answers than that. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

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

Place: TypeAlias = tuple[int, int, int]
"""Layer, position and feature."""


class Question(NamedTuple):
    """A two-hop prompt, taken apart."""

    prompt: str
    answer: str
    city: str
    state: str


class Outcome(NamedTuple):
    """What was found for one prompt; tokens are the likeliest ones."""

    question: Question
    features: int
    """Features of the state that are active."""
    path: bool
    ablated: str
    control: str
    """With as many other features at 0."""
    other_capital: str
    swapped: str
    swapped_strongly: str

    def held(self) -> dict[str, bool]:
        """Each question's answer."""
        ablation = self.features > 0 and self.ablated != self.question.answer
        swap = self.swapped == self.other_capital
        return {
            "path_share": self.path,
            "ablation_share": ablation,
            "swap_share": swap,
            "all_share": self.path and ablation and swap,
            "control_share": self.control != self.question.answer,
            "strong_swap_share": self.swapped_strongly == self.other_capital,
        }


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


def supernode(features: Tensor, run: Observed, start: int) -> dict[Place, float]:
    """Where features of a (layer, feature) mask are active from a position on, and how much."""
    found: dict[Place, float] = {}
    for layer, active in enumerate(run.features):
        mine = features[layer][active.features.cpu()] & (active.rows.cpu() >= start) & (active.values.cpu() > 0)
        columns = (column.cpu()[mine].tolist() for column in (active.rows, active.features, active.values))
        found |= {(layer, position, feature): value for position, feature, value in zip(*columns, strict=True)}
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
        self.replacement = ReplacementModel(self.model, self.transcoder, error_correction=not arguments.replaced)
        self.features = StateFeatures(self.replacement, arguments.own, arguments.others)
        self.strength: float = arguments.strength
        self.generator = torch.Generator().manual_seed(arguments.seed)

    def answered(self, asked: Sequence[Question]) -> list[Question]:
        """The questions that the model answers rightly."""
        found = [observe(self.replacement, question.prompt).logits[-1].argmax() for question in asked]
        names = self.model.token_strings(torch.stack(found))
        return [question for question, name in zip(asked, names, strict=True) if name == question.answer]

    def examine(self, question: Question) -> Outcome:
        """Put every question to one prompt."""
        before = observe(self.replacement, question.prompt)
        start = city_position(self.model, question.prompt, question.city)
        members = supernode(self.features.of(question.state, question.city), before, start)
        other, theirs = self.other_state(question, start)
        without = [Intervention(*place, value=0.0) for place in members]
        control = [Intervention(*place, value=0.0) for place in self.others(before, start, members)]
        swapped, strongly = (
            [Intervention(*place, value=strength * value) for place, value in theirs.items()]
            for strength in (1.0, self.strength)
        )
        names = [f"{layer}_{feature}_{position}" for layer, position, feature in members]
        return Outcome(
            question=question,
            features=len(members),
            path=self.path(question, start, names),
            ablated=self.top(before, without),
            control=self.top(before, control),
            other_capital=f" {STATES[other].capital}",
            swapped=self.top(before, without + swapped),
            swapped_strongly=self.top(before, without + strongly),
        )

    def others(self, before: Observed, start: int, members: Collection[Place]) -> list[Place]:
        """As many features as a supernode has, drawn from the others that are active at its positions."""
        every = torch.ones(self.transcoder.config.n_layers, self.transcoder.config.n_features, dtype=torch.bool)
        positions = {position for _, position, _ in members}
        pool = [place for place in supernode(every, before, start) if place[1] in positions and place not in members]
        order = torch.randperm(len(pool), generator=self.generator)[: len(members)]
        return [pool[number] for number in order.tolist()]

    def path(self, question: Question, start: int, members: Sequence[str]) -> bool:
        """Whether the pruned graph holds the path."""
        graph = attribute(self.model, self.transcoder, question.prompt, targets=TokenLogits(tokens=(question.answer,)))
        return holds_path(graph.prune(), start, members, self.model.token_ids([question.answer])[0][0])

    def top(self, before: Observed, interventions: Sequence[Intervention]) -> str:
        """The likeliest token with interventions."""
        return intervene(self.replacement, before, interventions, Iterative(), top=1).top_after[0].token

    def other_state(self, question: Question, start: int) -> tuple[str, dict[Place, float]]:
        """The next state in the list with features in the same sentence about a city of its own, and these features."""
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
                    return name, found
        raise ValueError(f"no other state has features in {question.prompt!r}")


def table(outcomes: Sequence[Outcome], template_of: dict[str, str]) -> str:
    """One line per way of asking, and one for all."""
    heads = ("path", "ablation", "swap", "all", "control", "strong")
    lines = [f"{'prompt':<56}{'prompts':>8}{'features':>9}" + "".join(f"{head:>11}" for head in heads)]
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(template_of[outcome.question.prompt], []).append(outcome)
    for name, found in (*sorted(rows.items()), ("all", list(outcomes))):
        features = sum(outcome.features for outcome in found) / len(found)
        numbers = "".join(f"{share:>11.0%}" for share in shares(found).values())
        lines.append(f"{name:<56}{len(found):>8}{features:>9.1f}{numbers}")
    return "\n".join(lines)


def shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Share of the prompts for which each answer is yes."""
    held = [outcome.held() for outcome in outcomes]
    return {name: sum(answers[name] for answers in held) / len(held) for name in held[0]}


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--transcoder", type=Path, default=None, help="its directory (default: the one that ships)")
    parser.add_argument("--limit", type=int, default=None, help="at most this many prompts (default: all)")
    parser.add_argument("--own", type=float, default=0.5, help="least share of the state's cities (default: 0.5)")
    parser.add_argument("--others", type=float, default=0.5, help="largest share of other cities (default: 0.5)")
    parser.add_argument("--strength", type=float, default=2.0, help="of the strong swap (default: 2)")
    parser.add_argument("--replaced", action="store_true", help="in the model whose MLPs are the transcoder")
    parser.add_argument("--seed", type=int, default=0, help="of the control's draws (default: 0)")
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
    result = {name: round(number, 4) for name, number in result.items()}
    print(f"aim: all three for {AIM:.0%} of the prompts; {'reached' if result['all_share'] >= AIM else 'missed'}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
