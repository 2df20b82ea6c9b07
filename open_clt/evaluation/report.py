"""The report of a transcoder: the record of its numbers, written by ``open-clt evaluate``, tabulated by ``compare``.

    reconstruction    FVU and L0 of each layer, shares of dead and dense features, histogram of densities
    decoders          quantiles of each layer's decoder norms
    predictions       cross-entropy with the MLPs, with the transcoder, with mean outputs; KL divergence, agreement
    single layers     predictions with only the MLP of one layer replaced
    graphs            replacement and completeness scores of attribution graphs

An autoencoder replaces the activations at its hook instead of the MLP outputs. Everything is measured on held-out
contexts. A report says on which contexts it was measured, and only reports on the same contexts are compared.
``report_file.py`` writes a report and reads it back.
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
from open_clt.config.json import check_record, to_dict
from open_clt.errors import AttributionError, ConfigError, LanguageModelError
from open_clt.evaluation.evaluate import Evaluation, measure
from open_clt.evaluation.measured_on import MeasuredOn, check_same_contexts, measured_on
from open_clt.html_repr import html_repr
from open_clt.language.language_model import LanguageModel
from open_clt.processes import ALONE, Processes
from open_clt.progress import report_progress
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)

NORM_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Quantiles of the decoder norms that a report holds."""


class GraphReport(NamedTuple):
    """The scores of the attribution graph of one prompt."""

    prompt: str
    """Text of the prompt."""
    replacement: float
    """Replacement score of the graph."""
    completeness: float
    """Completeness score of the graph."""
    max_feature_nodes: int | None = None
    """Largest number of features that are attributed in the graph; None means all."""


class Report(NamedTuple):
    """The description of a transcoder: its config, its numbers on held-out text, and the scores of its graphs."""

    name: str
    """Name of the transcoder in tables."""
    model: str
    """Name of the language model."""
    settings: dict[str, Any]
    """Config of the transcoder."""
    parameters: int
    """Number of parameters of the transcoder."""
    measured_on: MeasuredOn
    """Contexts on which the numbers were measured."""
    evaluation: Evaluation
    """Numbers of the transcoder on these contexts."""
    decoder_norms: tuple[tuple[float, ...], ...]
    """Quantiles (``NORM_QUANTILES``) of the decoder norms of each layer, in the units of the weights."""
    graphs: tuple[GraphReport, ...]
    """Scores of the attribution graph of each prompt."""

    @property
    def graph_replacement(self) -> float | None:
        """Mean replacement score of the graphs; None without graphs."""
        return sum(graph.replacement for graph in self.graphs) / len(self.graphs) if self.graphs else None

    @property
    def graph_completeness(self) -> float | None:
        """Mean completeness score of the graphs; None without graphs."""
        return sum(graph.completeness for graph in self.graphs) / len(self.graphs) if self.graphs else None

    def row(self) -> dict[str, Any]:
        """The row of this transcoder in a comparison table."""
        graphs = {"graph_replacement": self.graph_replacement, "graph_completeness": self.graph_completeness}
        return {"name": self.name, **self.evaluation.totals(), **graphs, "parameters": self.parameters}

    def layers(self) -> list[dict[str, Any]]:
        """The rows of the layers in a table of layers."""
        rows = zip(self.evaluation.layers(), self.decoder_norms, strict=True)
        return [{**row, "decoder_norms": norms} for row, norms in rows]

    def as_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON; ``from_dict`` reads it."""
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
        """Rebuild a report from ``as_dict``.

        Raises KeyError, TypeError, ValueError, ArithmeticError or ConfigError if the content is not that of a report.
        """
        rebuilt = cls(
            name=content["name"],
            model=content["model"],
            settings=content["settings"],
            parameters=content["parameters"],
            measured_on=MeasuredOn(**content["measured_on"]),
            evaluation=Evaluation.from_dict(content),
            decoder_norms=tuple(tuple(layer["decoder_norms"]) for layer in content["layers"]),
            graphs=tuple(GraphReport(**graph) for graph in content["graphs"]),
        )
        check_record(rebuilt)
        # These two raise if there are no layers, or if layers and norms differ in number.
        rebuilt.row()
        rebuilt.layers()
        return rebuilt

    __repr__ = short_repr
    _repr_html_ = html_repr


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
    processes: Processes = ALONE,
) -> Report:
    """Measure a transcoder on contexts of tokens, each of which begins with BOS, and on the graphs of some prompts.

    ``text`` describes where the contexts come from. Each graph attributes at most ``max_feature_nodes`` features. The
    report of a transcoder that attribution cannot use has no graphs. Several processes share the contexts, and only the
    first one computes the graphs.
    """
    transcoder = replacement.transcoder
    return Report(
        name=name,
        model=replacement.model.name,
        settings=to_dict(transcoder.config),
        parameters=transcoder.n_parameters,
        measured_on=measured_on(contexts, text),
        evaluation=measure(replacement, contexts, alone=True, batch_size=batch_size, processes=processes),
        decoder_norms=norm_quantiles(transcoder.decoder_norms()),
        graphs=tuple(_graphs(replacement.model, transcoder, prompts if processes.is_first else (), max_feature_nodes)),
    )


def norm_quantiles(norms: Float[Tensor, "layer feature"]) -> tuple[tuple[float, ...], ...]:
    """Quantiles of each layer's norms, by sorting, because torch.quantile limits the number of elements."""
    ordered = norms.float().sort(dim=1).values
    ranks = torch.tensor(NORM_QUANTILES) * (ordered.shape[1] - 1)
    return tuple(tuple(row) for row in ordered[:, ranks.round().long()].tolist())


