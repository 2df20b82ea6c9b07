"""Files: every artefact is the new one or the former one, whatever fails, and damage is one clear error."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import pytest
import torch
from matplotlib.figure import Figure

from open_clt import files
from open_clt.config import CrossLayerConfig, MoltConfig, ReLUConfig
from open_clt.errors import CheckpointError
from open_clt.evaluation.evaluate import Evaluation
from open_clt.evaluation.measured_on import MeasuredOn
from open_clt.evaluation.report import NORM_QUANTILES, Report
from open_clt.evaluation.report_file import load_report, save_reconstruction, save_report
from open_clt.features.feature_files import FeatureFiles, read_feature_json, write_feature_files, write_feature_json
from open_clt.features.records import FeatureRecord
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import METADATA_FILE, GraphCard
from open_clt.graphs.formats.networkx import read_graphml, to_networkx, write_graphml
from open_clt.graphs.graph import AttributionGraph
from open_clt.replacement.comparison import LogitComparison
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.metrics_file import MetricsFile
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.circuit_tracer import save_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.metrics import LayerMetrics, TranscoderMetrics
from open_clt.visualization.style import save
from tests.graphs.hand_graph import hand_graph


class Artefact(NamedTuple):
    """A kind of artefact: how version 1 or 2 of one is saved to a directory, and what is read there."""

    save: Callable[[Path, int], object]
    load: Callable[[Path], object]
    """Equal for the same version, unequal for others; raises CheckpointError where there is no whole artefact."""
    json: str | None = None
    """Its JSON file, if it has one."""


def transcoder_facts(directory: Path) -> object:
    transcoder = load_transcoder(directory)
    return transcoder.config, {name: tensor.tolist() for name, tensor in transcoder.state_dict().items()}


def save_native(directory: Path, version: int) -> None:
    config = MoltConfig(
        n_layers=2, d_model=4, ranks=(2,), counts=(6,), nonlinearity=ReLUConfig(), language_model=str(version)
    )
    save_transcoder(make_transcoder(config, seed=version), directory)


def save_in_circuit_tracers_layout(directory: Path, version: int) -> None:
    """The second has fewer layers: files of the first must leave."""
    config = CrossLayerConfig(n_layers=3 - version, d_model=4, n_features=6, nonlinearity=ReLUConfig())
    save_circuit_tracer(make_transcoder(config, seed=version), directory)


def graph_of(version: int) -> AttributionGraph:
    graph = hand_graph()
    edges = graph.edges._replace(weight=graph.edges.weight * version)
    return replace(
        graph, edges=edges, labels={Feature(0, 5): str(version)}, info=replace(graph.info, prompt=str(version))
    )


def graph_facts(graph: AttributionGraph) -> object:
    return graph.info.prompt, dict(graph.labels), graph.edges.weight.tolist()


def viewed_facts(directory: Path) -> object:
    place = files.saved(directory, METADATA_FILE)
    listed = files.read_json(place(METADATA_FILE))["graphs"]
    return [entry["prompt"] for entry in listed], graph_facts(read_circuit_tracer(place("cat.json")).graph)


def report_of(version: int) -> Report:
    reconstruction = TranscoderMetrics(8, (LayerMetrics(float(version), 1.0, 0.0, 0.0),), (1, version))
    logits = LogitComparison(1.0, 2.0, 1.0, 0.5)
    evaluation = Evaluation(reconstruction, logits, 3.0, (logits,))
    norms = ((0.0,) * len(NORM_QUANTILES),)
    return Report("a", "b", {}, version, MeasuredOn("", 1, 8, ""), evaluation, norms, ())


def report_facts(directory: Path) -> object:
    return load_report(directory), files.read_rows(files.saved(directory, "evaluation.json")("evaluation.csv"))


def record_of(feature: int, version: int) -> FeatureRecord:
    return FeatureRecord(Feature(0, feature), version / 100, float(version), (), (), ())


def stored_features(directory: Path) -> object:
    record = FeatureFiles(directory).record(Feature(0, 0))
    assert record is not None
    return vars(record)


def checkpoint_facts(directory: Path) -> object:
    state = SafetensorsCheckpointIO().load_checkpoint(directory / "last")
    return state["step"], state["weights"].tolist()


def save_metrics(directory: Path, version: int) -> None:
    metrics = MetricsFile(directory / "metrics.csv")
    metrics.log_metrics({"loss": float(version)}, 0)
    metrics.save()


def save_figure(directory: Path, version: int) -> None:
    figure = Figure()
    figure.add_subplot().plot([0, version])
    save(figure, directory / "figure.png")


ARTEFACTS = {
    "transcoder": Artefact(save_native, transcoder_facts, "config.json"),
    "transcoder for circuit-tracer": Artefact(save_in_circuit_tracers_layout, transcoder_facts),
    "graph": Artefact(lambda d, v: graph_of(v).save(d), lambda d: graph_facts(AttributionGraph.load(d)), "graph.json"),
    "graph for viewers": Artefact(
        lambda d, v: write_circuit_tracer(graph_of(v), d, GraphCard(slug="cat")), viewed_facts, "cat.json"
    ),
    "graph as GraphML": Artefact(
        lambda d, v: write_graphml(graph_of(v), d / "cat.graphml"),
        lambda d: graph_facts(read_graphml(d / "cat.graphml")),
    ),
    "report": Artefact(lambda d, v: save_report(report_of(v), d), report_facts, "evaluation.json"),
    "reconstruction": Artefact(
        lambda d, v: save_reconstruction({"fvu": v}, d, reason="none"), lambda d: files.read_json(d / "evaluation.json")
    ),
    "features": Artefact(
        lambda d, v: write_feature_files([record_of(0, v)], d, n_layers=v, n_features=3),
        stored_features,
    ),
    "feature as JSON": Artefact(
        lambda d, v: write_feature_json([record_of(0, v)], d),
        lambda d: vars(read_feature_json(d, Feature(0, 0))),
        "0.json",
    ),
    "checkpoint": Artefact(
        lambda d, v: SafetensorsCheckpointIO().save_checkpoint({"step": v, "weights": torch.full((2,), v)}, d / "last"),
        checkpoint_facts,
        "last/state.json",
    ),
    "metrics": Artefact(save_metrics, lambda d: files.read_rows(d / "metrics.csv")),
    "figure": Artefact(save_figure, lambda d: files.read_bytes(d / "figure.png")),
}
"""Every writer and reader of the package; a new one is a line here."""


@pytest.fixture(params=ARTEFACTS)
def artefact(request: pytest.FixtureRequest) -> Artefact:
    return ARTEFACTS[request.param]


@pytest.fixture
def two(artefact: Artefact, tmp_path: Path) -> list[object]:
    """What both versions are when they are loaded."""
    facts: list[object] = []
    for version in (1, 2):
        artefact.save(tmp_path / str(version), version)
        facts.append(artefact.load(tmp_path / str(version)))
    assert facts[0] != facts[1]
    return facts


def temporary(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob(".*")]


def test_a_save_takes_the_place_of_the_former_one_and_leaves_other_files_alone(
    artefact: Artefact, two: list[object], tmp_path: Path
) -> None:
    directory = tmp_path / "saved"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    ordinary = stat.S_IMODE((directory / "notes.txt").stat().st_mode)
    for version in (1, 2, 1):
        artefact.save(directory, version)
        assert artefact.load(directory) == two[version - 1]
    assert temporary(directory) == []
    assert (directory / "notes.txt").read_text() == "mine"
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*") if path.is_file()} == {ordinary}


class Killed(BaseException):
    """Stands for the end of a process: nothing that changes files works from here on."""


class Faults:
    """Counts calls of functions of ``os``, and lets one of them fail, or that one and all that come after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
        self.calls, self.at, self.error, self.only_once = 0, 0, OSError("no space left"), True
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no disk loses power here, and each takes its time
        for name in names:
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))

    def arm(self, at: int, error: BaseException, *, only_once: bool) -> None:
        self.calls, self.at, self.error, self.only_once = 0, at, error, only_once

    def disarm(self) -> None:
        self.at = 0

    def _guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.at and (self.calls == self.at or (self.calls > self.at and not self.only_once)):
                raise self.error
            return real(*arguments, **named)

        return call


