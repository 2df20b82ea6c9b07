"""All that is worth knowing of a transcoder, in one record: what ``open-clt evaluate`` writes and ``compare`` lines up.

    reconstruction    FVU and L0 of each layer, dead and dense shares, histogram of densities
    decoders          spread of each layer's decoder norms
    predictions       cross-entropy with the MLPs, with the transcoder, with mean outputs; KL divergence, agreement
    one at a time     the same with the MLP of one layer replaced, and no other
    graphs            replacement and completeness scores of attribution graphs

"MLP" is the usual case: what an autoencoder replaces is whatever its hook carries. Everything is measured on held-out
contexts: the same contexts give the same numbers, so a report says on which it was measured, and only reports on the
same are compared. ``report_file.py`` writes a report and reads it back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.analysis.evaluation import Evaluation, evaluate_transcoder
from open_clt.analysis.measured_on import MeasuredOn, check_same_contexts, measured_on
from open_clt.attribution.attribute import attribute
from open_clt.attribution.sources import attributable
from open_clt.config_json import to_dict
from open_clt.errors import AttributionError, ConfigError
from open_clt.models.transcoder import Transcoder
from open_clt.replacement.comparison import LogitComparison, compare_logits
from open_clt.replacement.model import ReplacementModel

logger = logging.getLogger(__name__)

DENSE_ABOVE = 0.1
"""A feature that is active on a larger share of the tokens counts as dense."""
DENSITY_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 1))
"""Edges of the histogram of densities: four bins a decade, from one token in a million to every token."""
NORM_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class LayerReport(NamedTuple):
    """One layer of a transcoder. Cross-entropies are nats per token."""

    layer: int
    fvu: float
    l0: float
    dead_share: float
    dense_share: float
    decoder_norms: tuple[float, ...]
    """Quantiles (``NORM_QUANTILES``) of the layer's decoder norms, in standardised units."""
    ce_alone: float
    """Cross-entropy with the MLP of this layer replaced, and no other."""
    kl_alone: float
    top1_agreement_alone: float


class GraphReport(NamedTuple):
    """Scores of the attribution graph of one prompt."""

    prompt: str
    replacement: float
    completeness: float
    max_feature_nodes: int | None = None
    """Features that were attributed in it at most; None is all."""


class Report(NamedTuple):
    """A transcoder on held-out text. Cross-entropies and KL divergence are nats per token."""

    name: str
    model: str
    settings: dict[str, Any]
    """The transcoder's configuration."""
    parameters: int
    measured_on: MeasuredOn
    tokens: int
    """Those of the contexts that features are measured on: all but the first of each."""
    fvu: float
    worst_fvu: float
    worst_layer: int
    l0: float
    """Active features per token, mean of the layers."""
    l0_total: float
    dead_share: float
    dense_share: float
    density_histogram: tuple[int, ...]
    """Features in each bin of ``DENSITY_EDGES``; those that never fired are in none."""
    ce_original: float
    ce_replacement: float
    ce_ablated: float
    """With every MLP output set to its mean."""
    ce_recovered: float | None
    kl: float
    top1_agreement: float
    layers: tuple[LayerReport, ...]
    graphs: tuple[GraphReport, ...]

    @property
    def graph_replacement(self) -> float | None:
        """Mean replacement score of the graphs; None without any."""
        return sum(graph.replacement for graph in self.graphs) / len(self.graphs) if self.graphs else None

    @property
    def graph_completeness(self) -> float | None:
        """Mean completeness score of the graphs; None without any."""
        return sum(graph.completeness for graph in self.graphs) / len(self.graphs) if self.graphs else None

    def row(self) -> dict[str, Any]:
        """What a table of several transcoders shows of this one."""
        names = (
            "fvu", "worst_fvu", "worst_layer", "l0", "l0_total", "dead_share", "dense_share", "ce_original",
            "ce_replacement", "ce_ablated", "ce_recovered", "kl", "top1_agreement", "graph_replacement",
            "graph_completeness", "parameters", "tokens",
        )  # fmt: skip
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


