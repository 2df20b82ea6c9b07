"""Attention benchmark: do the pairs of sources that explain a head say what the task's rule says?

    python benchmarks/truth/attention.py                 held-out prompts
    python benchmarks/truth/attention.py --development   the prompts on which the definitions were made

The tasks are induction, indirect object, pronoun and agreement of the embedded model; ``attention_rules.py`` says
which look each rule is about, and makes prompts in which only the property of the rule is changed, or something else.
Prompts that the model answers wrongly are left out. For each prompt:

    head     The head that carries the largest part of the difference between the logits of the answer and of a wrong
             answer for that look, over all paths of the graph (``attention_flow.py``).
    table    The pairs of sources of its score for the key, less that for another key, without constants and without the
             first position, which holds BOS in all prompts. The top pair is the one with the largest positive entry.
    source   A source is about a property if it is a feature whose activation, averaged over the prompts in which the
             property is changed, is less than half of its activation in the prompt, or a token that is changed.
    right    A pair is right if each side that the rule asks about is about the rule's property and not about the other
             one. Errors are never right.

Columns of the table, all shares of the prompts:

    pair      The top pair is right.
    of 5      One of the five largest pairs is right.
    property  Control: the top pair is about the other property and not about the rule's.
    key       Control: the top pair is right, for the same head and a random key.
    head      Control: the top pair is right, for a random head and the same positions.
    lower     The attention to the key falls if the features of the top pair are set to 0 and all later layers are
              computed anew, of the prompts whose top pair has features ("ablated").
    change    The mean change of the attention by that ablation; "control" is that of other features at the same layers
              and positions, each with the most similar product of activation and decoder norm.
    looks     The mean attention to the key in the prompt; "changed" and "other" in the prompts of the key's side.

The aim is a right top pair in 80 % of the prompts of each task, and at most 10 % for controls. The last line is JSON:
``pair_share`` and ``control_share`` (the largest control) are means over the tasks, and ``worst_missing`` is the
largest difference between a score and the sum of its table, as a share of the absolute entries.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from attention_flow import head_flow
from attention_rules import TASKS, Question, Reader, Sides, Tokens

from open_clt.attribution.attention_table import AttentionExplanation, Look, Pair
from open_clt.attribution.qk import AttentionExplainer
from open_clt.graphs.nodes import NodeId, NodeKind
from open_clt.graphs.targets import LogitDifference
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.transcoder import Transcoder

AIM, CONTROL_AIM, LEAST, TOP = 0.8, 0.1, 0.5, 5
_PAIRS = 200
"""Number of pairs among which the largest positive ones are looked for."""


class Ablation(NamedTuple):
    """The change of the attention to the key by an ablation, and by that of features of the same size."""

    change: float
    control: float


class Outcome(NamedTuple):
    """What was measured on one prompt."""

    head: str
    right: bool
    right_of_top: bool
    wrong_property: bool
    wrong_key: bool
    random_head: bool
    ablation: Ablation | None
    looks: float
    changed: float
    other: float
    missing: float


class Seen:
    """What the model computes on one prompt: its features, and its attention."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.values = {
            (layer, position, feature): value
            for layer, codes in enumerate(observed.features)
            for position, feature, value in zip(
                codes.rows.tolist(), codes.features.tolist(), codes.values.tolist(), strict=True
            )
        }

    def attention(self, look: Look) -> float:
        """The attention of a look."""
        return _attention(self.observed, look)


def _attention(observed: Observed, look: Look) -> float:
    pattern = observed.frozen[f"blocks.{look.layer}.attn.hook_pattern"]
    return float(pattern.reshape(-1, *pattern.shape[-2:])[look.head, look.query, look.key])


