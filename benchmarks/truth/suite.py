"""Truth suite: one row for each dictionary, with what its graphs say against what is known of the embedded model.

    python benchmarks/truth/suite.py                                    the transcoder that ships
    python benchmarks/truth/suite.py --transcoder A --transcoder B      directories of transcoders, in any layout
    python benchmarks/truth/suite.py --transcoder neurons --limit 10    the language model's own neurons
    python benchmarks/truth/suite.py --transcoder A --graphs DIR        circuit-tracer's JSON files instead of graphs

The embedded model learned tasks that were made from rules, so the token that an answer follows from is known
(``known_prompts.py``). For each task and dictionary:

    cue          In the graph of the answer, is this token the most influential of all tokens after BOS?
    necessary    With the ``--features`` most influential features of the graph at 0, is the answer no longer the
                 likeliest token of the model itself?
    control      The same for as many other features, drawn at random at the same layers and positions.
    sufficient   With every feature that pruning removed at 0, does the model whose MLPs are the transcoder still say
                 the answer?

For two-hop prompts, the state between city and capital is known too:

    bypass       The share of the city's positive influence on the answer that goes along paths without a feature of
                 the state, mean over prompts.
    shortcut     The share of prompts whose bypass share is at least one half.

The model goes from the city to the state and from the state to its capital. A cross-layer transcoder can be sparse by
writing the capital directly from features of the city. Its graph then lacks the step in between: the headline criticism
of these transcoders. Influence is that of Ameisen et al. (2025), over positive edges only: every row of the graph is
divided by the sum of its absolute entries, negative entries are left out, and the products of the edges along every
path from the city's token to the answer are added up. ``state_features.py`` says which features belong to a state.

A number is a share of the prompts that the model answers correctly, with the interval that holds 95 % of 2,000 means
of prompts drawn again (bootstrap). A dash says that the dictionary cannot give a number; the reason stands below the
table.
FVU, L0 and agreement are measured on held-out text. The last line is JSON, one object for each dictionary.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from dictionaries import Dictionary, Graphs
from jaxtyping import Bool, Float
from known_prompts import TASKS, KnownPrompt, known_prompts
from state_features import Activations, StateFeatures, active, as_many, city_activations, matched
from torch import Tensor

from open_clt.data.contexts import pack_contexts
from open_clt.embedded import facts
from open_clt.embedded.corpus import generate_texts
from open_clt.embedded.tasks import two_hop_statements
from open_clt.errors import AttributionError
from open_clt.evaluation.evaluate import measure
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel

HELD_OUT_DOCUMENTS, HELD_OUT_SEED, CONTEXT_LENGTH = 300, 500_000_002, 40
DRAWS = 2_000
SHORTCUT = 0.5
"""Bypass share from which a prompt counts as a shortcut."""


class Share(NamedTuple):
    """The mean of one number over prompts, with its bootstrap interval."""

    mean: float
    low: float
    high: float
    prompts: int

    @classmethod
    def of(cls, values: Sequence[float], generator: torch.Generator) -> Share | None:
        """The mean of the values, or None without any."""
        if not values:
            return None
        numbers = torch.tensor(values, dtype=torch.double)
        drawn = torch.randint(len(values), (DRAWS, len(values)), generator=generator)
        low, high = numbers[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
        return cls(float(numbers.mean()), low, high, len(values))

    def rounded(self) -> dict[str, float]:
        """The values for JSON."""
        return {name: round(value, 4) for name, value in self._asdict().items()}


class Scores:
    """The scores of one dictionary."""

    def __init__(self, dictionary: Dictionary, arguments: argparse.Namespace) -> None:
        self.dictionary, self.arguments = dictionary, arguments
        self.models = dictionary.models()
        self.norms = dictionary.transcoder.decoder_norms().detach().cpu()
        self.generator = torch.Generator().manual_seed(arguments.seed)

    def row(self) -> dict[str, Any]:
        """All numbers of the dictionary, and the reason for each dash."""
        started = time.monotonic()
        row: dict[str, Any] = {"dictionary": self.dictionary.name, **self._on_text(), "dashes": {}}
        for task in TASKS:
            try:
                row[task] = self._shares(self._task(task))
            except AttributionError as error:
                row[task] = None
                row["dashes"][task] = str(error)
        row["seconds"] = round(time.monotonic() - started, 1)
        return row

    def _on_text(self) -> dict[str, float]:
        numbers = measure(self.models["replaced"], held_out(self.dictionary.model), batch_size=32).totals()
        return {name: round(float(numbers[name]), 4) for name in ("fvu", "worst_fvu", "l0", "top1_agreement")}

    def _shares(self, answers: Iterable[dict[str, float | None]]) -> dict[str, Any]:
        """The mean of each number over the prompts that have it."""
        rows = list(answers)
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
        shares = {name: Share.of(values, self.generator) for name, values in columns.items()}
        return {name: None if share is None else share.rounded() for name, share in shares.items()}

    def _task(self, task: str) -> Iterable[dict[str, float | None]]:
        """The numbers of each prompt of a task that the model answers correctly."""
        graphs = Graphs(self.dictionary, self.arguments.graphs)
        options = self.arguments
        prompts = known_prompts(self.dictionary.model, task, options.limit, development=options.development)
        for known in prompts:
            run = observe(self.models["itself"], known.prompt)
            (answer,) = self.dictionary.model.token_ids([known.answer])[0]
            if int(run.logits[-1].argmax()) != answer:
                continue
            graph = graphs.of(known.prompt, known.answer, known.competitor)
            numbers = self._graph_numbers(known, graph, run, answer)
            if task == "two_hop":
                bypass = self._bypass(known, graph)
                numbers["bypass"] = bypass
                numbers["shortcut"] = None if bypass is None else float(bypass >= SHORTCUT)
            yield numbers

    def _graph_numbers(
        self, known: KnownPrompt, graph: AttributionGraph, run: Observed, answer: int
    ) -> dict[str, float | None]:
        pool = active(run, 0)
        top = strongest(graph, self.arguments.features)
        members = {place: pool[place] for place in top if place in pool}
        others = matched(members, pool, self.norms, as_many, self.generator)
        kept = strongest(graph.prune(self.arguments.threshold), None)
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

    def _bypass(self, known: KnownPrompt, graph: AttributionGraph) -> float | None:
        """The bypass share of a two-hop prompt; its state's features are found with one-hop prompts."""
        state, cities = states()[known.prompt]
        of_state = self._states.of(state, next(city for city in cities if city in known.prompt))
        return bypass_share(graph, known.cue, state_nodes(graph, known.cue, of_state))

    @cached_property
    def _states(self) -> StateFeatures:
        means = city_activations(self.dictionary.model, self.dictionary.transcoder)
        return StateFeatures(means, self.arguments.factor)