@torch.no_grad()
def report(
    replacement: ReplacementModel,
    contexts: Int[Tensor, "context position"],
    *,
    name: str,
    text: str = "",
    prompts: Sequence[str] = (),
    max_feature_nodes: int | None = 1024,
    batch_size: int = 8,
) -> Report:
    """Measure a transcoder on contexts of tokens, each beginning with BOS, and on graphs of some prompts.

    ``text`` says where the contexts come from, for readers. Each graph spends ``max_feature_nodes`` rows. A transcoder
    that cannot be attributed gets a report without graphs.
    """
    transcoder = replacement.transcoder
    found = evaluate_transcoder(replacement, contexts, batch_size=batch_size)
    alone = replaced_alone(replacement, contexts, batch_size=batch_size)
    metrics, density = found.reconstruction, found.reconstruction.density
    alive = density[density > 0]
    worst = metrics.fvu_per_layer.index(metrics.worst_fvu)
    return Report(
        name=name,
        model=replacement.model.name,
        settings=to_dict(transcoder.config),
        parameters=sum(parameter.numel() for parameter in transcoder.parameters()),
        measured_on=measured_on(contexts, text),
        tokens=metrics.tokens,
        fvu=metrics.fvu,
        worst_fvu=metrics.worst_fvu,
        worst_layer=worst,
        l0=metrics.l0,
        l0_total=sum(metrics.l0_per_layer),
        dead_share=metrics.dead_share,
        dense_share=float((density > DENSE_ABOVE).float().mean()),
        density_histogram=tuple(torch.histogram(alive, torch.tensor(_open_edges())).hist.int().tolist()),
        ce_original=found.logits.cross_entropy_original,
        ce_replacement=found.logits.cross_entropy_replacement,
        ce_ablated=found.cross_entropy_ablated,
        ce_recovered=found.share_recovered,
        kl=found.logits.kl_divergence,
        top1_agreement=found.logits.top1_agreement,
        layers=tuple(_layers(found, alone, transcoder)),
        graphs=tuple(_graphs(replacement.model, transcoder, prompts, max_feature_nodes)),
    )


@torch.no_grad()
def replaced_alone(
    replacement: ReplacementModel, contexts: Int[Tensor, "context position"], *, batch_size: int = 8
) -> list[LogitComparison]:
    """Predictions with one MLP replaced, and no other: how far each is from the original's, layer by layer."""
    model, keep = replacement.model, replacement.keep_first_position
    singles = [
        ReplacementModel(model, replacement.transcoder, layers=[layer], keep_first_position=keep)
        for layer in range(model.n_layers)
    ]
    batches = [rows.to(model.device) for rows in contexts.split(batch_size)]
    weights = torch.tensor([float(tokens.shape[0]) for tokens in batches])
    compared: list[list[LogitComparison]] = [[] for _ in singles]
    for tokens in batches:
        original = model.logits(tokens)
        for single, found in zip(singles, compared, strict=True):
            found.append(compare_logits(original, single.logits(tokens), tokens, first=1))
    shares = weights / weights.sum()
    return [LogitComparison(*(shares @ torch.tensor(found)).tolist()) for found in compared]


def _layers(found: Evaluation, alone: Sequence[LogitComparison], transcoder: Transcoder) -> list[LayerReport]:
    metrics = found.reconstruction
    quantiles = _norm_quantiles(transcoder.decoder_norms())
    return [
        LayerReport(
            layer=layer,
            fvu=metrics.fvu_per_layer[layer],
            l0=metrics.l0_per_layer[layer],
            dead_share=float((density == 0).float().mean()),
            dense_share=float((density > DENSE_ABOVE).float().mean()),
            decoder_norms=quantiles[layer],
            ce_alone=single.cross_entropy_replacement,
            kl_alone=single.kl_divergence,
            top1_agreement_alone=single.top1_agreement,
        )
        for layer, (density, single) in enumerate(zip(metrics.density, alone, strict=True))
    ]


