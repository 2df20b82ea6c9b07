"""Is a graph true of the model? What it predicts, against what interventions measure.

Some of a graph's features, spread evenly over its ranking by influence, are ablated one at a time:

    direct effects       edges, against changes with MLP outputs held but attention and norms free to answer
    total effects        all paths of the graph, against changes when everything answers
    influence            against the KL divergence that the ablation makes in the prediction (both as logarithms)
    perturbations        the residual stream's change in the local replacement model, against that in the model itself
    agreement            what the transcoder's own model predicts on this prompt

With attention and norms held too, direct effects equal edges by construction (tests/replacement). Here nothing is held
that a graph merely assumes. ``with_faithfulness`` keeps the numbers in the graph. Sources: methods, "Evaluating
attribution graphs" (validation by perturbation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.attribution.sources import attributable
from open_clt.errors import AttributionError
from open_clt.evaluation.faithfulness_report import Agreement, Effects, Faithfulness, InfluenceCheck, Perturbation
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import FeaturePreactivation, LogitDifference
from open_clt.replacement.comparison import agreements, kl_divergences
from open_clt.replacement.interventions.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder

_HELD = Constrained(freeze_attention=False, freeze_norms=False)
_FREE = Iterative()
_LOCAL = Iterative(freeze_attention=True, freeze_norms=True, freeze_errors=True)


@torch.no_grad()
def faithfulness(graph: AttributionGraph, replacement: ReplacementModel, *, max_features: int = 32) -> Faithfulness:
    """Ablate up to ``max_features`` of a graph's features and compare with what it predicts.

    ``replacement`` holds the model and the transcoder that the graph was made with; its other settings do not matter.
    Takes three runs of the model per feature. Raises AttributionError if the graph is another's, or has no features.
    """
    model, transcoder = replacement.model, attributable(replacement.transcoder)
    chosen = _spread(graph, max_features)
    exact = ReplacementModel(model, transcoder, error_correction=True)
    before = observe(exact, torch.tensor(graph.info.tokens, device=model.device))
    _check_same(graph, before)
    ablations = [_ablate(graph, number, exact, transcoder, before) for number in chosen.tolist()]
    direct, total = (torch.stack(rows) for rows in list(zip(*ablations, strict=True))[:2])
    divergence = torch.tensor([ablation.kl_divergence for ablation in ablations])
    return Faithfulness(
        features=tuple(graph.node(number).id for number in chosen.tolist()),
        direct=_effects(predicted_changes(graph, chosen, paths=False), direct),
        total=_effects(predicted_changes(graph, chosen), total),
        influence=InfluenceCheck(graph.influence()[chosen], divergence),
        perturbations=_means([row for ablation in ablations for row in ablation.perturbations]),
        agreement=_agreement(ReplacementModel(model, transcoder), before),
    )


def with_faithfulness(graph: AttributionGraph, found: Faithfulness) -> AttributionGraph:
    """The same graph with the numbers in its ``info``, from where they go into every file that is made of it."""
    return replace(graph, info=replace(graph.info, faithfulness=found.report()))


def predicted_changes(
    graph: AttributionGraph, ablated: Int[Tensor, "some"], *, paths: bool = True
) -> Float[Tensor, "some node"]:
    """Change of every node's total (pre-activation or logit) that a graph predicts for each ablation.

    Without ``paths``, edges alone: minus the edge. With them, features on the way pass their change on in proportion,
    as if no feature began or ceased to be active.
    """
    nodes, edges = graph.nodes, graph.edges
    every = torch.arange(len(ablated))
    relative = torch.zeros(len(ablated), graph.n_nodes, dtype=torch.double)
    relative[every, ablated] = -1
    change = torch.zeros_like(relative)
    passes = graph.of_kind(NodeKind.FEATURE) & paths
    level = nodes.layer[edges.target]
    for number in level.unique().tolist():
        here = level == number
        target, source, weight = (column[here] for column in edges)
        change.index_add_(1, target, relative[:, source] * weight)
        reached = target.unique()
        reached = reached[passes[reached]]
        relative[:, reached] += change[:, reached] / nodes.value[reached]
    return change.float()


class _Ablation(NamedTuple):
    """What becomes of a model without one feature."""

    direct: Float[Tensor, "node"]
    """Change of each node's total, NaN where it cannot be read off a run."""
    total: Float[Tensor, "node"]
    kl_divergence: float
    perturbations: list[Perturbation]


def _ablate(
    graph: AttributionGraph, number: int, exact: ReplacementModel, transcoder: CrossLayerTranscoder, before: Observed
) -> _Ablation:
    node = graph.node(number)
    ablation = Intervention(node.layer, node.position, node.index, value=0.0)
    held, free, local = (intervene(exact, before, ablation, patching) for patching in (_HELD, _FREE, _LOCAL))
    outputs = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET)
    return _Ablation(
        _measured(graph, transcoder, held),
        _measured(graph, transcoder, free),
        _divergence(free, graph.nodes.position[outputs].unique()),
        _perturbations(node.layer, local, free),
    )


