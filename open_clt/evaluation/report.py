"""The report of a transcoder: its numbers in one record, which ``open-clt evaluate`` writes and ``compare`` lines up.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.attribution.sources import attributable
from open_clt.config.json import to_dict
from open_clt.errors import AttributionError, ConfigError
from open_clt.evaluation.evaluate import Evaluation, measure
from open_clt.evaluation.measured_on import MeasuredOn, check_same_contexts, measured_on
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

NORM_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class GraphReport(NamedTuple):
    """Scores of the attribution graph of one prompt."""

    prompt: str
    replacement: float
    completeness: float
    max_feature_nodes: int | None = None
    """Features that were attributed in it at most; None is all."""


class Report(NamedTuple):
    """All that is known of a transcoder: what it is, its numbers on held-out text, and its graphs' scores."""

    name: str
    model: str
    settings: dict[str, Any]
    """The transcoder's configuration."""
    parameters: int
    measured_on: MeasuredOn
    evaluation: Evaluation
    decoder_norms: tuple[tuple[float, ...], ...]
    """For each layer, quantiles (``NORM_QUANTILES``) of its decoder norms, in standardised units."""
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
        """The row of this transcoder in a table of several."""
        graphs = {"graph_replacement": self.graph_replacement, "graph_completeness": self.graph_completeness}
        return {"name": self.name, **self.evaluation.totals(), **graphs, "parameters": self.parameters}

    def layers(self) -> list[dict[str, Any]]:
        """The row of each layer in a table of the layers."""
        rows = zip(self.evaluation.layers(), self.decoder_norms, strict=True)
        return [{**row, "decoder_norms": norms} for row, norms in rows]

    def as_dict(self) -> dict[str, Any]:
        """The whole report, JSON-ready; ``from_dict`` reads it."""
        evaluation = self.evaluation
        return {
            "name": self.name,
            "model": self.model,
            "settings": self.settings,
            "parameters": self.parameters,
            "measured_on": self.measured_on._asdict(),
            **evaluation.totals(),
            "density_histogram": evaluation.reconstruction.density_histogram,
            "layers": self.layers(),
            "graphs": [graph._asdict() for graph in self.graphs],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The report that ``as_dict`` described; raises KeyError or TypeError if it is another thing."""
        return cls(
            name=content["name"],
            model=content["model"],
            settings=content["settings"],
            parameters=content["parameters"],
            measured_on=MeasuredOn(**content["measured_on"]),
            evaluation=Evaluation.from_dict(content),
            decoder_norms=tuple(tuple(layer["decoder_norms"]) for layer in content["layers"]),
            graphs=tuple(GraphReport(**graph) for graph in content["graphs"]),
        )


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
    return Report(
        name=name,
        model=replacement.model.name,
        settings=to_dict(transcoder.config),
        parameters=sum(parameter.numel() for parameter in transcoder.parameters()),
        measured_on=measured_on(contexts, text),
        evaluation=measure(replacement, contexts, alone=True, batch_size=batch_size),
        decoder_norms=_norm_quantiles(transcoder.decoder_norms()),
        graphs=tuple(_graphs(replacement.model, transcoder, prompts, max_feature_nodes)),
    )


def _norm_quantiles(norms: Float[Tensor, "layer feature"]) -> tuple[tuple[float, ...], ...]:
    """Quantiles by sorting: torch.quantile refuses the width of large transcoders."""
    ordered = norms.float().sort(dim=1).values
    ranks = torch.tensor(NORM_QUANTILES) * (ordered.shape[1] - 1)
    return tuple(tuple(row) for row in ordered[:, ranks.round().long()].tolist())


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


class _Column(NamedTuple):
    """A column of a table for reading: its head, and the text of its cell from the row of numbers."""

    head: str
    cell: Callable[[dict[str, Any]], str]


def _number(name: str, form: str) -> Callable[[dict[str, Any]], str]:
    """The cell of one number of a row; a dash where there is none."""
    return lambda row: "-" if row[name] is None else format(row[name], form)


_MEDIAN = NORM_QUANTILES.index(0.5)
_LAYER_COLUMNS = (
    _Column("FVU", _number("fvu", ".4f")),
    _Column("L0", _number("l0", ".1f")),
    _Column("dead", _number("dead_share", ".1%")),
    _Column("dense", _number("dense_share", ".1%")),
    _Column("norm", lambda row: format(row["decoder_norms"][_MEDIAN], ".2f")),
    _Column("CE alone", _number("ce_alone", ".3f")),
    _Column("KL alone", _number("kl_alone", ".3f")),
    _Column("agreement", _number("top1_agreement_alone", ".1%")),
)
_COLUMNS = (
    _Column("FVU", _number("fvu", ".4f")),
    _Column("worst", _number("worst_fvu", ".4f")),
    _Column("L0", _number("l0", ".1f")),
    _Column("dead", _number("dead_share", ".1%")),
    _Column("dense", _number("dense_share", ".1%")),
    _Column("CE", _number("ce_replacement", ".3f")),
    _Column("recovered", _number("ce_recovered", ".1%")),
    _Column("KL", _number("kl", ".3f")),
    _Column("agreement", _number("top1_agreement", ".1%")),
    _Column("graph", _number("graph_replacement", ".2f")),
    _Column("complete", _number("graph_completeness", ".2f")),
    _Column("params", lambda row: f"{row['parameters'] / 1e6:.2f} M"),
)


def _table(heads: str, names: Sequence[str], rows: Sequence[dict[str, Any]], columns: Sequence[_Column]) -> list[str]:
    """The lines of a table: one of heads, and one for each row, which begins with its name."""
    lines = [heads + "".join(f"{column.head:>11}" for column in columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{len(heads)}}" + "".join(f"{column.cell(row):>11}" for column in columns))
    return lines


def layer_table(report: Report) -> str:
    """A transcoder's layers, a line each, for reading."""
    rows = report.layers()
    return "\n".join(_table("layer  ", [str(row["layer"]) for row in rows], rows, _LAYER_COLUMNS))


def comparison_table(reports: Sequence[Report]) -> str:
    """Several transcoders in one table, for reading.

    Raises ConfigError if they were not measured on the same model and the same contexts.
    """
    if not reports:
        raise ConfigError("There is no transcoder to compare; name at least one.")
    models = sorted({report.model for report in reports})
    if len(models) > 1:
        raise ConfigError(f"The transcoders belong to different models ({', '.join(models)}); compare those of one.")
    names = [report.name for report in reports]
    check_same_contexts(names, [report.measured_on for report in reports])
    width = max(12, *map(len, names)) + 2
    lines = _table(f"{'transcoder':<{width}}", names, [report.row() for report in reports], _COLUMNS)
    original, measured = reports[0].evaluation.logits.cross_entropy_original, reports[0].measured_on
    lines.append(f"cross-entropy of {models[0]} itself: {original:.3f}, on {measured.description}")
    prompts = {tuple((graph.prompt, graph.max_feature_nodes) for graph in report.graphs) for report in reports}
    if len(prompts - {()}) > 1:
        lines.append("graph scores are not to be compared: their prompts, or the features attributed, are not the same")
    return "\n".join(lines)
