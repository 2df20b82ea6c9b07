"""Artefacts: every kind of artefact of the package, with functions that save and load two versions of it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure

from open_clt import files
from open_clt.config import CrossLayerConfig, MoltConfig, ReLUConfig
from open_clt.evaluation.calibration import Calibration, Logistic, load_calibration, save_calibration
from open_clt.evaluation.evaluate import Evaluation
from open_clt.evaluation.measured_on import MeasuredOn
from open_clt.evaluation.report import NORM_QUANTILES, Report
from open_clt.evaluation.report_file import load_report, save_reconstruction, save_report
from open_clt.explorer.session.session import Session
from open_clt.explorer.session.session_file import SavedSession, load_session, save_session
from open_clt.explorer.traces import Trace, load_trace, save_trace
from open_clt.features.feature_files import (
    INDEX,
    FeatureFiles,
    read_feature_json,
    write_feature_files,
    write_feature_json,
)
from open_clt.features.records import FeatureRecord
from open_clt.graphs.consensus import consensus
from open_clt.graphs.edges import Edges
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import METADATA_FILE, GraphCard
from open_clt.graphs.formats.networkx import read_graphml, write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.hub.repository import read_index, write_index
from open_clt.replacement.comparison import LogitComparison
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.metrics_file import MetricsFile
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer, save_circuit_tracer_layers
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.formats.saelens_writer import save_saelens
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.metrics import LayerMetrics, TranscoderMetrics
from open_clt.visualization.dashboards.write import write_dashboards
from open_clt.visualization.interactive.saving import save_interactive
from open_clt.visualization.page import page, write_page
from open_clt.visualization.style import save
from tests.circuits.small_circuit import load_circuit, save_circuit
from tests.data.dataset import parts as dataset
from tests.features.rich_record import ABOUT, rich_record
from tests.graphs.hand_graph import hand_attention, hand_graph


class Artefact(NamedTuple):
    """A kind of artefact: functions that save version 1 or 2 of it to a directory, and load it from there."""

    save: Callable[[Path, int], object]
    load: Callable[[Path], object]
    """Returns values that are equal for the same version only; raises CheckpointError without a whole artefact."""
    modules: tuple[str, ...]
    """The modules of the package that write this kind of artefact."""
    json: str | None = None
    """Name of the artefact's JSON file, if it has one."""
    named_by_user: bool = False
    """Whether the user names the single file, or the caller checks its place: a save replaces any file there."""


def transcoder_facts(directory: Path) -> object:
    transcoder = load_transcoder(directory)
    return transcoder.config, {name: tensor.tolist() for name, tensor in transcoder.state_dict().items()}


def save_native(directory: Path, version: int) -> None:
    config = MoltConfig(
        n_layers=2, d_model=4, ranks=(2,), counts=(6,), nonlinearity=ReLUConfig(), language_model=str(version)
    )
    save_transcoder(make_transcoder(config, seed=version), directory)


def save_in_circuit_tracers_layout(directory: Path, version: int) -> None:
    """Save a transcoder that has fewer layers in version 2, so that files of version 1 must be deleted."""
    config = CrossLayerConfig(n_layers=3 - version, d_model=4, n_features=6, nonlinearity=ReLUConfig())
    save_circuit_tracer(make_transcoder(config, seed=version), directory)


def save_in_circuit_tracers_layers(directory: Path, version: int) -> None:
    """Save transcoders of one per layer that have fewer layers in version 2."""
    config = CrossLayerConfig(n_layers=3 - version, d_model=4, n_features=6, nonlinearity=ReLUConfig(), reach=1)
    save_circuit_tracer_layers(make_transcoder(config, seed=version), directory)


def save_in_the_layout_of_saelens(directory: Path, version: int) -> None:
    """Save transcoders, each in a folder, of which version 2 has fewer."""
    config = CrossLayerConfig(n_layers=3 - version, d_model=4, n_features=6, nonlinearity=ReLUConfig(), reach=1)
    save_saelens(make_transcoder(config, seed=version), directory)