class Bench:
    """The model, its transcoder, and a source of random numbers."""

    def __init__(self, model: LanguageModel, transcoder: Transcoder, seed: int) -> None:
        self.model, self.transcoder = model, transcoder
        self.replacement = ReplacementModel(self.model, self.transcoder, error_correction=True)
        self.norms = self.transcoder.decoder_norms().detach().cpu()
        self.random = random.Random(seed)

    def seen(self, tokens: Tokens) -> Seen:
        """Run the model on a prompt."""
        return Seen(observe(self.replacement, tokens))

    def outcomes(self, reader: Reader, task: str, count: int, *, development: bool = False) -> list[Outcome]:
        """Measure ``count`` prompts of a task that the model answers correctly, or fewer if there are fewer."""
        examined = (self.examine(question) for question in reader.questions(task, held_out=not development))
        return list(islice((outcome for outcome in examined if outcome is not None), count))

    def examine(self, question: Question) -> Outcome | None:
        """Measure everything on one prompt; None if the model's answer is wrong."""
        seen = self.seen(question.tokens)
        if int(seen.observed.logits[-1].argmax()) != question.answer:
            return None
        explainer = AttentionExplainer(self.model, self.transcoder, question.tokens)
        look = self.look(question, explainer)
        random_key, random_head = self.controls(look, explainer)
        judge = Judge(question, seen, *map(self.sides, (question.changed, question.other)))
        explained = explainer.explain_all((look, random_key, random_head))
        by_look = {explanation.look: explanation for explanation in explained}
        pairs = {each: largest(explanation) for each, explanation in by_look.items()}
        right = [judge.is_right(pair) for pair in pairs[look]]
        first = {each: found[:1] for each, found in pairs.items()}  # none if no pair attracts the head
        return Outcome(
            head=f"{look.layer}.{look.head}",
            right=any(right[:1]),
            right_of_top=any(right),
            wrong_property=any(judge.is_right(pair, swapped=True) for pair in first[look]),
            wrong_key=any(map(judge.is_right, first[random_key])),
            random_head=any(map(judge.is_right, first[random_head])),
            ablation=self.ablation(seen, look, first[look]),
            looks=seen.attention(look),
            changed=_mean([each.attention(look) for each in judge.changed["key"]]),
            other=_mean([each.attention(look) for each in judge.other["key"]]),
            missing=max(explanation.check() for explanation in by_look.values()),
        )

    def sides(self, sides: Sides) -> dict[str, list[Seen]]:
        """Run the model on the prompts of both sides."""
        return {side: [self.seen(tokens) for tokens in getattr(sides, side)] for side in ("query", "key")}

    def look(self, question: Question, explainer: AttentionExplainer) -> Look:
        """The look that carries the largest part of the answer, compared with another key."""
        target = LogitDifference(positive=question.answer, negative=question.wrong)
        flow = head_flow(self.model, self.transcoder, question.tokens, target)
        allowed = torch.zeros_like(flow, dtype=torch.bool)
        queries = slice(None) if question.query is None else question.query
        allowed[:, :, queries, slice(1, None) if question.key is None else question.key] = True
        length = flow.shape[-1]
        allowed &= torch.ones(length, length).tril(-1).bool()
        best = int(torch.where(allowed, flow, -torch.inf).argmax())
        layer, head, query, key = (int(index) for index in torch.unravel_index(torch.tensor(best), flow.shape))
        versus = (
            self.other_key(explainer, Look(layer, head, query, key)) if question.versus is None else question.versus
        )
        return Look(layer, head, query, key, versus)

    def other_key(self, explainer: AttentionExplainer, look: Look) -> int:
        """The key with the most attention of all others but the first."""
        attention = explainer.scores[look.layer].pattern[look.head, look.query].clone()
        attention[[0, look.key]] = -1
        return int(attention.argmax())

    def controls(self, look: Look, explainer: AttentionExplainer) -> tuple[Look, Look]:
        """The same head at two random keys, and a random other head at the same positions."""
        keys = [key for key in range(look.query + 1) if key not in (look.key, look.versus)]
        key, versus = self.random.sample(keys, 2)
        heads = [(layer, head) for layer, scores in enumerate(explainer.scores) for head in range(scores.n_heads)]
        heads.remove((look.layer, look.head))
        layer, head = self.random.choice(heads)
        return look._replace(key=key, versus=versus), look._replace(layer=layer, head=head)

    def ablation(self, seen: Seen, look: Look, pairs: Sequence[Pair]) -> Ablation | None:
        """Set the features of pairs to 0, and then others of the same size; None if the pairs have no features."""
        members = {
            (node.layer, int(node.position or 0), node.index)
            for pair in pairs
            for node in (pair.query, pair.key)
            if node.kind is NodeKind.FEATURE
        }
        if not members:
            return None
        others = {self.like(seen, member, members) for member in members} - {None}
        before = seen.attention(look)
        changes = []
        for places in (members, others):
            interventions = [Intervention(*place, value=0.0) for place in places if place is not None]
            record = intervene(self.replacement, seen.observed, interventions, Iterative(), top=1)
            changes.append(_attention(record.after, look) - before)
        return Ablation(*changes)

    def like(
        self, seen: Seen, member: tuple[int, int, int], members: set[tuple[int, int, int]]
    ) -> tuple[int, int, int] | None:
        """The feature at the same layer and position whose activation times decoder norm is most similar."""

        def size(place: tuple[int, int, int]) -> float:
            return abs(seen.values[place]) * float(self.norms[place[0], place[2]])

        others = [place for place in seen.values if place[:2] == member[:2] and place not in members]
        return min(others, key=lambda place: abs(size(place) - size(member)), default=None)


