"""Trials: what a graph predicts of one intervention, and what the intervention does to the answer.

A node is ablated: its feature is set to 0 at its position, and everything else is computed anew (iterative patching) in
the language model itself. An edge is cut: an edge into a feature takes its weight away from the feature's activation,
which does not fall below 0; an edge from a feature to the answer is measured by ablating the feature while all MLP
outputs are held. The answer is the likeliest output of the graph; its change is measured in logits, less the mean
logit, or in the units of the target.

A trial turns out *as predicted* if the answer moves in the predicted direction by between half and twice the predicted
amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.attribution.sources import attributable
from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import AttributionError
from open_clt.evaluation.effects import measured_changes
from open_clt.graphs.consensus import frequencies
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import answer_effects, answer_row
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative, Patching
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr

FACTOR = 2.0
"""Largest ratio of the predicted and the measured change that counts as predicted."""
_HELD = Constrained(freeze_attention=False, freeze_norms=False)


class Trial(NamedTuple):
    """One intervention, with what the graph says about the node or edge."""

    is_edge: bool
    """Whether an edge was cut; otherwise a node was ablated."""
    frequency: float | None
    """Share of the graphs of a consensus that have the node or edge; None if the graph stands alone."""
    influence: float
    """Share of the influence on the outputs that passes through the node or edge."""
    predicted: float
    """Change of the answer that the graph predicts."""
    measured: float
    """Change of the answer in the model."""
    answer_changed: bool
    """Whether another token became the likeliest one at the answer's position."""

    @property
    def as_predicted(self) -> bool:
        """Whether the answer moved as the graph predicts."""
        ratio = self.measured / self.predicted if self.predicted else 0.0
        return 1 / FACTOR <= ratio <= FACTOR


class Predictions(NamedTuple):
    """What a graph predicts for some of its nodes or edges."""

    influence: Float[Tensor, "some"]
    """Share of the influence on the outputs that passes through each of them."""
    change: Float[Tensor, "some"]
    """Change of the answer if it is ablated or cut."""

    __repr__ = short_repr


@checked_arguments
@torch.no_grad()
def trials(
    graphs: Sequence[AttributionGraph],
    replacement: ReplacementModel,
    *,
    template: str | Sequence[str] | None = None,
    per_graph: Count = 16,
    edges: bool = True,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
) -> list[Trial]:
    """Measure nodes and edges of whole graphs alone, and of pruned graphs with their frequencies in a consensus.

    ``replacement`` holds the model and the transcoder that the graphs were made with. Of each graph, ``per_graph``
    nodes and as many edges (none without ``edges``) are measured, spread evenly over their ranking by influence. Of one
    graph there is no consensus; ``template`` is that of ``consensus``. Raises AttributionError if a graph has no
    features.
    """
    model = replacement.model
    transcoder = attributable(replacement.transcoder, model)
    exact = ReplacementModel(model, transcoder, error_correction=True)
    pruned = [graph.prune(node_threshold, edge_threshold) for graph in graphs]
    shares = frequencies(pruned, template=template) if len(graphs) > 1 else []
    results: list[Trial] = []
    for number, graph in enumerate(graphs):
        before = observe(exact, torch.tensor(graph.info.tokens, device=model.device))
        benches = [_Bench(exact, before, graph)]
        if shares:
            benches.append(_Bench(exact, before, pruned[number], *shares[number]))
        for bench in benches:
            results += bench.node_trials(per_graph)
            results += bench.edge_trials(per_graph) if edges else []
    return results


