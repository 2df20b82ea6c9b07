"""Two-hop benchmark: does the graph hold the fact in the middle, and does the answer depend on it?

    python benchmarks/truth/known_circuits.py                the embedded model and its transcoder, all held-out prompts
    python benchmarks/truth/known_circuits.py --development  the prompts that chose --factor and --threshold

"The capital of the state containing Dallas is" -> " Austin" needs a fact that the prompt does not name: Texas. The
features of a state are found with one-hop prompts about its other cities (``state_features.py``). The supernode of
Texas holds those of its features that lie on a path of positive edges from the city to the answer, in the graph that is
pruned to ``--threshold`` of its influence. Three questions are asked about each held-out two-hop prompt that the model
answers correctly:

    path       Is there such a path, so that the supernode has members?
    ablation   With the supernode at 0, is the answer no longer the likeliest token?
    swap       With another state's supernode in its place, as active as it is in the same sentence about a city of that
               state, is the likeliest token the other state's capital?

Five more questions help to read the answers:

    capital    With the supernode at 0, is the likeliest token another state's capital? Then the model has lost only the
               state, and not what the prompt asks about the state.
    many       Is the answer also lost with the same number of other features at 0, drawn at random at the same layers
               and positions?
    much       Is the answer also lost with other features at 0 that together write as much (activation times decoder
               norm)?
    exchange   Does the swap have the same effect if the features of "many" take the place of both supernodes?
    strong     Does the swap work at ``--strength`` times the activation?

The aim is about the first three questions only. The lower ``many`` and ``much`` are, the more an ablation says about
the state; the lower ``exchange`` is, the more a swap says about it. Interventions are iterative, and nothing is frozen.
All interventions are made in two models: in the language model itself, whose MLPs compute as before and whose errors
(what the transcoder misses) still carry the old state; and in the model whose MLPs are replaced by the transcoder
("replaced"). The last line is JSON; its shares are those in the language model itself.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from dictionaries import Dictionary, Graphs
from state_features import (
    Activations,
    StateFeatures,
    active,
    as_many,
    as_much,
    city_activations,
    city_position,
    matched,
    on_path,
)

from open_clt.embedded import facts
from open_clt.embedded.evaluation import evaluation_prompts
from open_clt.embedded.tasks import two_hop_statements
from open_clt.errors import AttributionError
from open_clt.replacement.interventions.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import observe

AIM = 0.8
DEVELOPMENT_PROMPTS = 200
_FACTOR = "least ratio of a feature's activation for its state's cities to that for other cities (default: 1.25)"
STATES = {state.name: state for state in facts.STATES}
CAPITALS = {f" {state.capital}" for state in facts.STATES}


class Question(NamedTuple):
    """A two-hop prompt with its city and the state of the city."""

    prompt: str
    city: str
    state: str

    @property
    def answer(self) -> str:
        """The state's capital, as a token."""
        return f" {STATES[self.state].capital}"

    def about(self, city: str, state: str) -> Question:
        """The same sentence about another city, of another state."""
        return Question(self.prompt.replace(self.city, city), city, state)


class Supernode(NamedTuple):
    """The activations of a state's features in one prompt, and of the features that serve as controls."""

    members: Activations
    many: Activations
    """Other features, the same number."""
    much: Activations
    """Other features that together write as much."""


class Changes(NamedTuple):
    """The interventions on one prompt; each list is applied by itself."""

    ablation: list[Intervention]
    many: list[Intervention]
    much: list[Intervention]
    swap: list[Intervention]
    exchange: list[Intervention]
    strong: list[Intervention]


class Outcome(NamedTuple):
    """The outcome of one prompt in one model."""

    question: Question
    other: Question | None
    """The question of the state that is swapped in; None if no other state has a supernode."""
    features: int
    """Members of the supernode."""
    before: str
    """The likeliest token before any intervention."""
    tokens: dict[str, str]
    """The likeliest token after each kind of intervention."""
    probabilities: dict[str, float]
    """The probability of the answer, before and after some kinds of intervention."""

    def held(self) -> dict[str, bool]:
        """The answer to each question of this benchmark, by the name of its share."""
        lost = {name: token != self.question.answer for name, token in self.tokens.items()}
        path, ablation = self.features > 0, self.features > 0 and lost["ablation"]
        expected = None if self.other is None else self.other.answer
        swap = self.tokens["swap"] == expected
        return {
            "path_share": path,
            "ablation_share": ablation,
            "swap_share": swap,
            "all_share": path and ablation and swap,
            "capital_share": ablation and self.tokens["ablation"] in CAPITALS,
            "control_many_share": lost["many"],
            "control_much_share": lost["much"],
            "control_exchange_share": self.tokens["exchange"] == expected,
            "strong_swap_share": self.tokens["strong"] == expected,
        }