class Judge:
    """Says which sources are about the property of a rule."""

    def __init__(
        self, question: Question, seen: Seen, changed: dict[str, list[Seen]], other: dict[str, list[Seen]]
    ) -> None:
        self.question, self.seen, self.changed, self.other = question, seen, changed, other

    def is_right(self, pair: Pair, *, swapped: bool = False) -> bool:
        """Whether each side that the rule asks about is about its property; ``swapped`` asks about the other one."""
        mine, others = ("other", "changed") if swapped else ("changed", "other")
        return all(
            self._is_about(node, mine, side) and not self._is_about(node, others, side)
            for side, node in (("query", pair.query), ("key", pair.key))
            if getattr(self.question.changed, side)
        )

    def _is_about(self, node: NodeId, which: str, side: str) -> bool:
        position = node.position or 0
        if node.kind is NodeKind.EMBEDDING:
            prompts = getattr(getattr(self.question, which), side)
            return any(tokens[position] != self.question.tokens[position] for tokens in prompts)
        if node.kind is not NodeKind.FEATURE:
            return False
        place = (node.layer, position, node.index)
        values = [each.values.get(place, 0.0) for each in getattr(self, which)[side]]
        return _mean(values) / self.seen.values[place] < LEAST


def largest(explanation: AttentionExplanation) -> list[Pair]:
    """The pairs with the largest positive entries, without constants and without the first position."""
    pairs = [
        pair
        for pair in explanation.pairs(_PAIRS, constants=False)
        if pair.weight > 0 and pair.query.position and pair.key.position
    ]
    return pairs[:TOP]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares and means over the prompts of one task."""
    ablations = [outcome.ablation for outcome in outcomes if outcome.ablation is not None]
    columns = {
        "pair": "right",
        "of_5": "right_of_top",
        "property": "wrong_property",
        "key": "wrong_key",
        "head": "random_head",
    }
    return {
        "prompts": len(outcomes),
        **{name: _mean([getattr(outcome, column) for outcome in outcomes]) for name, column in columns.items()},
        "ablated": len(ablations),
        "lower": _mean([ablation.change < 0 for ablation in ablations]),
        "change": _mean([ablation.change for ablation in ablations]),
        "control": _mean([ablation.control for ablation in ablations]),
        **{name: _mean([getattr(outcome, name) for outcome in outcomes]) for name in ("looks", "changed", "other")},
    }


def table(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    """Yield the lines of the table, and of the heads of each task."""
    rows = {task: summary(of_task) for task, of_task in outcomes.items()}
    yield f"{'task':<16}" + "".join(f"{name:>9}" for name in next(iter(rows.values())))
    for task, row in rows.items():
        yield f"{task:<16}" + "".join(
            f"{value:>9}" if isinstance(value, int) else f"{value:>9.2f}" for value in row.values()
        )
    for task, of_task in outcomes.items():
        heads = Counter(outcome.head for outcome in of_task).most_common(6)
        yield f"heads of {task}: " + ", ".join(f"{head} ({count})" for head, count in heads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine the prompts of every task, and print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each task (default: 100)")
    parser.add_argument("--development", action="store_true", help="use prompts that are not held out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of prompts and controls (default: 0)")
    chosen = parser.parse_args(arguments)
    started, clt = time.monotonic(), OpenCrossLayerTranscoder.from_pretrained("embedded")
    bench = Bench(clt.language_model, clt.transcoder, chosen.seed)
    reader = Reader(bench.model, chosen.seed)
    outcomes = {task: bench.outcomes(reader, task, chosen.prompts, development=chosen.development) for task in TASKS}
    print("\n".join(table(outcomes)))
    rows = {task: summary(of_task) for task, of_task in outcomes.items()}
    controls = [_mean([row[name] for row in rows.values()]) for name in ("property", "key", "head")]
    reached = all(row["pair"] >= AIM for row in rows.values()) and max(controls) <= CONTROL_AIM
    verdict = "reached" if reached else "missed"
    print(f"aim: right in {AIM:.0%} of each task's prompts, controls at most {CONTROL_AIM:.0%}; {verdict}")
    content = {
        "pair_share": round(_mean([row["pair"] for row in rows.values()]), 4),
        "control_share": round(max(controls), 4),
        "worst_missing": max(outcome.missing for of_task in outcomes.values() for outcome in of_task),
        "tasks": {task: {name: round(value, 4) for name, value in row.items()} for task, row in rows.items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(content))


if __name__ == "__main__":
    main()