class _Bench(NamedTuple):
    """A graph, and the run of the model that it describes."""

    replacement: ReplacementModel
    before: Observed
    graph: AttributionGraph
    node_frequency: Float[Tensor, "node"] | None = None
    edge_frequency: Float[Tensor, "edge"] | None = None

    def node_trials(self, count: int) -> list[Trial]:
        """Measure some nodes."""
        features = self.graph.of_kind(NodeKind.FEATURE)
        if not bool(features.any()):
            raise AttributionError(f"The graph of {self.graph.info.prompt!r} has no features; prune it less.")
        nodes = node_predictions(self.graph)
        chosen = _spread(nodes.influence.where(features, 0), count)
        return [self._trial(False, row, nodes, self._ablation(row)) for row in chosen.tolist()]

    def edge_trials(self, count: int) -> list[Trial]:
        """Measure some edges."""
        graph, results = self.graph, list[Trial]()
        features = graph.of_kind(NodeKind.FEATURE)
        answer, edges = answer_row(graph), edge_predictions(graph)
        target, source = graph.edges.target, graph.edges.source
        can_cut = features[target] | (features[source] & (target == answer))
        for edge in _spread(edges.influence.where(can_cut, 0), count).tolist():
            if int(target[edge]) == answer:
                results.append(self._trial(True, edge, edges, self._ablation(int(source[edge])), _HELD))
            else:
                row, weight = int(target[edge]), float(graph.edges.weight[edge])
                value = max(0.0, float(graph.nodes.value[row]) - weight)
                results.append(self._trial(True, edge, edges, self._ablation(row, value)))
        return results

    def _ablation(self, row: int, value: float = 0.0) -> Intervention:
        node = self.graph.node(row)
        return Intervention(node.layer, node.position, node.index, value=value)

    def _trial(
        self, is_edge: bool, index: int, all_of: Predictions, change: Intervention, patching: Patching | None = None
    ) -> Trial:
        run = intervene(self.replacement, self.before, change, patching or Iterative())
        answer, frequency = answer_row(self.graph), self.edge_frequency if is_edge else self.node_frequency
        only_answer = torch.zeros(self.graph.n_nodes, dtype=torch.bool).index_fill(0, torch.tensor([answer]), True)
        measured = measured_changes(self.graph.part(only_answer), self.replacement.transcoder, run)
        position = self.graph.nodes.position[answer : answer + 1]
        top = [side.logits_at(position).argmax(-1) for side in (run.before, run.after)]
        return Trial(
            is_edge=is_edge,
            frequency=None if frequency is None else float(frequency[index]),
            influence=float(all_of.influence[index]),
            predicted=float(all_of.change[index]),
            measured=float(measured[0]),
            answer_changed=not torch.equal(*top),
        )


def node_predictions(graph: AttributionGraph) -> Predictions:
    """Return what a graph predicts for each node that is ablated.

    The predictions of a consensus are means over the graphs that have the node.
    """
    if graph.consensus is not None:
        table = graph.consensus
        return Predictions(table.influence.double() / table.frequency.double(), table.effect.double())
    return Predictions(graph.influence_graph.influence / _of_outputs(graph), answer_effects(graph))


def edge_predictions(graph: AttributionGraph) -> Predictions:
    """Return what a graph predicts for each edge that is cut.

    The weights of a consensus are shares. They predict a change of the answer in logits where the target is a feature,
    whose ablation the consensus predicts, and NaN where it is the answer.
    """
    passed_on = graph.influence_graph.influence + graph.influence_graph.outputs
    influence = graph.influence_graph.scaled(passed_on) / _of_outputs(graph)
    nodes, target = graph.nodes, graph.edges.target
    effect = node_predictions(graph).change
    # A feature's activation is its total plus its encoder bias; a consensus knows the total in the unit of its weights.
    activation = (nodes.value if graph.consensus is None else nodes.total.abs()).double()
    change = effect / activation.where(activation > 0, 1)
    change[answer_row(graph)] = -1 if graph.consensus is None else torch.nan
    return Predictions(influence, change[target] * graph.edges.weight.double())


def _of_outputs(graph: AttributionGraph) -> float:
    """The sum of the weights of all outputs."""
    return max(1e-30, float(graph.nodes.weight.double().sum()))


def _spread(scores: Float[Tensor, "some"], count: int) -> Int[Tensor, "chosen"]:
    """Return up to ``count`` indices at even distances in the ranking by score; scores of 0 are left out."""
    ranked = scores.argsort(descending=True, stable=True)[: int((scores > 0).sum())]
    return ranked[torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().long()]
