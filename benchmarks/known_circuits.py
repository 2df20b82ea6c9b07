"""Two hops, seen and tested: does the graph hold the fact in the middle, and does the answer hang on it?

    python benchmarks/known_circuits.py                 the embedded model and its transcoder, all held-out prompts
    python benchmarks/known_circuits.py --development   what --factor and --threshold were chosen on

"The capital of the state containing Dallas is" -> " Austin" needs a fact that the prompt does not name: Texas. Which
features are a state's is found from one-hop prompts about its other cities (``state_features.py``). The supernode of
Texas is those of its features that lie on a path of positive edges from the city to the answer, in the graph pruned to
``--threshold`` of its influence. For each held-out two-hop prompt that the model answers rightly, three questions:

    path       is there such a path, so that the supernode has members?
    ablation   with the supernode at 0, is the answer no longer the likeliest token?
    swap       with another state's supernode in its place, as active as it is in the same sentence about a city of that
               state, is the likeliest token that state's capital?

    capital    with the supernode at 0, is the likeliest token another state's capital? Then only the state is lost, not
               what is asked about it
    many       is the answer lost as well with as many other features at 0, drawn at random at the same layers and
               positions?
    much       and with so many of them that they write as much (activation times decoder norm)?
    exchange   does the swap do the same with these (as many) of both sentences in the supernodes' place?
    strong     does the swap at ``--strength`` times the activation?

The last five belong to no aim: an ablation says something about the state as far as ``many`` and ``much`` are low, a
swap as far as ``exchange`` is. Interventions are iterative and nothing is frozen. They are done twice: in the model
itself, whose MLPs answer and whose errors (what the transcoder misses) go on speaking for the old state; and in the
model whose MLPs are the transcoder ("replaced"). The last line is JSON; its shares are those in the model itself.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
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

from open_clt.attribution.attribute import attribute
from open_clt.embedded import facts
from open_clt.embedded.evaluation import evaluation_prompts
from open_clt.embedded.tasks import two_hop_statements
from open_clt.graphs.targets import TokenLogits
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.interventions.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel

AIM = 0.8
DEVELOPMENT_PROMPTS = 200
STATES = {state.name: state for state in facts.STATES}
CAPITALS = {f" {state.capital}" for state in facts.STATES}


class Question(NamedTuple):
    """A two-hop prompt, taken apart."""

    prompt: str
    city: str
    state: str

    @property
    def answer(self) -> str:
        """The state's capital, as a token."""
        return f" {STATES[self.state].capital}"

    def about(self, city: str, state: str) -> Question:
        """The same sentence about another city."""
        return Question(self.prompt.replace(self.city, city), city, state)


class Supernode(NamedTuple):
    """A state's features in one prompt, and what is compared with them."""

    members: Activations
    many: Activations
    """As many others."""
    much: Activations
    """Others that write as much."""


class Changes(NamedTuple):
    """What is done to one prompt, one after the other."""

    ablation: list[Intervention]
    many: list[Intervention]
    much: list[Intervention]
    swap: list[Intervention]
    exchange: list[Intervention]
    strong: list[Intervention]


class Outcome(NamedTuple):
    """What came of it in one model: likeliest tokens, and the answer's probability."""

    question: Question
    other: Question
    features: int
    before: str
    tokens: dict[str, str]
    probabilities: dict[str, float]

    def held(self) -> dict[str, bool]:
        """Each question's answer."""
        lost = {name: token != self.question.answer for name, token in self.tokens.items()}
        path, ablation = self.features > 0, self.features > 0 and lost["ablation"]
        swap = self.tokens["swap"] == self.other.answer
        return {
            "path_share": path,
            "ablation_share": ablation,
            "swap_share": swap,
            "all_share": path and ablation and swap,
            "capital_share": ablation and self.tokens["ablation"] in CAPITALS,
            "control_many_share": lost["many"],
            "control_much_share": lost["much"],
            "control_exchange_share": self.tokens["exchange"] == self.other.answer,
            "strong_swap_share": self.tokens["strong"] == self.other.answer,
        }


def questions(limit: int | None, development: bool) -> list[Question]:
    """Two-hop prompts about capitals: those held out of training, or some of those that are not."""
    if development:
        pairs = [(s.prompt, s.intermediate) for s in two_hop_statements() if s.task == "two_hop" and not s.held_out]
        random.Random(0).shuffle(pairs)
        pairs = pairs[:DEVELOPMENT_PROMPTS]
    else:
        pairs = [(found.prompt, found.intermediate) for found in evaluation_prompts("two_hop")]
    return [_question(prompt, str(state).strip()) for prompt, state in pairs[:limit]]


def _question(prompt: str, state: str) -> Question:
    return Question(prompt, next(city for city in STATES[state].cities if city in prompt), state)