def questions(limit: int | None, development: bool) -> list[Question]:
    """Two-hop prompts about capitals: the held-out ones, or for ``development`` some of those that are not held out."""
    if development:
        statements = [
            statement for statement in two_hop_statements() if statement.task == "two_hop" and not statement.held_out
        ]
        pairs = [(statement.prompt, statement.intermediate) for statement in statements]
        random.Random(0).shuffle(pairs)
        pairs = pairs[:DEVELOPMENT_PROMPTS]
    else:
        pairs = [(statement.prompt, statement.intermediate) for statement in evaluation_prompts("two_hop")]
    return [question_of(prompt, str(state).strip()) for prompt, state in pairs[:limit]]


def question_of(prompt: str, state: str) -> Question:
    """The question of a prompt about one of a state's cities."""
    return Question(prompt, next(city for city in STATES[state].cities if city in prompt), state)


class Chosen(NamedTuple):
    """The settings."""

    factor: float = 1.25
    """Least ratio of a feature's activation for its state's cities to that for other cities."""
    threshold: float = 0.9
    """Influence that pruning keeps."""
    strength: float = 2.0
    """Factor of the strong swap."""
    seed: int = 0
    """Seed of the draw of the controls."""


class Bench:
    """The model, the features of each state, and the settings."""

    def __init__(self, dictionary: Dictionary, graphs: Graphs, chosen: Chosen) -> None:
        self.model, self.transcoder, self.graphs = dictionary.model, dictionary.transcoder, graphs
        self.models = dictionary.models()
        self.features = StateFeatures(city_activations(self.model, self.transcoder), chosen.factor)
        self.norms = self.transcoder.decoder_norms().detach().cpu()
        self.threshold, self.strength = chosen.threshold, chosen.strength
        self.generator = torch.Generator().manual_seed(chosen.seed)

    def examine(self, question: Question, models: Sequence[str] = ("itself", "replaced")) -> dict[str, Outcome]:
        """Answer every question about one prompt, in some models.

        Raises AttributionError if the graphs of this prompt, or of all other cities in its place, do not exist.
        """
        supernode = self.supernode(question)
        other, other_supernode = self.other_state(question)
        changes = self.changes(supernode, other_supernode)
        return {name: self.outcome(name, question, other, len(supernode.members), changes) for name in models}

    def supernode(self, question: Question) -> Supernode:
        """The state's features on the graph's paths from the city to the answer, with their controls."""
        start = city_position(self.model, question.prompt, question.city)
        pool = active(observe(self.models["itself"], question.prompt), start)
        graph = self.graphs.of(question.prompt, question.answer).prune(self.threshold)
        is_of_state = self.features.of(question.state, question.city)
        members = {
            (layer, position, feature): pool[layer, position, feature]
            for layer, position, feature in sorted(on_path(graph, start) & pool.keys())
            if is_of_state[int(position > start), layer, feature]
        }
        controls = (matched(members, pool, self.norms, enough, self.generator) for enough in (as_many, as_much))
        return Supernode(members, *controls)

    def other_state(self, question: Question) -> tuple[Question | None, Supernode]:
        """The next state in the list that has a supernode in the same sentence about one of its cities.

        Without any, there is none, and its supernode is empty.
        """
        seen, states = 0, list(STATES)
        length = len(self.model.tokenize(question.prompt))
        index = states.index(question.state)
        for state in states[index + 1 :] + states[:index]:
            for city in STATES[state].cities:
                other = question.about(city, state)
                if len(self.model.tokenize(other.prompt)) != length:
                    continue  # with another number of tokens, positions in the two prompts would not correspond
                if not self.graphs.has(other.prompt):
                    continue
                supernode, seen = self.supernode(other), seen + 1
                if supernode.members:
                    return other, supernode
        if not seen:
            raise AttributionError(f"There is no graph of another city in the place of {question.city!r}.")
        return None, Supernode({}, {}, {})

    def changes(self, supernode: Supernode, other: Supernode) -> Changes:
        """Ablations set features to 0; swaps also set the other state's features to their values in its sentence."""
        ablation, many, much = (_set(activations, 0.0) for activations in supernode)
        return Changes(
            ablation=ablation,
            many=many,
            much=much,
            swap=ablation + _set(other.members, 1.0),
            exchange=many + _set(other.many, 1.0),
            strong=ablation + _set(other.members, self.strength),
        )

    def outcome(
        self, model: str, question: Question, other: Question | None, features: int, changes: Changes
    ) -> Outcome:
        """Make all interventions in one model."""
        before = observe(self.models[model], question.prompt)
        answer = self.model.token_ids([question.answer])[0][0]
        records = {
            name: intervene(self.models[model], before, interventions, Iterative(), top=1)
            for name, interventions in changes._asdict().items()
        }
        return Outcome(
            question=question,
            other=other,
            features=features,
            before=self.model.token_strings(before.logits[-1:].argmax(-1))[0],
            tokens={name: record.top_after[0].token for name, record in records.items()},
            probabilities={
                "before": float(before.logits[-1].softmax(-1)[answer]),
                **{name: _probability(records[name], answer) for name in ("ablation", "many", "much")},
            },
        )


