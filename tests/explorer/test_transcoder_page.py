"""The jobs of the transcoder page: figures hold the numbers that Python's functions compute; mistakes are sentences."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_clt.cli import main
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.embedded.held_out import HeldOutText
from open_clt.errors import ConfigError
from open_clt.evaluation.report import report
from open_clt.evaluation.report_file import save_report
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.table import start
from open_clt.explorer.measurements import FIGURES, Measurements
from open_clt.explorer.models import Models, Source
from open_clt.explorer.server import serve
from open_clt.explorer.server.app import make_app
from open_clt.explorer.training_record import training_curves
from open_clt.features.firing import cross_layer_correlations
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.directions import decoder_norms_between_layers
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.visualization.interactive.decoders import interactive_decoder_norms
from tests.explorer.conftest import done
from tests.random_transcoders import ARCHITECTURES, architecture, random_architecture
from tests.refusals import refuses


@pytest.fixture(scope="module")
def measuring(explorer: Explorer) -> Any:
    """The explorer, which measures on a short text."""
    former = explorer.measurements
    explorer.measurements = Measurements(HeldOutText(max_tokens=120))
    yield explorer
    explorer.measurements = former


def _panel(explorer: Explorer, name: str) -> dict[str, Any]:
    return done(start(explorer, "figure", {"name": name})).result


def _numbers(values: Any) -> Any:
    """An array of a figure's JSON, which plotly may write in base64."""
    if isinstance(values, dict):
        numbers = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
        shape = [int(size) for size in values["shape"].split(",")] if "shape" in values else [-1]
        return numbers.reshape(shape)
    return np.array(values, dtype=float)


