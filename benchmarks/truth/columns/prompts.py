"""The columns of prompts whose cue is known: what the graph of the answer says, and what the model does.

``suite.py`` says what each column is. A prompt that the model answers wrongly, or that has no graph, is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cached_property
from typing import final

import torch
from columns.bypass import SHORTCUT, bypass_share, state_nodes, states
from columns.shares import Numbers
from dictionaries import Dictionary, Graphs
from known_circuits import Bench, Chosen, question_of
from known_prompts import KnownPrompt, known_prompts
from state_features import Activations, active, as_many, matched

from open_clt.errors import AttributionError
from open_clt.evaluation.trials import Trial, trials
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel


@final
class Prompts:
    """The numbers of each prompt of a task, for one dictionary and its graphs."""

    def __init__(self, dictionary: Dictionary, graphs: Graphs, options: argparse.Namespace) -> None:
        self.dictionary, self.graphs, self.options = dictionary, graphs, options
        self.models = dictionary.models()
        self.norms = dictionary.transcoder.decoder_norms().detach().cpu()
        self.generator = torch.Generator().manual_seed(options.seed)
        self.trials: dict[str, list[Trial]] = {}
        """The ablations of features of each task's graphs, which ``reliability.py`` compares with predictions."""

    def of(self, task: str) -> Iterator[Numbers]:
        """Yield the numbers of each prompt; raises AttributionError if no prompt has a graph."""
        options, seen = self.options, 0
        count = count_of(task, options)
        prompts = known_prompts(self.dictionary.model, task, count, development=options.development)
        for known in prompts:
            run = observe(self.models["itself"], known.prompt)
            (answer,) = self.dictionary.model.token_ids([known.answer])[0]
            if int(run.logits[-1].argmax()) != answer or not self.graphs.has(known.prompt):
                continue
            graph, seen = self.graphs.of(known.prompt, known.answer, known.competitor), seen + 1
            numbers = self._numbers(known, graph, run, answer)
            if task == "two_hop":
                numbers |= self._two_hop(known, graph)
            if seen <= options.trials:
                made = trials([graph], self.models["replaced"], per_graph=options.ablations, edges=False)
                self.trials.setdefault(task, []).extend(made)
            yield numbers
        if not seen:
            raise AttributionError(f"No graph is of one of the {len(prompts)} prompts of {task}.")

    def _numbers(
        self, known: KnownPrompt, graph: AttributionGraph, run: Observed, answer: int
    ) -> dict[str, float | None]:
        pool = active(run, 0)
        members = {place: pool[place] for place in strongest(graph, self.options.features) if place in pool}
        others = matched(members, pool, self.norms, as_many, self.generator)
        kept = set(strongest(graph.prune(self.options.threshold), None))
        replaced = observe(self.models["replaced"], known.prompt)
        removed = {place: value for place, value in active(replaced, 0).items() if place not in kept}
        return {
            "cue": float(cue_leads(graph, known.cue)),
            "necessary": float(self._answer(self.models["itself"], run, members) != answer),
            "control": float(self._answer(self.models["itself"], run, others) != answer),
            "sufficient": float(self._answer(self.models["replaced"], replaced, removed) == answer),
        }

    def _answer(self, model: ReplacementModel, run: Observed, ablated: Activations) -> int:
        """The likeliest token with some features at 0."""
        interventions = [Intervention(*place, value=0.0) for place in ablated]
        if not interventions:
            return int(run.logits[-1].argmax())
        return int(intervene(model, run, interventions, Iterative(), top=1).logits_after[-1].argmax())

    def _two_hop(self, known: KnownPrompt, graph: AttributionGraph) -> dict[str, float | None]:
        question = question_of(known.prompt, states()[known.prompt])
        of_state = self._bench.features.of(question.state, question.city)
        bypass = bypass_share(graph, known.cue, state_nodes(graph, known.cue, of_state))
        numbers = {"bypass": bypass, "shortcut": None if bypass is None else float(bypass >= SHORTCUT)}
        try:
            held = self._bench.examine(question, models=("itself",))["itself"].held()
        except AttributionError:  # a directory has no graph of the same sentence about another state's city
            return numbers
        names = {"path": "path_share", "ablation": "ablation_share", "swap": "swap_share", "all": "all_share"}
        return {**numbers, **{name: float(held[share]) for name, share in names.items()}}

    @cached_property
    def _bench(self) -> Bench:
        options = self.options
        chosen = Chosen(factor=options.factor, threshold=options.threshold, seed=options.seed)
        return Bench(self.dictionary, self.graphs, chosen)


def count_of(task: str, options: argparse.Namespace) -> int:
    """The largest number of prompts of a task."""
    return int(options.limit if task == "two_hop" else options.others)


def strongest(graph: AttributionGraph, count: int | None) -> list[tuple[int, int, int]]:
    """Layer, position and index of the most influential features of a graph, or of all of them."""
    rows = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    order = graph.influence()[rows].argsort(descending=True)[:count]
    columns = (column[rows[order]].tolist() for column in (graph.nodes.layer, graph.nodes.position, graph.nodes.index))
    return list(zip(*columns, strict=True))


def cue_leads(graph: AttributionGraph, cue: int) -> bool:
    """Whether the cue is the most influential of all tokens after BOS."""
    rows = (graph.of_kind(NodeKind.EMBEDDING) & (graph.nodes.position > 0)).nonzero().flatten()
    return bool(len(rows)) and int(graph.nodes.position[rows[graph.influence()[rows].argmax()]]) == cue