class Bench:
    """The model, what is known of its features, and the settings."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        if arguments.transcoder is None:
            clt = OpenCrossLayerTranscoder.from_pretrained(arguments.model)
        else:
            clt = OpenCrossLayerTranscoder(arguments.model)
            clt.load_model(arguments.transcoder)
        self.model, self.transcoder = clt.language_model, clt.transcoder
        self.models = {
            name: ReplacementModel(self.model, self.transcoder, error_correction=corrected)
            for name, corrected in (("itself", True), ("replaced", False))
        }
        self.features = StateFeatures(city_activations(self.model, self.transcoder), arguments.factor)
        self.norms = self.transcoder.decoder_norms().detach().cpu()
        self.threshold: float = arguments.threshold
        self.strength: float = arguments.strength
        self.generator = torch.Generator().manual_seed(arguments.seed)

    def examine(self, question: Question) -> dict[str, Outcome]:
        """Put every question to one prompt, in both models."""
        own = self.supernode(question)
        other, theirs = self.other_state(question)
        changes = self.changes(own, theirs)
        return {name: self.outcome(name, question, other, len(own.members), changes) for name in self.models}

    def supernode(self, question: Question) -> Supernode:
        """The state's features on the graph's paths from the city to the answer, and others to compare with."""
        start = city_position(self.model, question.prompt, question.city)
        pool = active(observe(self.models["itself"], question.prompt), start)
        target = TokenLogits(tokens=(question.answer,))
        graph = attribute(self.model, self.transcoder, question.prompt, targets=target).prune(self.threshold)
        mine = self.features.of(question.state, question.city)
        members = {
            place: pool[place]
            for place in sorted(on_path(graph, start) & pool.keys())
            if mine[int(place[1] > start), place[0], place[2]]
        }
        others = (matched(members, pool, self.norms, enough, self.generator) for enough in (as_many, as_much))
        return Supernode(members, *others)

    def other_state(self, question: Question) -> tuple[Question, Supernode]:
        """The next state in the list with a supernode in the same sentence about a city of its own."""
        names = list(STATES)
        length = len(self.model.tokenize(question.prompt))
        place = names.index(question.state)
        for name in names[place + 1 :] + names[:place]:
            for city in STATES[name].cities:
                other = question.about(city, name)
                if len(self.model.tokenize(other.prompt)) != length:
                    continue  # another number of tokens: places would not correspond
                found = self.supernode(other)
                if found.members:
                    return other, found
        raise ValueError(f"no other state has a supernode in {question.prompt!r}")

    def changes(self, own: Supernode, theirs: Supernode) -> Changes:
        """Ablations set to 0; swaps do, and set what stands in the other sentence as it is there."""
        ablation, many, much = (_set(places, 0.0) for places in own)
        return Changes(
            ablation=ablation,
            many=many,
            much=much,
            swap=ablation + _set(theirs.members, 1.0),
            exchange=many + _set(theirs.many, 1.0),
            strong=ablation + _set(theirs.members, self.strength),
        )

    def outcome(self, model: str, question: Question, other: Question, features: int, changes: Changes) -> Outcome:
        """Do all of it in one model."""
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


def _set(places: Activations, strength: float) -> list[Intervention]:
    return [Intervention(*place, value=strength * value) for place, value in places.items()]


def _probability(record: InterventionRecord, token: int) -> float:
    return float(record.logits_after[-1].softmax(-1)[token])


def shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Share of the prompts for which each answer is yes."""
    held = [outcome.held() for outcome in outcomes]
    return {name: sum(answers[name] for answers in held) / len(held) for name in held[0]}


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares, the answer's mean probability, features in a supernode, and how many prompts they are of."""
    count = len(outcomes)
    chances = {
        f"probability_{name}": sum(outcome.probabilities[name] for outcome in outcomes) / count
        for name in outcomes[0].probabilities
    }
    features = sum(outcome.features for outcome in outcomes) / count
    return {**shares(outcomes), **chances, "features": features, "prompts": count}


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per way of asking, and one for all."""
    heads = ("path", "ablation", "swap", "all", "capital", "many", "much", "exchange", "strong")
    lines = [f"{'prompt':<56}{'prompts':>8}{'features':>9}  " + "".join(f"{head:>9}" for head in heads)]
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.question.prompt.replace(outcome.question.city, "..."), []).append(outcome)
    for name, found in (*sorted(rows.items()), ("all", list(outcomes))):
        features = sum(outcome.features for outcome in found) / len(found)
        numbers = "".join(f"{share:>9.0%}" for share in shares(found).values())
        lines.append(f"{name:<56}{len(found):>8}{features:>9.1f}  {numbers}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--transcoder", type=Path, help="a transcoder's directory (default: the embedded one)")
    parser.add_argument("--limit", type=int, help="ask at most this many prompts (default: all)")
    parser.add_argument("--development", action="store_true", help="ask prompts that are not held out")
    parser.add_argument("--factor", type=float, default=1.25, help="how much more active (default: 1.25)")
    parser.add_argument("--threshold", type=float, default=0.9, help="influence in the graph (default: 0.9)")
    parser.add_argument("--strength", type=float, default=2.0, help="of the strong swap (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the controls' draws (default: 0)")
    parser.add_argument("--verbose", action="store_true", help="one line per prompt")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    bench, asked = Bench(chosen), questions(chosen.limit, chosen.development)
    examined = [bench.examine(question) for question in asked]
    results: dict[str, dict[str, float]] = {}
    for name, title in (("itself", "In the model itself"), ("replaced", "In the model whose MLPs are the transcoder")):
        outcomes = [found[name] for found in examined]
        right = [outcome for outcome in outcomes if outcome.before == outcome.question.answer]
        if chosen.verbose:
            print("\n".join(map(str, outcomes)))
        print(f"{title} ({len(right)} of {len(asked)} prompts answered rightly)\n{table(right)}\n")
        results[name] = {key: round(value, 4) for key, value in summary(right).items()}
    reached = "reached" if results["itself"]["all_share"] >= AIM else "missed"
    print(f"aim: path, ablation and swap for {AIM:.0%} of the prompts in the model itself; {reached}")
    times = {"asked": len(asked), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({**results["itself"], **times, "replaced": results["replaced"]}))


if __name__ == "__main__":
    main()