def graph_of(version: int) -> AttributionGraph:
    graph = hand_graph()
    edges = Edges(graph.edges.target, graph.edges.source, graph.edges.weight * version)
    return replace(
        graph,
        edges=edges,
        labels={Feature(0, 5): str(version)},
        info=replace(graph.info, prompt=str(version)),
        attention=hand_attention(float(version)),
    )


def consensus_of(version: int) -> AttributionGraph:
    return consensus([graph_of(version), graph_of(version + 1)])


def calibration_of(version: int) -> Calibration:
    regression = Logistic(intercept=float(version), weights=(1.0, 2.0), trials=20, share=0.5)
    return Calibration(transcoder_hash=str(version), node=regression, edge=regression)


def graph_facts(graph: AttributionGraph) -> object:
    return graph.info.prompt, dict(graph.labels), graph.edges.weight.tolist(), graph.attention


def viewer_facts(directory: Path) -> object:
    def read(saved: files.Saved) -> object:
        prompts = [entry["prompt"] for entry in files.read_json(saved(METADATA_FILE))["graphs"]]
        return prompts, graph_facts(read_circuit_tracer(saved("cat.json")).graph)

    return files.read_saved(directory, METADATA_FILE, read)


def trace_of(version: int) -> Trace:
    likely = {"token": "a", "model": [["b", 0.5]], "replacement": [["c", 0.25]], "kl": float(version)}
    return Trace(key="0" * 20, graph=graph_of(version), predictions=(likely,), name=str(version))


def trace_facts(directory: Path) -> object:
    trace = load_trace(directory)
    return trace.predictions, trace.name, graph_facts(trace.graph)


def session_facts(saved: SavedSession) -> object:
    return saved.session, saved.trace.predictions, saved.trace.name, graph_facts(saved.trace.graph)


def report_of(version: int) -> Report:
    reconstruction = TranscoderMetrics(8, (LayerMetrics(float(version), 1.0, 0.0, 0.0),), (1, version))
    logits = LogitComparison(1.0, 2.0, 1.0, 0.5)
    evaluation = Evaluation(reconstruction, logits, 3.0, (logits,))
    norms = ((0.0,) * len(NORM_QUANTILES),)
    return Report("a", "b", {}, version, MeasuredOn("", 1, 8, ""), evaluation, norms, ())


def report_facts(directory: Path) -> object:
    return files.read_saved(
        directory, "evaluation.json", lambda saved: (load_report(directory), files.read_rows(saved("evaluation.csv")))
    )


def record_of(feature: int, version: int) -> FeatureRecord:
    return rich_record(0, feature, float(version))


def feature_facts(directory: Path) -> object:
    feature_files = FeatureFiles(directory)

    def read(_: files.Saved) -> object:
        record, about = feature_files.record(Feature(0, 0)), feature_files.about()
        assert record is not None
        assert about is not None
        return record_facts(record), about.tokens, feature_files.table()

    return files.read_saved(feature_files.folder, INDEX, read)


def record_facts(record: FeatureRecord) -> object:
    examples = [(example.tokens, example.activations.tolist()) for example in record.examples]
    return record.max_activation, record.quantile_values, examples, record.label


def checkpoint_facts(directory: Path) -> object:
    state = SafetensorsCheckpointIO().load_checkpoint(directory / "last")
    return state["step"], state["weights"].tolist()


def save_metrics(directory: Path, version: int) -> None:
    metrics = MetricsFile(directory / "metrics.csv")
    metrics.log_metrics({"loss": float(version)}, 0)
    metrics.save()


def save_interactive_figure(directory: Path, version: int) -> None:
    save_interactive(go.Figure(go.Scatter(x=[0, version])), directory / "figure.html")


def save_figure(directory: Path, version: int) -> None:
    figure = Figure()
    figure.add_subplot().plot([0, version])
    save(figure, directory / "figure.png")