def _spread(graph: AttributionGraph, count: int) -> Int[Tensor, "some"]:
    """Features at even distances in the ranking by influence."""
    if count < 1:
        raise AttributionError(f"max_features is {count}; it must be at least 1.")
    features = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    if not len(features):
        raise AttributionError("The graph has no features to ablate; prune it less.")
    ranked = features[graph.influence()[features].argsort(descending=True, stable=True)]
    return ranked[torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().long()]


def _check_same(graph: AttributionGraph, before: Observed) -> None:
    """The graph's activations must be those of this model and transcoder."""
    chosen, nodes = graph.of_kind(NodeKind.FEATURE), graph.nodes
    dense = [features.dense().cpu() for features in before.features]
    places = zip(*(column[chosen].tolist() for column in (nodes.layer, nodes.position, nodes.index)), strict=True)
    fits = int(nodes.layer[chosen].max()) < len(dense) and int(nodes.index[chosen].max()) < dense[0].shape[1]
    found = [float(dense[layer][position, index]) for layer, position, index in places] if fits else []
    if not fits or not torch.allclose(torch.tensor(found), nodes.value[chosen], atol=1e-3, rtol=1e-2):
        raise AttributionError(
            "The graph's features have other activations here; use the model and the transcoder it was made with."
        )


def _measured(
    graph: AttributionGraph, transcoder: CrossLayerTranscoder, run: InterventionRecord
) -> Float[Tensor, "node"]:
    """Changes of pre-activations, of logits less their mean, and of other targets; NaN where there is no such thing."""
    nodes, found = graph.nodes, torch.full((graph.n_nodes,), torch.nan)
    change = (run.logits_after - run.logits_before).float().cpu()
    logits = graph.of_kind(NodeKind.LOGIT)
    found[logits] = (change - change.mean(1, keepdim=True))[nodes.position[logits], nodes.index[logits]]
    for layer in range(graph.info.n_layers):
        here = graph.of_kind(NodeKind.FEATURE) & (nodes.layer == layer)
        if bool(here.any()):
            moved = run.preactivation_change(transcoder, layer, nodes.index[here].to(transcoder.device))
            found[here] = moved.float().cpu()[nodes.position[here], torch.arange(int(here.sum()))]
    for number in graph.of_kind(NodeKind.TARGET).nonzero().flatten().tolist():
        match graph.info.settings.target(int(nodes.index[number])):
            case LogitDifference(positive=int(positive), negative=int(negative), position=position):
                found[number] = change[position, positive] - change[position, negative]
            case FeaturePreactivation(layer=layer, feature=feature, position=position):
                wanted = torch.tensor([feature], device=transcoder.device)
                found[number] = float(run.preactivation_change(transcoder, layer, wanted)[position])
            case _:
                pass  # a run records logits, not what a direction reads
    found[nodes.total.isnan()] = torch.nan  # an unexplored feature's row says nothing
    return found


def _effects(predicted: Float[Tensor, "run node"], measured: Float[Tensor, "run node"]) -> Effects:
    """The pairs for which the graph says anything, and the runs too."""
    known = (predicted != 0) & ~measured.isnan()
    return Effects(predicted[known], measured[known])


def _divergence(run: InterventionRecord, positions: Int[Tensor, "some"]) -> float:
    """KL(before || after) of the next tokens at some positions, their mean, nats."""
    rows = positions.to(run.logits_before.device)
    return float(kl_divergences(run.logits_before[rows], run.logits_after[rows]).mean())


def _perturbations(layer: int, local: InterventionRecord, free: InterventionRecord) -> list[Perturbation]:
    """Changes of the stream after each block behind the ablated feature's own."""
    ours, theirs = (run.after.streams - run.before.streams for run in (local, free))
    rows: list[Perturbation] = []
    for place in range(layer + 1, len(ours)):
        guess, truth = ours[place].flatten().double(), theirs[place].flatten().double()
        cosine = float(functional.cosine_similarity(guess, truth, dim=0))
        error = float((guess - truth).square().sum() / truth.square().sum().clamp(min=1e-30))
        rows.append(Perturbation(place - layer, cosine, error, 1))
    return rows


def _means(rows: Sequence[Perturbation]) -> tuple[Perturbation, ...]:
    """One row for each distance."""
    means: list[Perturbation] = []
    for distance in sorted({row.distance for row in rows}):
        here = torch.tensor([row[1:3] for row in rows if row.distance == distance])
        cosine, error = here.mean(0).tolist()
        means.append(Perturbation(distance, cosine, error, len(here)))
    return tuple(means)


def _agreement(replacement: ReplacementModel, before: Observed) -> Agreement:
    replaced = replacement.logits(before.tokens[None])[0]
    same = agreements(before.logits, replaced)
    kl = float(kl_divergences(before.logits[-1], replaced[-1]))
    first = replacement.transcoder.first_position
    return Agreement(kl, bool(same[-1]), float(same[first:].float().mean()))