def state_nodes(graph: AttributionGraph, cue: int, of_state: Bool[Tensor, "2 layer feature"]) -> Bool[Tensor, "node"]:
    """The feature nodes at or after the city's token that belong to the state."""
    nodes = graph.nodes
    chosen = graph.of_kind(NodeKind.FEATURE) & (nodes.position >= cue)
    rows = chosen.nonzero().flatten()
    after = (nodes.position[rows] > cue).long()
    chosen[rows] = of_state[after, nodes.layer[rows].long(), nodes.index[rows].long()]
    return chosen


def bypass_share(graph: AttributionGraph, position: int, through: Bool[Tensor, "node"]) -> float | None:
    """The share of the positive influence of the token at ``position`` that reaches the output past some nodes.

    ``through`` has the nodes that the influence should pass. The graph must have one output. Returns None if no path
    of positive edges leads from the token to the output.
    """
    weights = graph.adjacency()
    shares = (weights / weights.abs().sum(1, keepdim=True).clamp(min=1e-30)).clamp(min=0)
    token = graph.of_kind(NodeKind.EMBEDDING) & (graph.nodes.position == position)
    output = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).float()
    total = float(_reaching(shares, output)[token].sum())
    past = float(_reaching(shares * ~through, output)[token].sum())
    return past / total if total > 0 else None