def faults_until_it_works(save_once: Callable[[int], bool]) -> int:
    """Fail at the first call, the second, ...: as often as there are calls; returns how many."""
    at = 1
    while not save_once(at):
        at += 1
    return at - 1


def test_a_save_that_fails_leaves_the_former_artefact(
    artefact: Artefact, two: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "saved"
    artefact.save(directory, 1)
    faults = Faults(monkeypatch, ("replace", "fsync"))

    def save_once(at: int) -> bool:
        faults.arm(at, OSError("no space left"), only_once=True)
        try:
            artefact.save(directory, 2)
        except OSError:
            faults.disarm()
            assert artefact.load(directory) == two[0], f"after a failure of call {at}"
            assert temporary(directory) == [], f"after a failure of call {at}"
            return False
        faults.disarm()
        return True

    assert faults_until_it_works(save_once) >= 2
    assert artefact.load(directory) == two[1]


def test_a_first_save_that_fails_leaves_nothing_to_load(
    artefact: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, ("replace", "fsync"))

    def save_once(at: int) -> bool:
        directory = tmp_path / str(at)
        faults.arm(at, OSError("no space left"), only_once=True)
        try:
            artefact.save(directory, 2)
        except OSError:
            faults.disarm()
            with pytest.raises(CheckpointError):
                artefact.load(directory)
            assert temporary(directory) == []
            return False
        faults.disarm()
        return True

    assert faults_until_it_works(save_once) >= 2


def said_or_loaded(artefact: Artefact, directory: Path) -> object:
    """What is loaded; the directory's path if an error of one line says it."""
    try:
        return artefact.load(directory)
    except CheckpointError as error:
        said = str(error)
    return str(directory) if str(directory) in said and "\n" not in said else said


def test_a_process_that_is_killed_leaves_one_whole_artefact_or_one_clear_error(
    artefact: Artefact, two: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, ("replace", "unlink", "rmdir"))

    def save_once(at: int) -> bool:
        directory = tmp_path / f"killed {at}"
        faults.disarm()
        artefact.save(directory, 1)
        faults.arm(at, Killed(), only_once=False)
        try:
            artefact.save(directory, 2)
        except Killed:
            faults.disarm()
            assert said_or_loaded(artefact, directory) in [*two, str(directory)], f"killed at call {at}"
            artefact.save(directory, 2)
            assert artefact.load(directory) == two[1], "what was left does not stand in the way"
            return False
        faults.disarm()
        return True

    assert faults_until_it_works(save_once) >= 2


def kill_once_moved_aside(monkeypatch: pytest.MonkeyPatch, name: str) -> Faults:
    """Nothing changes files any more once a file is aside."""
    faults = Faults(monkeypatch, ("replace", "unlink"))
    guarded = os.replace

    def replace_and_die(source: Path, target: Path) -> None:
        guarded(source, target)
        if target.name == f".old-{name}":
            faults.arm(1, Killed(), only_once=False)

    monkeypatch.setattr(os, "replace", replace_and_die)
    return faults


@pytest.mark.parametrize("name", ["config.json", "transcoder.safetensors"])
def test_the_former_artefact_is_read_where_a_process_was_killed_between_two_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_native(tmp_path, 1)
    former = transcoder_facts(tmp_path)
    kill_once_moved_aside(monkeypatch, name)
    with pytest.raises(Killed):
        save_native(tmp_path, 2)
    assert not (tmp_path / name).exists()
    assert transcoder_facts(tmp_path) == former


def test_an_interrupted_save_in_the_layout_of_another_program_says_where_the_former_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_in_circuit_tracers_layout(tmp_path, 1)
    kill_once_moved_aside(monkeypatch, "config.yaml")
    with pytest.raises(Killed):
        save_in_circuit_tracers_layout(tmp_path, 2)
    with pytest.raises(CheckpointError) as raised:
        load_transcoder(tmp_path)
    assert str(tmp_path / ".old-config.yaml") in str(raised.value)


def damaged() -> Iterator[bytes]:
    yield b""
    yield b"{"
    yield b"\xff\xfe\xff"
    yield b'{"a":' * 100_000
    yield b"[" * 100_000 + b"]" * 100_000
    yield b'{"a": %d}' % 10**30
    yield b'{"a": ' + b"9" * 10_000 + b"}"
    yield b"[1]"


WITH_JSON = [name for name, artefact in ARTEFACTS.items() if artefact.json]


@pytest.mark.parametrize("name", WITH_JSON)
def test_damaged_json_is_one_clear_error(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    path = tmp_path / str(artefact.json)
    for content in damaged():
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as raised:
            artefact.load(tmp_path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    path.unlink()
    with pytest.raises(CheckpointError) as raised:
        artefact.load(tmp_path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["transcoder", "graph", "report", "checkpoint"])
@pytest.mark.parametrize("change", [{"format": "other"}, {"format_version": 99}, {"format_version": "2"}], ids=str)
def test_foreign_and_newer_files_are_one_clear_error(name: str, change: dict[str, object], tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    path = tmp_path / str(artefact.json)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as raised:
        artefact.load(tmp_path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["transcoder", "transcoder for circuit-tracer", "graph", "checkpoint"])
def test_truncated_and_missing_tensors_are_one_clear_error(name: str, tmp_path: Path) -> None:
    artefact = ARTEFACTS[name]
    artefact.save(tmp_path, 1)
    path = next(iter(sorted(tmp_path.rglob("*.safetensors"))))
    content = path.read_bytes()
    for damage in (content[:-1], content[:20], b"", b"\xff" * 40):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError) as raised:
            artefact.load(tmp_path)
        assert str(path) in str(raised.value)
    path.unlink()
    with pytest.raises(CheckpointError):
        artefact.load(tmp_path)


def test_graphml_with_numbers_that_no_tensor_holds_is_one_clear_error(tmp_path: Path) -> None:
    graph = to_networkx(hand_graph())
    next(iter(graph.nodes.values()))["index"] = 10**30
    nx.write_graphml(graph, tmp_path / "large.graphml")
    with pytest.raises(CheckpointError):
        read_graphml(tmp_path / "large.graphml")


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near.json").symlink_to(tmp_path / "far" / "real.json")
    files.write_json(tmp_path / "near.json", {"a": 1})
    assert (tmp_path / "near.json").is_symlink()
    assert files.read_json(tmp_path / "far" / "real.json") == {"a": 1}


def test_what_is_not_json_is_refused_before_a_file_is_touched(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="nan"):
        files.write_json(path, {"a": float("nan")}, strict=True)
    assert files.read_json(path) == {"a": 1}


def test_rows_with_different_keys_have_empty_cells(tmp_path: Path) -> None:
    path = files.write_rows(tmp_path / "a.csv", [{"step": 1}, {"step": 2, "note": "two\nlines, and a comma"}])
    assert files.read_rows(path) == [{"step": "1", "note": ""}, {"step": "2", "note": "two\nlines, and a comma"}]
