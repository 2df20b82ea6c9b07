"""The report of a prompt: ``write_report`` computes everything and writes one HTML file, which needs no network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, final

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt import files
from open_clt.attribution.attribute import AttributionSettings, attribute
from open_clt.config.arguments import Count, NotNegative, checked_arguments
from open_clt.data.contexts import pack_contexts
from open_clt.errors import ConfigError
from open_clt.evaluation.calibration import with_stored_confidence
from open_clt.evaluation.faithfulness import faithfulness, with_faithfulness
from open_clt.evaluation.faithfulness_report import Faithfulness
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.labelling.given import label_features
from open_clt.features.places import find_records
from open_clt.features.records import FeatureRecord
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.language.prompts import Prompt
from open_clt.progress import progress_bar
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.neurons.source import NEURONS
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.graph.page_data import drawn_nodes, graph_data
from open_clt.visualization.page import data_script, page, write_page
from open_clt.visualization.prompt_report import sections
from open_clt.visualization.prompt_report.features import (
    check_fits_files,
    record_data,
    records_on,
    records_without_text,
)
from open_clt.visualization.prompt_report.neurons import NeuronComparison, check_comparable, explained
from open_clt.visualization.prompt_report.predictions import Prediction, predictions

_SUFFIXES = (".html", ".htm")
_CONTEXT_LENGTH, _MOST_CONTEXTS = 48, 256
_FEW = 100
"""Largest number of features of which a page shows two examples from each range of quantiles, instead of one."""
_ADVICE = "There are no examples; give the directory of feature files, or texts to read examples from."


@final
@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a report reads and how much it computes."""

    source: str | Path | None
    """Directory or name of the transcoder, in which records and a calibration are looked for."""
    features: Path | None
    """Directory with feature files."""
    texts: Iterable[str] | Tensor | None
    """Texts, or contexts of tokens, from which examples are taken if there are no feature files."""
    labels: Mapping[Feature, str]
    node_threshold: float
    edge_threshold: float
    max_ablations: int
    neurons: int | None
    """Number of neurons with rows in the graph that the report compares with; None for no comparison."""
    facts: Mapping[str, str]

    __repr__ = short_repr


@final
@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """Everything that a report shows."""

    graph: AttributionGraph
    """The whole graph, with labels."""
    pruned: AttributionGraph
    """The graph that is drawn."""
    predictions: Sequence[Prediction]
    """What both models predict after each token."""
    faithfulness: Faithfulness | None
    neurons: NeuronComparison | None
    """The comparison with a graph of the model's own neurons."""
    records: Sequence[FeatureRecord]
    """Records of the features that are drawn."""
    automatic: frozenset[Feature]
    """Features whose labels are made of their records."""
    transcoder: Transcoder
    facts: Mapping[str, str]
    """Further lines on how the report was made."""

    __repr__ = short_repr


@checked_arguments
def write_report(
    model: LanguageModel,
    transcoder: Transcoder,
    prompt: Prompt,
    path: str | Path,
    *,
    source: str | Path | None = None,
    features: str | Path | None = None,
    texts: Iterable[str] | Tensor | None = None,
    labels: Mapping[Feature, str] | None = None,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    max_ablations: NotNegative = 8,
    neurons: Count | None = None,
    facts: Mapping[str, str] | None = None,
    **settings: Unpack[AttributionSettings],
) -> Path:
    """Write one HTML file about a prompt: predictions, attribution graph, features, faithfulness; return its path.

    The file needs no network and holds at most 300 nodes and 2,000 edges of the graph that ``node_threshold`` and
    ``edge_threshold`` leave. Examples of features come from the feature files in ``features``, or else from the first
    256 contexts of ``texts``, which may also be contexts of tokens, each beginning with BOS. Without both, they are the
    records of the transcoder: in its own directory, which is ``source``, in the cache or in the package; if there are
    none, features show the output tokens that they raise and lower. The calibration that gives features their
    confidence is looked for in the same places. ``labels`` are the user's, and win over automatic ones.
    ``max_ablations`` features are ablated to measure faithfulness; 0 skips that. ``neurons`` adds a comparison with a
    graph of the model's own neurons, of which so many have rows. ``facts`` are further lines on how the report was
    made, and ``settings`` those of ``attribute``.

    Raises ConfigError if ``path`` does not end in .html, or if neurons cannot be compared; and the errors
    of ``attribute``.
    """
    path = Path(path)
    check_report_path(path)
    if features is not None:
        check_fits_files(features)
    if neurons is not None:
        check_comparable(transcoder, settings.get("targets"))
    report = make_report(
        ReplacementModel(model, transcoder),
        prompt,
        ReportSettings(
            source=source,
            features=None if features is None else Path(features),
            texts=texts,
            labels=labels or {},
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
            max_ablations=max_ablations,
            neurons=neurons,
            facts=facts or {},
        ),
        **settings,
    )
    return write_page(path, report_page(report))


def check_report_path(path: Path) -> None:
    """Raise ConfigError if a path does not end in .html, or cannot be written."""
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{str(path)!r} does not end in .html; a report is one HTML file.")
    files.check_file(path)