def _norm_quantiles(norms: Float[Tensor, "layer feature"]) -> list[tuple[float, ...]]:
    """Quantiles by sorting: torch.quantile refuses the width of large transcoders."""
    ordered = norms.float().sort(dim=1).values
    places = torch.tensor(NORM_QUANTILES) * (ordered.shape[1] - 1)
    return [tuple(row) for row in ordered[:, places.round().long()].tolist()]


def _open_edges() -> list[float]:
    """The histogram's edges, its first bin open downwards."""
    return [0.0, *DENSITY_EDGES[1:]]


def _graphs(
    model: LanguageModel, transcoder: Transcoder, prompts: Sequence[str], max_feature_nodes: int | None
) -> list[GraphReport]:
    found: list[GraphReport] = []
    try:
        attributable(transcoder)
    except AttributionError as error:
        if prompts:
            logger.warning("The report goes without graphs. %s", error)
        return found
    for prompt in prompts:
        try:
            graph = attribute(model, transcoder, prompt, max_feature_nodes=max_feature_nodes)
        except AttributionError as error:
            logger.warning("No graph of %r: %s", prompt, error)
            continue
        found.append(GraphReport(prompt, *graph.scores(), max_feature_nodes))
    return found


def layer_table(found: Report) -> str:
    """A transcoder's layers, a line each, for reading."""
    heads = ("FVU", "L0", "dead", "dense", "norm", "CE alone", "KL alone", "agreement")
    lines = ["layer  " + "".join(f"{head:>11}" for head in heads)]
    for layer in found.layers:
        cells = (
            f"{layer.fvu:.4f}", f"{layer.l0:.1f}", _share(layer.dead_share), _share(layer.dense_share),
            f"{layer.decoder_norms[NORM_QUANTILES.index(0.5)]:.2f}", f"{layer.ce_alone:.3f}",
            f"{layer.kl_alone:.3f}", _share(layer.top1_agreement_alone),
        )  # fmt: skip
        lines.append(f"{layer.layer:<7}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def comparison_table(reports: Sequence[Report]) -> str:
    """Several transcoders in one table, for reading.

    Raises ConfigError if they were not measured on the same model and the same contexts.
    """
    if not reports:
        raise ConfigError("There is no transcoder to compare; name at least one.")
    models = sorted({found.model for found in reports})
    if len(models) > 1:
        raise ConfigError(f"The transcoders belong to different models ({', '.join(models)}); compare those of one.")
    check_same_contexts([found.name for found in reports], [found.measured_on for found in reports])
    width = max(12, *(len(found.name) for found in reports)) + 2
    heads = ("FVU", "worst", "L0", "dead", "dense", "CE", "recovered", "KL", "agreement", "graph", "complete", "params")
    lines = [f"{'transcoder':<{width}}" + "".join(f"{head:>11}" for head in heads)]
    for found in reports:
        cells = (
            f"{found.fvu:.4f}", f"{found.worst_fvu:.4f}", f"{found.l0:.1f}", _share(found.dead_share),
            _share(found.dense_share), f"{found.ce_replacement:.3f}", _share(found.ce_recovered), f"{found.kl:.3f}",
            _share(found.top1_agreement), _score(found.graph_replacement), _score(found.graph_completeness),
            f"{found.parameters / 1e6:.2f} M",
        )  # fmt: skip
        lines.append(f"{found.name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    original, measured = reports[0].ce_original, reports[0].measured_on
    lines.append(f"cross-entropy of {models[0]} itself: {original:.3f}, on {measured.description}")
    if len({tuple((graph.prompt, graph.max_feature_nodes) for graph in found.graphs) for found in reports} - {()}) > 1:
        lines.append("graph scores are not to be compared: their prompts, or the features attributed, are not the same")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