def stored_features(version: int) -> Path:
    """Feature files of as many layers as the version says."""
    return _all_stored_features() / str(version)


@cache
def _all_stored_features() -> Path:
    """Feature files of all versions, which are written before any test makes the disk fail."""
    directory = Path(tempfile.mkdtemp(prefix="open-clt-features-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for version in (1, 2, 3):
        records = [rich_record(layer, 0, version) for layer in range(version)]
        about = replace(ABOUT, tokens=version)
        write_feature_files(records, directory / str(version), n_layers=version, n_features=1, about=about)
    return directory


def dashboards_facts(directory: Path) -> object:
    """The texts of the page and of the scripts beside it."""

    def read(saved: files.Saved) -> object:
        page = files.read_text(saved("index.html"))
        return page, [files.read_text(saved(name)) for name in saved.names("data/[!.]*.js")]

    return files.read_saved(directory, "index.html", read)


ARTEFACTS = {
    "transcoder": Artefact(save_native, transcoder_facts, ("transcoders.formats.native",), "config.json"),
    "transcoder for circuit-tracer": Artefact(
        save_in_circuit_tracers_layout, transcoder_facts, ("transcoders.formats.circuit_tracer_writer",)
    ),
    "transcoders per layer for circuit-tracer": Artefact(
        save_in_circuit_tracers_layers, transcoder_facts, ("transcoders.formats.circuit_tracer_writer",)
    ),
    "transcoders for SAELens": Artefact(
        save_in_the_layout_of_saelens, transcoder_facts, ("transcoders.formats.saelens_writer",), "layer_0/cfg.json"
    ),
    "manifest of a dataset": Artefact(
        dataset.save_manifest, dataset.manifest_facts, ("data.dataset.manifest",), "manifest.json", named_by_user=True
    ),
    "unfinished dataset": Artefact(
        dataset.save_unfinished,
        dataset.unfinished_facts,
        ("data.dataset.unfinished",),
        "unfinished.json",
        named_by_user=True,
    ),
    "stopped scramble": Artefact(
        dataset.save_scrambling,
        dataset.scrambling_facts,
        ("data.dataset.scrambling.state",),
        "scrambling.json",
        named_by_user=True,
    ),
    "statistics of a dataset": Artefact(
        dataset.save_statistics,
        dataset.statistics_facts,
        ("data.dataset.statistics",),
        "norm_stats.json",
        named_by_user=True,
    ),
    "shard of a dataset": Artefact(
        dataset.save_shard, dataset.shard_facts, ("data.dataset.shards",), named_by_user=True
    ),
    "dataset that was fetched": Artefact(
        dataset.save_fetched, dataset.fetched_facts, ("data.dataset.remote.folder",), named_by_user=True
    ),
    "upload of a dataset": Artefact(
        dataset.save_upload, dataset.upload_facts, ("data.server.uploads",), "upload.json", named_by_user=True
    ),
    "graph": Artefact(
        lambda d, v: graph_of(v).save(d),
        lambda d: graph_facts(AttributionGraph.load(d)),
        ("graphs.graph",),
        "graph.json",
    ),
    "consensus of graphs": Artefact(
        lambda d, v: consensus_of(v).save(d),
        lambda d: graph_facts(AttributionGraph.load(d)),
        ("graphs.graph",),
        "graph.json",
    ),
    "graph for viewers": Artefact(
        lambda d, v: write_circuit_tracer(graph_of(v), d, GraphCard(slug="cat")),
        viewer_facts,
        ("graphs.formats.circuit_tracer",),
        "cat.json",
    ),
    "graph as GraphML": Artefact(
        lambda d, v: write_graphml(graph_of(v), d / "cat.graphml"),
        lambda d: graph_facts(read_graphml(d / "cat.graphml")),
        ("graphs.formats.networkx",),
        named_by_user=True,
    ),
    "calibration": Artefact(
        lambda d, v: save_calibration(calibration_of(v), d),
        load_calibration,
        ("evaluation.calibration",),
        "calibration.json",
    ),
    "report": Artefact(
        lambda d, v: save_report(report_of(v), d), report_facts, ("evaluation.report_file",), "evaluation.json"
    ),
    "reconstruction": Artefact(
        lambda d, v: save_reconstruction({"fvu": v}, d, reason="none"),
        lambda d: files.read_saved_file(d / "evaluation.json", files.read_json),
        ("evaluation.report_file",),
    ),
    "features": Artefact(
        lambda d, v: write_feature_files(
            [record_of(0, v)], d, n_layers=v, n_features=3, about=replace(ABOUT, tokens=v)
        ),
        feature_facts,
        ("features.feature_files", "features.about"),
    ),
    "feature as JSON": Artefact(
        lambda d, v: write_feature_json([record_of(0, v)], d),
        lambda d: record_facts(read_feature_json(d, Feature(0, 0))),
        ("features.feature_files",),
        "0.json",
    ),
    "dashboards": Artefact(
        lambda d, v: write_dashboards(stored_features(v), d), dashboards_facts, ("visualization.dashboards.write",)
    ),
    "checkpoint": Artefact(
        lambda d, v: SafetensorsCheckpointIO().save_checkpoint({"step": v, "weights": torch.full((2,), v)}, d / "last"),
        checkpoint_facts,
        ("training.checkpoint_io",),
        "last/state.json",
    ),
    "metrics": Artefact(
        save_metrics, lambda d: files.read_rows(d / "metrics.csv"), ("training.metrics_file",), named_by_user=True
    ),
    "figure": Artefact(
        save_figure, lambda d: files.read_bytes(d / "figure.png"), ("visualization.style",), named_by_user=True
    ),
    "trace of the explorer": Artefact(
        lambda d, v: save_trace(trace_of(v), d), trace_facts, ("explorer.traces",), "trace.json"
    ),
    "circuit": Artefact(save_circuit, load_circuit, ("circuits.circuit",), named_by_user=True),
    "session of the explorer": Artefact(
        lambda d, v: save_session(SavedSession(Session(percent=v), trace_of(v), ""), d / "session.json"),
        lambda d: session_facts(load_session(d / "session.json")),
        ("explorer.session.session_file",),
        "session.json",
        named_by_user=True,
    ),
    "page": Artefact(
        lambda d, v: write_page(d / "report.html", page(str(v), "", styles=["graph.css"], scripts=["elements.js"])),
        lambda d: files.read_text(d / "report.html"),
        ("visualization.page",),
        named_by_user=True,
    ),
    "interactive figure": Artefact(
        save_interactive_figure,
        lambda d: files.read_bytes(d / "figure.html"),
        ("visualization.interactive.saving",),
        named_by_user=True,
    ),
    "text": Artefact(
        lambda d, v: files.write_text(d / "config.yaml", f"seed_everything: {v}"),
        lambda d: files.read_text(d / "config.yaml"),
        ("training.flags.command_line", "training.trainer", "practice_run"),
        named_by_user=True,
    ),
    "JSON": Artefact(
        lambda d, v: files.write_json(d / "metrics.json", {"fvu": v}),
        lambda d: files.read_json(d / "metrics.json"),
        ("practice_run", "commands.attention"),
        named_by_user=True,
    ),
    "index of a repository": Artefact(
        lambda d, v: write_index(d / "main.json", str(v), {"config.json": v}),
        lambda d: read_index(d / "main.json"),
        ("hub.repository",),
        named_by_user=True,
    ),
    "table": Artefact(
        lambda d, v: files.write_rows(d / "comparison.csv", [{"held_out_fvu": v}]),
        lambda d: files.read_rows(d / "comparison.csv"),
        ("commands.compare",),
        named_by_user=True,
    ),
}
"""Every kind of artefact that the package writes and reads. A new kind is a line here."""