def make_report(
    replacement: ReplacementModel, prompt: Prompt, use: ReportSettings, **settings: Unpack[AttributionSettings]
) -> PromptReport:
    """Compute everything that a report shows, with a progress bar in a terminal or notebook."""
    model, transcoder = replacement.model, replacement.transcoder
    with progress_bar("report", transient=True) as bar:
        task = bar.add_task("report", total=5)
        graph = attribute(model, transcoder, prompt, **settings).with_labels(use.labels)
        graph = with_stored_confidence(graph, transcoder, use.source)
        bar.advance(task)
        predicted = predictions(replacement, torch.tensor(graph.info.tokens))
        bar.advance(task)
        checked = faithfulness(graph, replacement, max_features=use.max_ablations) if use.max_ablations else None
        graph = graph if checked is None else with_faithfulness(graph, checked)
        bar.advance(task)
        pruned = graph.prune(use.node_threshold, use.edge_threshold)
        chosen = _drawn_features(pruned)
        records = _records(replacement, use, chosen)
        bar.advance(task)
        neurons = _neurons(graph, model, prompt, use.neurons, **settings)
        bar.advance(task)
    labelled = label_features(pruned, records)
    given = {record.feature for record in records if record.label is not None and not record.label.automatic}
    return PromptReport(
        graph=graph,
        pruned=labelled,
        predictions=predicted,
        faithfulness=checked,
        neurons=neurons,
        records=records,
        automatic=frozenset(labelled.labels) - set(graph.labels) - given,
        transcoder=transcoder,
        facts=use.facts,
    )


def _records(replacement: ReplacementModel, use: ReportSettings, chosen: Sequence[Feature]) -> Sequence[FeatureRecord]:
    """Records of features: from files, else from texts, else those of the transcoder, else from the weights alone."""
    model, transcoder = replacement.model, replacement.transcoder
    if use.texts is None or use.features is not None:
        stored = find_records(use.source, transcoder) if use.features is None else FeatureFiles(use.features)
        return records_without_text(model, transcoder, chosen) if stored is None else stored.records(chosen)
    return records_on(model, transcoder, _contexts(model, use.texts), chosen)


def _contexts(model: LanguageModel, texts: Iterable[str] | Tensor) -> Int[Tensor, "context position"]:
    """Contexts that begin where texts begin, as prompts do."""
    if isinstance(texts, Tensor):
        return texts
    return pack_contexts(texts, model, _CONTEXT_LENGTH, from_start=True, max_contexts=_MOST_CONTEXTS)


def _neurons(
    graph: AttributionGraph,
    model: LanguageModel,
    prompt: Prompt,
    budget: int | None,
    **settings: Unpack[AttributionSettings],
) -> NeuronComparison | None:
    """The comparison of a graph with one of so many of the model's own neurons, of the same prompt and settings."""
    if budget is None:
        return None
    settings["max_feature_nodes"] = budget
    return NeuronComparison(explained(graph), explained(attribute(model, NEURONS, prompt, **settings)))


def _drawn_features(pruned: AttributionGraph) -> list[Feature]:
    drawn = [pruned.node(row) for row in drawn_nodes(pruned)]
    return sorted({Feature(node.layer, node.index) for node in drawn if node.kind is NodeKind.FEATURE})


def report_page(report: PromptReport) -> str:
    """Return the HTML of a report."""
    pruned = report.pruned
    graph = graph_data(pruned, automatic=report.automatic)
    per_group = 2 if len(report.records) <= _FEW else 1
    values = {
        "graph": graph,
        "features": {str(record.feature): record_data(record, per_group=per_group) for record in report.records},
        "advice": _ADVICE,
    }
    body = "\n".join(
        [
            f'<div class="r-first">{sections.head(pruned, report.predictions[-1])}{sections.graph_section()}</div>',
            sections.features_section(_note(report, graph)),
            sections.predictions_section(report.predictions),
            sections.faithfulness_section(report.faithfulness),
            *([] if report.neurons is None else [sections.neurons_section(report.neurons)]),
            sections.made_section(report.graph, pruned, report.transcoder, report.facts),
        ]
    )
    return _page(f"OpenCLT report: {pruned.info.prompt}", body, values)


def graph_page(
    graph: AttributionGraph, records: Sequence[FeatureRecord] = (), automatic: Collection[Feature] = ()
) -> str:
    """Return the HTML of a page about a graph alone, which needs no model: the graph, its features, how it was made.

    ``records`` are those of features that the graph draws, and ``automatic`` the features with automatic labels.
    """
    drawn = graph_data(graph, automatic=automatic)
    per_group = 2 if len(records) <= _FEW else 1
    values = {
        "graph": drawn,
        "features": {str(record.feature): record_data(record, per_group=per_group) for record in records},
        "advice": _ADVICE,
    }
    count = len({node["feature"] for node in drawn["nodes"]} - {None})
    body = "\n".join(
        [
            f'<div class="r-first">{sections.head_of_graph(graph)}{sections.graph_section()}</div>',
            sections.features_section(f"{count} features of the graph, by influence."),
        ]
    )
    return _page(f"OpenCLT graph: {graph.info.prompt}", body, values)


def _page(title: str, body: str, values: Mapping[str, Any]) -> str:
    return page(
        title,
        body,
        styles=("graph.css", "feature.css", "report.css"),
        scripts=("elements.js", "feature.js", "graph.js", "panel.js", "node_search.js", "report.js"),
        data=data_script("data", values),
    )


def _note(report: PromptReport, graph: Mapping[str, Any]) -> str:
    count = len({node["feature"] for node in graph["nodes"]} - {None})
    examples = sum(bool(record.examples) for record in report.records)
    kind = "Labels in italics are automatic." if report.automatic else "Labels are the user's."
    return f"{count} features of the graph, by influence; {examples} of them have examples. {kind}"
