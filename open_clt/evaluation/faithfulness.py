"""Faithfulness: the predictions of a graph, compared with the effects of interventions on the model.

Some of a graph's features, spread evenly over the ranking by influence, are ablated one at a time. The comparisons are

    direct effects       a graph's edges, against changes while MLP outputs are frozen, but attention and norms are not
    total effects        sums over a graph's paths, against changes while nothing is frozen
    influence            log of the influence, against log of the KL divergence that the ablation causes
    perturbations        changes of the residual stream in the local replacement model, against those in the model
    agreement            predictions of the replacement model on the graph's prompt, against those of the model

If attention and norms were frozen too, direct effects would equal edges by construction (tests/replacement); here they
are free, because a graph only assumes that they do not change. ``with_faithfulness`` stores the numbers in the graph.
Source: Ameisen et al. (2025), "Evaluating attribution graphs" (validation by perturbation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.attribution.sources import Attributable, attributable
from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import AttributionError
from open_clt.evaluation.effects import measured_changes, predicted_changes
from open_clt.evaluation.faithfulness_report import Agreement, Effects, Faithfulness, InfluenceCheck, Perturbation
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.replacement.comparison import agreements, kl_divergences
from open_clt.replacement.interventions.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions.intervention import Constrained, Intervention, Iterative
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel

_HELD = Constrained(freeze_attention=False, freeze_norms=False)
_FREE = Iterative()
_LOCAL = Iterative(freeze_attention=True, freeze_norms=True, freeze_errors=True)


@checked_arguments
@torch.no_grad()
def faithfulness(graph: AttributionGraph, replacement: ReplacementModel, *, max_features: Count = 32) -> Faithfulness:
    """Ablate up to ``max_features`` of a graph's features, and compare the effects with the graph's predictions.

    ``replacement`` holds the model and the transcoder that the graph was made with; its other settings are ignored.
    Each feature takes three runs of the model. Raises AttributionError if the graph was made with another model or
    transcoder, or has no features.
    """
    model = replacement.model
    transcoder = attributable(replacement.transcoder, model)
    chosen = _spread(graph, max_features)
    exact = ReplacementModel(model, transcoder, error_correction=True)
    before = observe(exact, torch.tensor(graph.info.tokens, device=model.device))
    _check_same(graph, before)
    ablations = [_ablate(graph, node_index, exact, transcoder, before) for node_index in chosen.tolist()]
    direct, total = (torch.stack(rows) for rows in list(zip(*ablations, strict=True))[:2])
    divergence = torch.tensor([ablation.kl_divergence for ablation in ablations])
    return Faithfulness(
        features=tuple(graph.node(node_index).id for node_index in chosen.tolist()),
        direct=_effects(predicted_changes(graph, chosen, paths=False), direct),
        total=_effects(predicted_changes(graph, chosen), total),
        influence=InfluenceCheck(graph.influence()[chosen], divergence),
        perturbations=_means([row for ablation in ablations for row in ablation.perturbations]),
        agreement=_agreement(ReplacementModel(model, transcoder), before),
    )


def with_faithfulness(graph: AttributionGraph, numbers: Faithfulness) -> AttributionGraph:
    """A copy of the graph with a comparison's numbers in its ``info``, so that every file of the graph holds them."""
    return replace(graph, info=replace(graph.info, faithfulness=numbers.report()))


class _Ablation(NamedTuple):
    """The effects of ablating one feature."""

    direct: Float[Tensor, "node"]
    """Change of each node's total while MLP outputs are frozen; NaN where a run does not show it."""
    total: Float[Tensor, "node"]
    """Change of each node's total while nothing is frozen; NaN where a run does not show it."""
    kl_divergence: float
    """KL divergence between the predictions before and after, in nats."""
    perturbations: list[Perturbation]
    """Changes of the residual stream after each later block."""


def _ablate(
    graph: AttributionGraph,
    node_index: int,
    exact: ReplacementModel,
    transcoder: Attributable,
    before: Observed,
) -> _Ablation:
    """Ablate one feature in three runs, and measure the effects."""
    node = graph.node(node_index)
    ablation = Intervention(node.layer, node.position, node.index, value=0.0)
    held, free, local = (intervene(exact, before, ablation, patching) for patching in (_HELD, _FREE, _LOCAL))
    outputs = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET)
    return _Ablation(
        measured_changes(graph, transcoder, held),
        measured_changes(graph, transcoder, free),
        _divergence(free, graph.nodes.position[outputs].unique()),
        _perturbations(node.layer, local, free),
    )