def _reaching(shares: Float[Tensor, "target source"], output: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """What each node passes on to the output over paths of any length."""
    step, total = output, torch.zeros_like(output)
    while bool((step := step @ shares).any()):
        total += step
    return total


def strongest(graph: AttributionGraph, count: int | None) -> list[tuple[int, int, int]]:
    """Layer, position and index of the most influential features of a graph, or of all of them."""
    rows = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    order = graph.influence()[rows].argsort(descending=True)[:count]
    columns = (column[rows[order]].tolist() for column in (graph.nodes.layer, graph.nodes.position, graph.nodes.index))
    return list(zip(*columns, strict=True))


def cue_leads(graph: AttributionGraph, cue: int) -> bool:
    """Whether the cue is the most influential of all tokens after BOS."""
    rows = (graph.of_kind(NodeKind.EMBEDDING) & (graph.nodes.position > 0)).nonzero().flatten()
    return int(graph.nodes.position[rows[graph.influence()[rows].argmax()]]) == cue


@cache
def states() -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each two-hop prompt, its state and the cities of the state."""
    cities = {state.name: state.cities for state in facts.STATES}
    return {
        statement.prompt: (statement.intermediate, cities[statement.intermediate])
        for statement in two_hop_statements()
        if statement.intermediate is not None
    }


def held_out(model: LanguageModel) -> Tensor:
    """Contexts of held-out text, as the zoo uses them."""
    texts = generate_texts(HELD_OUT_DOCUMENTS, HELD_OUT_SEED)
    return pack_contexts(texts, model, CONTEXT_LENGTH, from_start=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table: one line for each dictionary and task, and the reasons for dashes below."""
    names = ("cue", "necessary", "control", "sufficient", "bypass", "shortcut")
    lines = [f"| dictionary | task | prompts | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for row in rows:
        text = ", ".join(f"{name} {row[name]:.4g}" for name in ("fvu", "l0", "top1_agreement"))
        for task in TASKS:
            numbers = row[task] or {}
            cells = [_cell(numbers.get(name)) for name in names]
            prompts = max((int(share["prompts"]) for share in numbers.values() if share), default=0)
            lines.append(f"| {row['dictionary']} ({text}) | {task} | {prompts or '-'} | {' | '.join(cells)} |")
    reasons = {f"{row['dictionary']}, {task}: {why}" for row in rows for task, why in row["dashes"].items()}
    return "\n".join([*lines, *sorted(reasons)])


def _cell(share: dict[str, float] | None) -> str:
    return "-" if share is None else f"{share['mean']:.0%} ({share['low']:.0%} to {share['high']:.0%})"


def _dictionaries(chosen: argparse.Namespace) -> Iterable[Dictionary]:
    """The dictionaries of the command line, each loaded when its turn comes."""
    for source in chosen.transcoder or ["embedded"]:
        clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
        if source != "embedded":
            clt.load_model(source)
        yield Dictionary(Path(source).name, clt.language_model, clt.transcoder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score each dictionary, print the table, and print the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--transcoder", action="append", help="embedded, neurons, or a transcoder's directory; may be repeated")
    option("--graphs", type=Path, help="directory of circuit-tracer's JSON files that take the place of our graphs")
    option("--limit", type=int, default=60, help="use at most this many prompts of a task (default: 60)")
    option("--development", action="store_true", help="use prompts that are not held out")
    option("--features", type=int, default=20, help="number of features that are ablated (default: 20)")
    option("--factor", type=float, default=1.25, help="as in known_circuits.py (default: 1.25)")
    option("--threshold", type=float, default=0.9, help="influence that pruning keeps (default: 0.9)")
    option("--seed", type=int, default=0, help="seed of controls and of bootstrap draws (default: 0)")
    chosen = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for dictionary in _dictionaries(chosen):
        rows.append(Scores(dictionary, chosen).row())
        print(f"{dictionary.name}: {rows[-1]['seconds']} s", flush=True)
    print(table(rows))
    print(json.dumps({row["dictionary"]: row for row in rows}))


if __name__ == "__main__":
    main()