def _trace(panel: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return panel["figure"]["data"][number]


def test_curves_are_those_of_the_training_record(measuring: Explorer) -> None:
    curves = json.loads((TRANSCODER_DIRECTORY / "training.json").read_text())["curves"]
    panel = _panel(measuring, "curves")
    for number, name in enumerate(("loss", "fvu", "l0", "dead_share")):
        np.testing.assert_allclose(_numbers(_trace(panel, number)["y"]), curves[name], rtol=1e-6)


def test_density_is_that_of_the_records(measuring: Explorer) -> None:
    panel, models = _panel(measuring, "density"), measuring.loaded()
    active = sum(1 for row in models.rows if row.density > 0)
    drawn = sum(np.nansum(_numbers(trace["y"])) for trace in panel["figure"]["data"][1:])
    assert drawn == 2 * active  # each bar has two corners
    assert measuring.measurements.features is None  # nothing was run for it


def test_norms_are_those_of_the_decoders(measuring: Explorer) -> None:
    transcoder = measuring.loaded().transcoder
    assert isinstance(transcoder, CrossLayerTranscoder)
    drawn = _numbers(_trace(_panel(measuring, "norms"))["z"])
    one = transcoder.decoders(1, torch.arange(transcoder.config.n_features)).norm(dim=-1).mean(0)
    np.testing.assert_allclose(drawn[1], [0.0, *one.tolist()], rtol=1e-4)


@pytest.mark.slow
def test_correlations_and_importance_are_those_of_the_text(measuring: Explorer) -> None:
    drawn = _numbers(_trace(_panel(measuring, "correlations"))["z"])
    features = measuring.measurements.features
    assert features is not None
    np.testing.assert_allclose(drawn, cross_layer_correlations(features.statistics.activity), atol=1e-6)
    panel = _panel(measuring, "importance")
    shares = _numbers(_trace(panel)["x"])
    importance = [100 * float(features.importance[Feature.parse(name)]) for name in panel["features"]]
    np.testing.assert_allclose(shares, importance, rtol=1e-5)
    assert shares[0] == pytest.approx(100 * float(features.importance.max()), rel=1e-5)


@pytest.mark.slow
def test_a_point_of_the_map_is_the_feature_with_its_number(measuring: Explorer) -> None:
    panel = _panel(measuring, "pca")
    trace = _trace(panel)
    assert len(panel["features"]) == len(_numbers(trace["x"])) == 500
    colours = _numbers(trace["marker"]["color"])
    for name, layer, text in zip(panel["features"], colours, trace["hovertext"], strict=True):
        assert Feature.parse(name).layer == layer
        assert f"<b>{name}</b>" in text


@pytest.mark.slow
def test_the_evaluation_is_the_report_of_the_same_text(measuring: Explorer) -> None:
    before = _panel(measuring, "evaluation")
    assert before["figure"] is None
    assert before["note"].endswith(".")
    phases: list[str] = []
    job = start(measuring, "evaluate", {})
    while not job.finished.wait(0.01):
        phases.append(job.phase)
    after, models = done(job).result, measuring.loaded()
    contexts = measuring.measurements.text.contexts(models.model)
    expected = report(ReplacementModel(models.model, models.transcoder), contexts, name="embedded")
    np.testing.assert_allclose(
        _numbers(_trace(after)["y"]), expected.evaluation.reconstruction.fvu_per_layer, rtol=1e-5
    )
    assert _panel(measuring, "evaluation") == after
    assert "measuring" in phases


def test_figures_are_made_once(measuring: Explorer) -> None:
    first = _panel(measuring, "norms")
    assert _panel(measuring, "norms") is first


@pytest.mark.slow
def test_an_evaluation_is_cancelled(measuring: Explorer) -> None:
    kept = measuring.measurements
    measuring.measurements = Measurements(HeldOutText(max_tokens=40_000))
    job = start(measuring, "evaluate", {})
    while job.phase in ("", "starting"):
        assert not job.finished.wait(0.01), job.error
    measuring.worker.cancel(job.number)
    assert job.finished.wait(60)
    assert job.state == "cancelled"
    assert measuring.measurements.report is None
    measuring.measurements = kept


def test_the_page_has_a_place_for_every_figure(explorer: Explorer) -> None:
    layout = json.dumps(make_app(explorer).layout.to_plotly_json(), default=lambda part: part.to_plotly_json())
    for name in (*FIGURES, "comparison"):
        assert f'"figure-{name}"' in layout


def test_an_unknown_figure_is_refused(explorer: Explorer) -> None:
    with refuses(ConfigError, "nothing", *FIGURES):
        start(explorer, "figure", {"name": "nothing"})


def _models_of(folder: Path, models: Models) -> Models:
    return Models(models.model, models.transcoder, None, Source(transcoder=str(folder)))


def test_a_report_in_the_directory_is_shown(explorer: Explorer, tmp_path: Path) -> None:
    models = explorer.loaded()
    contexts = HeldOutText(max_tokens=80).contexts(models.model)
    save_report(report(ReplacementModel(models.model, models.transcoder), contexts, name="stored"), tmp_path)
    panel = Measurements(HeldOutText()).panel("evaluation", _models_of(tmp_path, models))
    assert "stored" in panel["figure"]["layout"]["title"]["text"]


def test_a_transcoder_without_records_or_curves_says_so(explorer: Explorer, tmp_path: Path) -> None:
    models = _models_of(tmp_path, explorer.loaded())
    kept = Measurements(HeldOutText(max_tokens=80))
    panel = kept.panel("curves", models)
    assert panel["figure"] is None
    assert panel["note"].endswith(".")


def test_another_model_needs_a_text(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    models = explorer.loaded()
    monkeypatch.setattr(models.model, "name", "another")
    with refuses(ConfigError, "another", "--text"):
        Measurements(HeldOutText()).panel("importance", models)


@pytest.mark.parametrize(
    "curves",
    [
        {"step": [1]},
        {"step": [1], "loss": [1.0, 2.0], "fvu": [0.1], "l0": [1.0], "dead_share": [0.0]},
        {"step": [1], "loss": [float("nan")], "fvu": [0.1], "l0": [1.0], "dead_share": [0.0]},
        {"step": ["1"], "loss": ["1"], "fvu": ["1"], "l0": ["1"], "dead_share": ["1"]},
        [],
    ],
)
def test_damaged_curves_are_not_shown(tmp_path: Path, curves: Any) -> None:
    (tmp_path / "training.json").write_text(json.dumps({"curves": curves}))
    assert training_curves(tmp_path) is None


def test_curves_in_the_transcoders_record_are_read(tmp_path: Path) -> None:
    curves = {"step": [1, 2], "loss": [2.0, 1.0], "fvu": [0.5, 0.1], "l0": [3.0, 4.0], "dead_share": [0.0, 0.0]}
    save_transcoder(random_architecture(architecture("clt")), tmp_path, record={"curves": curves})
    read = training_curves(tmp_path)
    assert read is not None
    assert read._asdict() == curves


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "molt" not in name])
def test_norms_between_layers_are_those_of_single_decoders(name: str) -> None:
    transcoder = random_architecture(architecture(name))
    assert isinstance(transcoder, CrossLayerTranscoder)
    norms = decoder_norms_between_layers(transcoder)
    for source in range(3):
        for target in range(3):
            decoders = transcoder.decoders(source, torch.arange(40))
            offset = target - source
            expected = decoders[:, offset].norm(dim=-1).mean() if 0 <= offset < decoders.shape[1] else torch.tensor(0.0)
            torch.testing.assert_close(norms[source, target], expected)


def test_a_mixture_of_transforms_has_no_norms_between_layers() -> None:
    with refuses(ConfigError, "MOLT"):
        decoder_norms_between_layers(random_architecture(architecture("molt")))


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (26, 26), (3, 60)])
def test_the_figure_of_norms_has_a_row_for_each_source(shape: tuple[int, int]) -> None:
    values = torch.rand(shape).triu()
    figure = json.loads(interactive_decoder_norms(values).to_json())
    assert _numbers(figure["data"][0]["z"]).shape == shape
    axes = figure["layout"]
    assert axes["yaxis"]["title"]["text"] == "source layer"
    assert axes["xaxis"]["title"]["text"] == "target layer"
    with refuses(ConfigError, "norms"):
        interactive_decoder_norms(values[0])


def test_the_command_names_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def made(source: Source, **settings: Any) -> Explorer:
        given.update(settings)
        raise ConfigError("This test needs no explorer.")

    monkeypatch.setattr("open_clt.explorer.explorer.Explorer", made)
    monkeypatch.setattr(serve, "listen", lambda explorer, *_, **__: explorer())
    assert main(["explore", "--port", "0", "--text", "held-out.txt", "--column", "story", "--seed", "3"]) == 2
    assert given["text"] == HeldOutText(source="held-out.txt", column="story", seed=3)
