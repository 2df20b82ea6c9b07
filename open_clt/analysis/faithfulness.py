"""Is a graph true of the model? What it predicts, against what interventions measure.

Some of a graph's features, spread evenly over its ranking by influence, are ablated one at a time:

    direct effects       edges, against changes with MLP outputs held but attention and norms free to answer
    total effects        all paths of the graph, against changes when everything answers
    influence            against the KL divergence that the ablation makes in the prediction (both as logarithms)
    perturbations        the residual stream's change in the local replacement model, against that in the model itself
    agreement            what the transcoder's own model predicts on this prompt

With attention and norms held too, direct effects equal edges by construction (tests/replacement). Here nothing is held
that a graph merely assumes. Sources: methods, "Evaluating attribution graphs" (validation by perturbation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.attribution.graph import AttributionGraph
from open_clt.attribution.nodes import NodeKind
from open_clt.errors import AttributionError
from open_clt.models.cross_layer import CrossLayerTranscoder
from open_clt.replacement.intervene import InterventionRecord, intervene
from open_clt.replacement.interventions import Constrained, Intervention, Iterative
from open_clt.replacement.model import ReplacementModel
from open_clt.replacement.observation import Observed, observe

_SMALLEST = 1e-12
"""Influences and divergences below this count as this: a logarithm needs something."""


@final
@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of ablations on the totals of a graph's rows: the scatter, and two numbers of it."""

    predicted: Float[Tensor, "pair"]
    measured: Float[Tensor, "pair"]

    @property
    def spearman(self) -> float:
        """Rank correlation."""
        return spearman(self.predicted, self.measured)

    @property
    def slope(self) -> float:
        """Least squares through the origin: 1 where effects are as large as predicted."""
        predicted, measured = self.predicted.double(), self.measured.double()
        return float((predicted @ measured) / (predicted @ predicted).clamp(min=1e-30))


@final
@dataclass(frozen=True, eq=False)
class InfluenceCheck:
    """Influence of the ablated features, and what the ablations do to the prediction."""

    influence: Float[Tensor, "feature"]
    kl_divergence: Float[Tensor, "feature"]
    """KL(as it was || ablated) of the next token, nats."""

    @property
    def pearson(self) -> float:
        """Correlation of the logarithms."""
        return pearson(*(column.clamp(min=_SMALLEST).log() for column in (self.influence, self.kl_divergence)))

    @property
    def spearman(self) -> float:
        """Rank correlation."""
        return spearman(self.influence, self.kl_divergence)


class Perturbation(NamedTuple):
    """How the stream's change in the local replacement model resembles the model's, some layers after the ablation."""

    distance: int
    """Blocks after the ablated feature's own."""
    cosine: float
    normalised_mse: float
    """Squared difference over the squared norm of the model's own change."""
    features: int
    """Ablations that the means are over."""


class Agreement(NamedTuple):
    """The model whose MLPs are the transcoder, against the model, on the graph's prompt."""

    kl_divergence: float
    """KL(model || replacement) of the next token after the prompt, nats."""
    same_top: bool
    """Whether both hold the same next token likeliest."""
    top1_agreement: float
    """Share of all positions where they do, the first left out."""


@final
@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How far a graph's predictions hold."""

    features: tuple[str, ...]
    """Nodes that were ablated, most influential first."""
    direct: Effects
    total: Effects
    influence: InfluenceCheck
    perturbations: tuple[Perturbation, ...]
    agreement: Agreement

    def summary(self) -> str:
        """All of it in a few lines, for reading."""
        agreement = self.agreement
        lines = [
            f"{len(self.features)} features ablated one at a time",
            f"direct effects   Spearman {self.direct.spearman:.3f}, slope {self.direct.slope:.3f}",
            f"total effects    Spearman {self.total.spearman:.3f}, slope {self.total.slope:.3f}",
            f"influence        Pearson of log influence and log KL {self.influence.pearson:.3f}",
            f"replacement      KL {agreement.kl_divergence:.3f} nats, {'same' if agreement.same_top else 'another'} "
            f"top token; top-1 agreement over the prompt {agreement.top1_agreement:.0%}",
        ]
        lines += [
            f"{row.distance} layers later   cosine {row.cosine:.3f}, normalised MSE {row.normalised_mse:.3f}"
            for row in self.perturbations
        ]
        return "\n".join(lines)