def _set(activations: Activations, strength: float) -> list[Intervention]:
    return [Intervention(*place, value=strength * value) for place, value in activations.items()]


def _probability(record: InterventionRecord, token: int) -> float:
    return float(record.logits_after[-1].softmax(-1)[token])


def shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """For each question, the share of the prompts for which the answer is yes."""
    answers = [outcome.held() for outcome in outcomes]
    return {name: sum(held[name] for held in answers) / len(answers) for name in answers[0]}


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares, the mean probability of the answer, the mean number of features in a supernode, and the prompts."""
    count = len(outcomes)
    probabilities = {
        f"probability_{name}": sum(outcome.probabilities[name] for outcome in outcomes) / count
        for name in outcomes[0].probabilities
    }
    features = sum(outcome.features for outcome in outcomes) / count
    return {**shares(outcomes), **probabilities, "features": features, "prompts": count}


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each wording of the question, and one for all prompts."""
    columns = ("path", "ablation", "swap", "all", "capital", "many", "much", "exchange", "strong")
    lines = [f"{'prompt':<56}{'prompts':>8}{'features':>9}  " + "".join(f"{column:>9}" for column in columns)]
    by_wording: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_wording.setdefault(outcome.question.prompt.replace(outcome.question.city, "..."), []).append(outcome)
    for wording, group in (*sorted(by_wording.items()), ("all", list(outcomes))):
        features = sum(outcome.features for outcome in group) / len(group)
        cells = "".join(f"{share:>9.0%}" for share in shares(group).values())
        lines.append(f"{wording:<56}{len(group):>8}{features:>9.1f}  {cells}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask every question, count the answers, and print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--transcoder", help="directory of a transcoder, or neurons (default: the embedded one)")
    parser.add_argument("--limit", type=int, help="use at most this many prompts (default: all)")
    parser.add_argument("--development", action="store_true", help="use prompts that are not held out")
    parser.add_argument("--factor", type=float, default=1.25, help=_FACTOR)
    parser.add_argument("--threshold", type=float, default=0.9, help="influence that pruning keeps (default: 0.9)")
    parser.add_argument("--strength", type=float, default=2.0, help="factor of the strong swap (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of the controls (default: 0)")
    parser.add_argument("--verbose", action="store_true", help="print one line for each prompt")
    chosen = parser.parse_args(arguments)
    started, settings = time.monotonic(), Chosen(chosen.factor, chosen.threshold, chosen.strength, chosen.seed)
    dictionary = Dictionary.load(chosen.transcoder, chosen.model)
    bench, asked = Bench(dictionary, Graphs(dictionary), settings), questions(chosen.limit, chosen.development)
    examined = [bench.examine(question) for question in asked]
    results: dict[str, dict[str, float]] = {}
    for name, title in (("itself", "In the model itself"), ("replaced", "In the model whose MLPs are the transcoder")):
        outcomes = [by_model[name] for by_model in examined]
        correct = [outcome for outcome in outcomes if outcome.before == outcome.question.answer]
        if chosen.verbose:
            print("\n".join(map(str, outcomes)))
        print(f"{title} ({len(correct)} of {len(asked)} prompts answered correctly)\n{table(correct)}\n")
        results[name] = {key: round(value, 4) for key, value in summary(correct).items()}
    reached = "reached" if results["itself"]["all_share"] >= AIM else "missed"
    print(f"aim: path, ablation and swap for {AIM:.0%} of the prompts in the model itself; {reached}")
    times = {"asked": len(asked), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({**results["itself"], **times, "replaced": results["replaced"]}))


if __name__ == "__main__":
    main()