def _graphs(
    model: LanguageModel, transcoder: Transcoder, prompts: Sequence[str], max_feature_nodes: int | None
) -> list[GraphReport]:
    """The scores of each prompt's graph; logs a warning for graphs that cannot be computed."""
    reports: list[GraphReport] = []
    try:
        attributable(transcoder, model)
    except AttributionError as error:
        if prompts:
            logger.warning("The report is without graphs. %s", error)
        return reports
    for number, prompt in enumerate(prompts):
        report_progress("scoring attribution graphs", number, len(prompts))
        try:
            graph = attribute(model, transcoder, prompt, max_feature_nodes=max_feature_nodes)
        except (AttributionError, LanguageModelError) as error:
            logger.warning("The graph of prompt %r cannot be computed: %s", prompt, error)
            continue
        reports.append(GraphReport(prompt, *graph.scores(), max_feature_nodes))
    return reports


class Column(NamedTuple):
    """A column of a printed table: its head, and the function that turns a row of numbers into the text of its cell."""

    head: str
    cell: Callable[[dict[str, Any]], str]

    __repr__ = short_repr


def _number(name: str, form: str) -> Callable[[dict[str, Any]], str]:
    """A function that formats one number of a row, or gives a dash if the number is None."""
    return lambda row: "-" if row[name] is None else format(row[name], form)


