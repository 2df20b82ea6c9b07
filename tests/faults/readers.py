"""Readers: every function of the package that reads a file which somebody else may have written.

A reader of the table reads an artefact and then uses what it read, because a fault that is found only at first use
comes too late. ``test_readers.py`` damages the artefacts (``mutations.py``), and fails when a module of the package
reads files and is not in the table.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from open_clt.config import BatchTopKConfig, CrossLayerConfig, JumpReLUConfig, MoltConfig, TopKConfig
from open_clt.data.dataset_card import check_card
from open_clt.data.prompts import read_prompts
from open_clt.data.texts import read_texts
from open_clt.errors import TextError
from open_clt.evaluation.report_file import load_report, save_report
from open_clt.explorer.traces import load_trace, save_trace
from open_clt.features.about import ABOUT as ABOUT_FILE
from open_clt.features.about import read_about, write_about
from open_clt.features.feature_files import FeatureFiles, read_feature_json, write_feature_files, write_feature_json
from open_clt.features.labelling.given import read_labels
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import GraphCard
from open_clt.graphs.formats.networkx import read_graphml, write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.hub.repository import read_index, write_index
from open_clt.language.language_model import load_language_model
from open_clt.publishing.push import publication
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.flags.command_line import train_command
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.stored_weights import tensors_in_memory
from open_clt.transcoders.transcoder import Transcoder
from tests.data.dataset import parts as dataset
from tests.explorer.used_graphs import (
    curve_numbers,
    opened,
    read_session,
    use_graph,
    use_trace,
    write_curves,
    write_session,
)
from tests.faults.artefacts import graph_of, record_of, report_of, trace_of
from tests.features.rich_record import ABOUT
from tests.tiny_models import write_gpt2
from tests.transcoders.formats.written_by_bluelight import write_bluelight
from tests.transcoders.formats.written_by_bytedance import write_bytedance
from tests.transcoders.formats.written_by_clt_forge import write_clt_forge
from tests.transcoders.formats.written_by_clt_training import write_clt_training
from tests.transcoders.formats.written_by_crosslayer_transcoder import write_crosslayer_transcoder
from tests.transcoders.formats.written_by_decode_clt import write_decode_clt
from tests.transcoders.formats.written_by_gemma_scope import write_gemma_scope_1, write_gemma_scope_2_layers
from tests.transcoders.formats.written_by_llamascope import write_llamascope, write_llamascope_layers
from tests.transcoders.formats.written_by_saelens import write_saelens
from tests.transcoders.formats.written_layouts import write_circuit_tracer_layers, write_gemma_scope_2


@dataclass(frozen=True)
class Reader:
    """A function that reads and uses an artefact, and one that writes a valid artefact for it."""

    write: Callable[[Path], object]
    read: Callable[[Path], Iterable[Tensor | float]]
    """Reads the artefact in a folder, uses it, and returns those of its numbers that must be finite."""
    module: str
    """Module of the package that holds the reader, such as ``graphs.graph``."""
    names: str = ""
    """Regular expression of what a message may name instead of the file, such as a setting that the file holds."""
    slow: bool = False
    """Whether one call takes a large part of a second; such readers are left out of the default tier."""


def _transcoder_config(**settings: Any) -> CrossLayerConfig:
    return CrossLayerConfig(**{"n_layers": 2, "d_model": 4, "n_features": 6, **settings})


def _read_stored_transcoder(folder: Path) -> Iterable[Tensor]:
    """Use a transcoder whose encoders and decoders stay in their files."""
    return _use_transcoder(load_transcoder(folder, memory_limit=1))


def _read_transcoder(folder: Path) -> Iterable[Tensor]:
    return _use_transcoder(load_transcoder(folder))


def _use_transcoder(transcoder: Transcoder) -> Iterable[Tensor]:
    stored = () if transcoder.stored is None else transcoder.stored.tables
    tensors = [*tensors_in_memory(transcoder).values(), *(table.rows(torch.arange(len(table))) for table in stored)]
    numbers = [tensor.detach().float() for tensor in tensors]
    # Products of large finite weights may overflow, which is no fault of a reader.
    if not any(1e6 < float(tensor.abs().max()) < torch.inf for tensor in numbers if tensor.numel()):
        inputs = torch.linspace(-1, 1, 3 * transcoder.config.n_layers * transcoder.config.d_model)
        transcoder(inputs.view(3, transcoder.config.n_layers, transcoder.config.d_model))
    return numbers


def _write_card(folder: Path) -> None:
    save_transcoder(make_transcoder(_transcoder_config(nonlinearity=TopKConfig(k=2))), folder)
    (folder / "README.md").write_text("# My transcoder\n")


def _read_card(folder: Path) -> Iterable[float]:
    return [float(len(publication(folder, "org/name").card))]


def _read_features(folder: Path) -> Iterable[float]:
    feature_files = FeatureFiles(folder)
    feature_files.about()
    for row in feature_files.table():
        yield from (number for number in (row.density, row.max_activation) if not math.isnan(number))
    for layer, index in ((0, 0), (0, 2), (1, 1)):
        record = feature_files.record(Feature(layer, index))
        if record is not None:
            yield from _record_numbers(record)


def _record_numbers(record: Any) -> Iterable[float]:
    repr(record)
    # NaN means that the file of another program does not say it.
    numbers = [record.density, record.max_activation, record.min_activation, *record.quantile_values, *record.histogram]
    numbers += [entry.similarity for entry in (*record.nearest, *record.coactive)]
    return [number for number in numbers if not math.isnan(number)]


def _read_report(folder: Path) -> Iterable[float]:
    report = load_report(folder)
    report.layers()
    numbers = [value for value in report.row().values() if isinstance(value, float)]
    return [value for value in numbers if not math.isnan(value)]


def _read_checkpoint(folder: Path) -> Iterable[Tensor]:
    state = SafetensorsCheckpointIO().load_checkpoint(folder / "last")
    repr(state)
    return ()


def _write_rows(path: Path) -> None:
    rows = [{"text": "The cat sat."}, {"text": "Ein Hund, natürlich."}, {"text": "line\nbreak"}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["The cat sat.", "A dog."]}), folder / "text.parquet")


def _write_data_set(folder: Path) -> None:
    _write_rows(folder / "rows.jsonl")
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "rows.jsonl"}]}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Rows\n")


def _texts(name: str) -> Callable[[Path], Iterable[float]]:
    def read(folder: Path) -> Iterable[float]:
        for text in read_texts(folder / name):
            text.encode()
        return ()

    return read


def _write_settings(folder: Path) -> None:
    settings = {
        "transcoder": {"n_features": 64, "nonlinearity": {"kind": "batchtopk", "k": 4}},
        "training": {"learning_rate": 2e-3, "loss": {"auxiliary": 1.0, "dead_after_tokens": 20000}},
        "data": {"language_model": "embedded", "texts": {"source": "missing.txt"}, "context_length": 16},
        "trainer": {"max_steps": 3, "val_check_interval": 2},
        "checkpoints": {"every": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def _read_settings(folder: Path) -> Iterable[float]:
    """Read the settings of a training run, which then finds that its text is missing."""
    flags = ["--config", str(folder / "config.yaml"), "--data.texts.source", str(folder / "missing.txt")]
    try:
        train_command([*flags, "--output", str(folder / "output")])
    except TextError as error:
        if "missing.txt" not in str(error):
            raise
    return ()


def _use_language_model(folder: Path) -> Iterable[Tensor]:
    model = load_language_model(str(folder))
    return (model.logits(model.tokenize("The cat sat")[None]),)


def _nothing(read: Callable[[Path], object]) -> Callable[[Path], Iterable[float]]:
    def call(folder: Path) -> Iterable[float]:
        read(folder)
        return ()

    return call


def _native(**settings: Any) -> Callable[[Path], object]:
    return lambda folder: save_transcoder(make_transcoder(_transcoder_config(**settings), seed=1), folder)


_MOLT = MoltConfig(n_layers=2, d_model=4, ranks=(2,), counts=(6,), nonlinearity=TopKConfig(k=3))

_SETTING = (
    r"\b(transcoder|training|data|trainer|checkpoints|report|output|init_args)\b|Config\.\w+ is "
    r"|There is no setting|The language model|^\w+ is [^ ]+; it must "
)

READERS: dict[str, Reader] = {
    "transcoder": Reader(_native(nonlinearity=JumpReLUConfig()), _read_transcoder, "transcoders.formats.native"),
    "transcoder with k": Reader(
        _native(nonlinearity=BatchTopKConfig(k=2), skip=True, reach=1), _read_transcoder, "transcoders.formats.native"
    ),
    "MOLT": Reader(
        lambda folder: save_transcoder(make_transcoder(_MOLT, seed=1), folder),
        _read_transcoder,
        "transcoders.formats.native",
    ),
    "transcoder of circuit-tracer": Reader(
        lambda folder: save_circuit_tracer(
            make_transcoder(_transcoder_config(nonlinearity=JumpReLUConfig()), seed=1), folder
        ),
        _read_transcoder,
        "transcoders.formats.circuit_tracer",
    ),
    "transcoders of circuit-tracer per layer": Reader(
        lambda folder: write_circuit_tracer_layers(folder, thresholds=True, skip=True),
        _read_transcoder,
        "transcoders.formats.circuit_tracer_layers",
    ),
    "transcoder of Gemma Scope 2": Reader(
        lambda folder: write_gemma_scope_2(folder, skip=True), _read_transcoder, "transcoders.formats.gemma_scope_2"
    ),
    "transcoders of Gemma Scope 1": Reader(write_gemma_scope_1, _read_transcoder, "transcoders.formats.gemma_scope_1"),
    "transcoders of Gemma Scope 2 per layer": Reader(
        lambda folder: write_gemma_scope_2_layers(folder, skip=True),
        _read_transcoder,
        "transcoders.formats.gemma_scope_2_layers",
    ),
    "transcoder of BluelightAI": Reader(write_bluelight, _read_transcoder, "transcoders.formats.bluelight"),
    "transcoder of BluelightAI in parts": Reader(
        lambda folder: write_bluelight(folder, in_parts=True, version=2, decoder_layout="output_layer"),
        _read_transcoder,
        "transcoders.formats.bluelight",
    ),
    "transcoder of ByteDance": Reader(write_bytedance, _read_transcoder, "transcoders.formats.bytedance"),
    "transcoder of CLT-Forge": Reader(write_clt_forge, _read_transcoder, "transcoders.formats.clt_forge"),
    "transcoder of CLT-Forge in shards": Reader(
        lambda folder: write_clt_forge(folder, shards=(2, 4)), _read_transcoder, "transcoders.formats.clt_forge"
    ),
    "transcoder of clt-training": Reader(
        lambda folder: write_clt_training(
            folder,
            skip_connection=True,
            normalize_io=True,
            post_encoder_scale=True,
            divide_cross_layer=True,
            added=True,
        ),
        _read_transcoder,
        "transcoders.formats.clt_training",
    ),
    "transcoder of crosslayer-transcoder": Reader(
        write_crosslayer_transcoder, _read_transcoder, "transcoders.formats.crosslayer_transcoder"
    ),
    "transcoder with scales that stays in its files": Reader(
        write_crosslayer_transcoder, _read_stored_transcoder, "transcoders.formats.crosslayer_transcoder"
    ),
    "transcoders of Llama Scope per layer": Reader(
        write_llamascope_layers, _read_transcoder, "transcoders.formats.llamascope_layers"
    ),
    "transcoder of Llama Scope": Reader(write_llamascope, _read_transcoder, "transcoders.formats.llamascope"),
    "transcoders of SAELens": Reader(write_saelens, _read_transcoder, "transcoders.formats.saelens"),
    "transcoder of decode-clt": Reader(
        lambda folder: write_decode_clt(folder, scale=True, skip=True, offset=0.0, decoder_tying="per_target"),
        _read_transcoder,
        "transcoders.formats.decode_clt",
    ),
    "transcoder that stays in its files": Reader(
        _native(nonlinearity=BatchTopKConfig(k=2)), _read_stored_transcoder, "transcoders.formats.native"
    ),
    "graph": Reader(
        lambda folder: graph_of(1).save(folder),
        lambda folder: use_graph(AttributionGraph.load(folder)),
        "graphs.graph",
    ),
    "graph as GraphML": Reader(
        lambda folder: write_graphml(graph_of(1), folder / "cat.graphml"),
        lambda folder: use_graph(read_graphml(folder / "cat.graphml")),
        "graphs.formats.networkx",
    ),
    "graph of circuit-tracer": Reader(
        lambda folder: write_circuit_tracer(graph_of(1), folder, GraphCard(slug="cat")),
        lambda folder: use_graph(read_circuit_tracer(folder / "cat.json").graph),
        "graphs.formats.circuit_tracer_reader",
    ),
    "trace of the explorer": Reader(
        lambda folder: save_trace(trace_of(1), folder),
        lambda folder: use_trace(load_trace(folder)),
        "explorer.traces",
    ),
    "session of the explorer": Reader(write_session, read_session, "explorer.session.session_file"),
    "session that a person opens": Reader(
        write_session, opened("session.json"), "explorer.exports", names="session.json"
    ),
    "graph that a person opens": Reader(
        lambda folder: write_circuit_tracer(graph_of(1), folder, GraphCard(slug="cat")),
        opened("cat.json"),
        "explorer.exports",
        names="cat.json",
    ),
    "training record": Reader(write_curves, curve_numbers, "explorer.training_record"),
    "list of graphs": Reader(
        lambda folder: write_circuit_tracer(graph_of(1), folder, GraphCard(slug="cat")),
        _nothing(lambda folder: write_circuit_tracer(graph_of(2), folder, GraphCard(slug="dog"))),
        "graphs.formats.circuit_tracer_schema",
    ),
    "report": Reader(lambda folder: save_report(report_of(1), folder), _read_report, "evaluation.report_file"),
    "card that a user wrote": Reader(_write_card, _read_card, "publishing.push"),
    "features": Reader(
        lambda folder: write_feature_files(
            [record_of(0, 1), record_of(2, 1)], folder, n_layers=2, n_features=3, about=ABOUT
        ),
        _read_features,
        "features.feature_files",
    ),
    "description of features": Reader(
        lambda folder: write_about(folder / ABOUT_FILE, ABOUT),
        _nothing(lambda folder: read_about(folder / ABOUT_FILE)),
        "features.about",
    ),
    "feature as JSON": Reader(
        lambda folder: write_feature_json([record_of(0, 1)], folder),
        lambda folder: _record_numbers(read_feature_json(folder, Feature(0, 0))),
        "features.feature_files",
    ),
    "checkpoint": Reader(
        lambda folder: SafetensorsCheckpointIO().save_checkpoint(
            {"step": 1, "weights": torch.ones(2), "loops": {"a": (1, [2.0, None])}}, folder / "last"
        ),
        _read_checkpoint,
        "training.checkpoint_io",
    ),
    "dataset of activations": Reader(dataset.write, dataset.read, "data.dataset.manifest"),
    "dataset in int8": Reader(dataset.write_int8, dataset.read, "data.dataset.manifest"),
    "statistics of a dataset": Reader(dataset.write, dataset.read_statistics, "data.dataset.statistics"),
    "unfinished dataset": Reader(dataset.write_unfinished, dataset.read_unfinished, "data.dataset.manifest"),
    "text": Reader(
        lambda folder: (folder / "text.txt").write_text("The cat sat.\nEin Hund, natürlich.\n"),
        _texts("text.txt"),
        "data.texts",
    ),
    "rows": Reader(lambda folder: _write_rows(folder / "text.jsonl"), _texts("text.jsonl"), "data.texts"),
    "columns": Reader(_write_parquet, _texts("text.parquet"), "data.texts"),
    "card of a data set": Reader(_write_data_set, _nothing(lambda folder: check_card(folder)), "data.dataset_card"),
    "prompts": Reader(
        lambda folder: (folder / "prompts.txt").write_text("The cat\nA dog\n"),
        _nothing(lambda folder: read_prompts(folder / "prompts.txt")),
        "data.prompts",
    ),
    "labels": Reader(
        lambda folder: (folder / "labels.json").write_text('{"L0/1": "Texas", "0_2": "cities"}'),
        _nothing(lambda folder: read_labels(folder / "labels.json")),
        "features.labelling.given",
    ),
    "labels in a table": Reader(
        lambda folder: (folder / "labels.csv").write_text('feature,label\nL0/1,Texas\n0_2,"cities, towns"\n'),
        _nothing(lambda folder: read_labels(folder / "labels.csv")),
        "features.labelling.given",
    ),
    "settings": Reader(_write_settings, _read_settings, "training.flags.settings", names=_SETTING, slow=True),
    "index of a repository": Reader(
        lambda folder: write_index(folder / "main.json", "0" * 40, {"config.json": 3}),
        lambda folder: read_index(folder / "main.json")[1].values(),
        "hub.repository",
    ),
    "language model": Reader(write_gpt2, _use_language_model, "language.loading", slow=True),
}
"""Every reader of the package. A new reader is a line here."""