def _spread(graph: AttributionGraph, count: int) -> Int[Tensor, "chosen"]:
    """Nodes of up to ``count`` features at even distances in the ranking by influence."""
    if count < 1:
        raise AttributionError(f"max_features is {count}; it must be at least 1.")
    features = graph.of_kind(NodeKind.FEATURE).nonzero().flatten()
    if not len(features):
        raise AttributionError("The graph has no features; prune it less, so that there are features to ablate.")
    ranked = features[graph.influence()[features].argsort(descending=True, stable=True)]
    return ranked[torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().long()]


def _check_same(graph: AttributionGraph, before: Observed) -> None:
    """Raise AttributionError if the graph's features have other activations in this model and transcoder."""
    chosen, nodes = graph.of_kind(NodeKind.FEATURE), graph.nodes
    dense = [features.dense().cpu() for features in before.features]
    columns = [column[chosen].tolist() for column in (nodes.layer, nodes.position, nodes.index)]
    fits = int(nodes.layer[chosen].max()) < len(dense) and int(nodes.index[chosen].max()) < dense[0].shape[1]
    features = zip(*columns, strict=True) if fits else ()
    activations = torch.tensor([float(dense[layer][position, index]) for layer, position, index in features])
    if not fits or not torch.allclose(activations, nodes.value[chosen], atol=1e-3, rtol=1e-2):
        raise AttributionError(
            "The graph's features have other activations with this model and transcoder; give those that the graph was "
            "made with."
        )


def _effects(predicted: Float[Tensor, "run node"], measured: Float[Tensor, "run node"]) -> Effects:
    """The pairs for which the graph predicts an effect and a run measures it."""
    comparable = (predicted != 0) & ~measured.isnan()
    return Effects(predicted[comparable], measured[comparable])


def _divergence(run: InterventionRecord, positions: Int[Tensor, "chosen"]) -> float:
    """Mean KL(before || after) of the next-token predictions at some positions, in nats."""
    return float(kl_divergences(run.before.logits_at(positions), run.after.logits_at(positions)).mean())


def _perturbations(layer: int, local: InterventionRecord, free: InterventionRecord) -> list[Perturbation]:
    """Changes of the residual stream after each block above the ablated feature's block, in both runs."""
    local_changes, free_changes = (run.after.streams - run.before.streams for run in (local, free))
    rows: list[Perturbation] = []
    for block in range(layer + 1, len(local_changes)):
        predicted, measured = (changes[block].flatten().cpu().double() for changes in (local_changes, free_changes))
        cosine = float(functional.cosine_similarity(predicted, measured, dim=0))
        error = float((predicted - measured).square().sum() / measured.square().sum().clamp(min=1e-30))
        rows.append(Perturbation(block - layer, cosine, error, 1))
    return rows


def _means(rows: Sequence[Perturbation]) -> tuple[Perturbation, ...]:
    """The means over all ablations, one row for each distance."""
    means: list[Perturbation] = []
    for distance in sorted({row.distance for row in rows}):
        numbers = torch.tensor([(row.cosine, row.normalised_mse) for row in rows if row.distance == distance])
        cosine, error = numbers.mean(0).tolist()
        means.append(Perturbation(distance, cosine, error, len(numbers)))
    return tuple(means)


def _agreement(replacement: ReplacementModel, before: Observed) -> Agreement:
    """The replacement model's predictions, compared with the model's."""
    replaced = replacement.states(before.tokens[None])[0]
    unembedding, agree = before.unembedding, list[Tensor]()
    for rows in unembedding.slices(len(replaced)):
        logits, replaced_logits = (unembedding.logits(states[rows]) for states in (before.states, replaced))
        agree.append(agreements(logits, replaced_logits))
    kl = float(kl_divergences(*(unembedding.logits(states[-1:]) for states in (before.states, replaced))))
    agreeing, first = torch.cat(agree), replacement.transcoder.first_position
    return Agreement(kl, bool(agreeing[-1]), float(agreeing[first:].float().mean()))