_MEDIAN = NORM_QUANTILES.index(0.5)
_SPARSITY = (
    Column("L0", _number("l0", ".1f")),
    Column("dead", _number("dead_share", ".1%")),
    Column("dense", _number("dense_share", ".1%")),
)
_FVU = Column("FVU", _number("fvu", ".4f"))
_PARAMETERS = Column("params", lambda row: f"{row['parameters'] / 1e6:.2f} M")
_NORM = Column("norm", lambda row: format(row["decoder_norms"][_MEDIAN], ".2f"))
RECONSTRUCTION_LAYER_COLUMNS = (_FVU, *_SPARSITY, _NORM)
"""Columns of a table of layers that need activations only."""
_LAYER_COLUMNS = (
    *RECONSTRUCTION_LAYER_COLUMNS,
    Column("CE alone", _number("ce_alone", ".3f")),
    Column("KL alone", _number("kl_alone", ".3f")),
    Column("agreement", _number("top1_agreement_alone", ".1%")),
)
_TOTALS = (_FVU, Column("worst", _number("worst_fvu", ".4f")), *_SPARSITY)
RECONSTRUCTION_COLUMNS = (*_TOTALS, _PARAMETERS)
"""Columns of a table of transcoders that need activations only."""
_COLUMNS = (
    *_TOTALS,
    Column("CE", _number("ce_replacement", ".3f")),
    Column("recovered", _number("ce_recovered", ".1%")),
    Column("KL", _number("kl", ".3f")),
    Column("agreement", _number("top1_agreement", ".1%")),
    Column("graph", _number("graph_replacement", ".2f")),
    Column("complete", _number("graph_completeness", ".2f")),
    _PARAMETERS,
)


def text_table(
    heads: str, names: Sequence[str], rows: Sequence[dict[str, Any]], columns: Sequence[Column]
) -> list[str]:
    """The lines of a table: a line of heads, and one line for each row, which begins with the row's name."""
    lines = [heads + "".join(f"{column.head:>11}" for column in columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{len(heads)}}" + "".join(f"{column.cell(row):>11}" for column in columns))
    return lines


class ComparisonCells(NamedTuple):
    """A comparison of transcoders as texts in rows and columns."""

    heads: tuple[str, ...]
    """Heads of the columns, of which the first is for the names of the transcoders."""
    rows: tuple[tuple[str, ...], ...]
    """Cells of each transcoder."""
    notes: tuple[str, ...]
    """Sentences below the table."""

    __repr__ = short_repr


def layer_table(report: Report) -> str:
    """A table of a transcoder's layers as text, one line per layer."""
    rows = report.layers()
    return "\n".join(text_table("layer  ", [str(row["layer"]) for row in rows], rows, _LAYER_COLUMNS))


def comparison_cells(reports: Sequence[Report]) -> ComparisonCells:
    """The cells of ``comparison_table``; has the same errors."""
    notes = _checked(reports)
    rows = [report.row() for report in reports]
    return ComparisonCells(
        heads=("transcoder", *(column.head for column in _COLUMNS)),
        rows=tuple((row["name"], *(column.cell(row) for column in _COLUMNS)) for row in rows),
        notes=tuple(notes),
    )


def comparison_table(reports: Sequence[Report]) -> str:
    """A table of several transcoders as text, one line per transcoder.

    Raises ConfigError if they were not measured on the same model and the same contexts.
    """
    notes, names = _checked(reports), [report.name for report in reports]
    width = max(12, *map(len, names)) + 2
    return "\n".join(
        [*text_table(f"{'transcoder':<{width}}", names, [report.row() for report in reports], _COLUMNS), *notes]
    )


def _checked(reports: Sequence[Report]) -> list[str]:
    """Sentences below a comparison of reports.

    Raises ConfigError if they were not measured on the same model and the same contexts.
    """
    if not reports:
        raise ConfigError("reports is empty; give the report of at least one transcoder.")
    models = sorted({report.model for report in reports})
    if len(models) > 1:
        raise ConfigError(
            f"The transcoders belong to different models ({', '.join(models)}); compare transcoders of one model."
        )
    check_same_contexts([report.name for report in reports], [report.measured_on for report in reports])
    original, measured = reports[0].evaluation.logits.cross_entropy_original, reports[0].measured_on
    notes = [f"cross-entropy of {models[0]} itself: {original:.3f}, on {measured.description}"]
    prompts = {tuple((graph.prompt, graph.max_feature_nodes) for graph in report.graphs) for report in reports}
    if len(prompts - {()}) > 1:
        notes.append("graph scores cannot be compared: their prompts or their limits on features differ")
    return notes