@torch.no_grad()
def faithfulness(graph: AttributionGraph, replacement: ReplacementModel, *, max_features: int = 32) -> Faithfulness:
    """Ablate up to ``max_features`` of a graph's features and compare with what it predicts.

    ``replacement`` holds the model and the transcoder that the graph was made with; its other settings do not matter.
    Takes three runs of the model per feature. Raises AttributionError if the graph is another's, or has no features.
    """
    model, transcoder = replacement.model, replacement.transcoder
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise AttributionError("The transcoder is not a CrossLayerTranscoder; graphs are made with these only.")
    chosen = _spread(graph, max_features)
    keep = bool(graph.info.settings.get("skip_first_position", True))
    exact = ReplacementModel(model, transcoder, error_correction=True, keep_first_position=keep)
    before = observe(exact, torch.tensor(graph.info.tokens, device=model.device))
    _check_same(graph, before)
    held = Constrained(freeze_attention=False, freeze_norms=False)
    local = Iterative(freeze_attention=True, freeze_norms=True, freeze_errors=True)
    runs: dict[str, list[InterventionRecord]] = {"held": [], "free": [], "local": []}
    for node in map(graph.node, chosen.tolist()):
        ablation = Intervention(node.layer, node.position, node.index, value=0.0)
        for name, patching in (("held", held), ("free", Iterative()), ("local", local)):
            runs[name].append(intervene(exact, before, ablation, patching))
    edges, paths = predicted_changes(graph, chosen, paths=False), predicted_changes(graph, chosen)
    return Faithfulness(
        features=tuple(graph.node(number).id for number in chosen.tolist()),
        direct=_effects(graph, edges, _measured(graph, transcoder, runs["held"])),
        total=_effects(graph, paths, _measured(graph, transcoder, runs["free"])),
        influence=InfluenceCheck(graph.influence()[chosen], torch.tensor([run.kl_divergence for run in runs["free"]])),
        perturbations=_perturbations(graph.nodes.layer[chosen].tolist(), runs["local"], runs["free"]),
        agreement=_agreement(ReplacementModel(model, transcoder, keep_first_position=keep), before),
    )


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


def pearson(first: Float[Tensor, "pair"], second: Float[Tensor, "pair"]) -> float:
    """Linear correlation; 0 where one of the two is constant."""
    pair = torch.stack([first, second]).double()
    centred = pair - pair.mean(1, keepdim=True)
    return float(functional.cosine_similarity(centred[0], centred[1], dim=0))


def spearman(first: Float[Tensor, "pair"], second: Float[Tensor, "pair"]) -> float:
    """Correlation of the ranks, ties sharing theirs."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: Float[Tensor, "pair"]) -> Float[Tensor, "pair"]:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place]


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


def _rows(graph: AttributionGraph) -> Bool[Tensor, "node"]:
    """Nodes whose change can be read off a run: features and logits."""
    return graph.of_kind(NodeKind.FEATURE, NodeKind.LOGIT) & ~graph.nodes.total.isnan()


def _measured(
    graph: AttributionGraph, transcoder: CrossLayerTranscoder, runs: Sequence[InterventionRecord]
) -> Float[Tensor, "run node"]:
    """Changes of pre-activations and of logits less their mean, in every run."""
    nodes, found = graph.nodes, torch.zeros(len(runs), graph.n_nodes)
    logits = (_rows(graph) & graph.of_kind(NodeKind.LOGIT)).nonzero().flatten()
    for row, run in zip(found, runs, strict=True):
        change = (run.logits_after - run.logits_before).float().cpu()
        centred = change - change.mean(1, keepdim=True)
        row[logits] = centred[nodes.position[logits], nodes.index[logits]]
        for layer in range(graph.info.n_layers):
            here = graph.of_kind(NodeKind.FEATURE) & (nodes.layer == layer)
            if bool(here.any()):
                moved = run.preactivation_change(transcoder, layer, nodes.index[here].to(transcoder.device))
                row[here] = moved.float().cpu()[nodes.position[here], torch.arange(int(here.sum()))]
    return found


def _effects(
    graph: AttributionGraph, predicted: Float[Tensor, "run node"], measured: Float[Tensor, "run node"]
) -> Effects:
    """The pairs for which the graph says anything."""
    said = (predicted != 0) & _rows(graph)
    return Effects(predicted[said], measured[said])


def _perturbations(
    layers: Sequence[int], local: Sequence[InterventionRecord], free: Sequence[InterventionRecord]
) -> tuple[Perturbation, ...]:
    """Changes of the stream after each block behind the ablated feature's own."""
    found: dict[int, list[tuple[float, float]]] = {}
    for layer, *pair in zip(layers, local, free, strict=True):
        ours, theirs = (run.after.streams - run.before.streams for run in pair)
        for place in range(layer + 1, len(ours)):
            guess, truth = ours[place].flatten().double(), theirs[place].flatten().double()
            cosine = float(functional.cosine_similarity(guess, truth, dim=0))
            error = float((guess - truth).square().sum() / truth.square().sum().clamp(min=1e-30))
            found.setdefault(place - layer, []).append((cosine, error))
    rows: list[Perturbation] = []
    for distance, pairs in sorted(found.items()):
        cosine, error = torch.tensor(pairs).mean(0).tolist()
        rows.append(Perturbation(distance, cosine, error, len(pairs)))
    return tuple(rows)


def _agreement(replacement: ReplacementModel, before: Observed) -> Agreement:
    original = before.logits.float().log_softmax(-1)
    replaced = replacement.logits(before.tokens[None])[0].float().log_softmax(-1)
    same = original.argmax(-1) == replaced.argmax(-1)
    kl = float((original[-1].exp() * (original[-1] - replaced[-1])).sum())
    return Agreement(kl, bool(same[-1]), float(same[1:].float().mean()))
