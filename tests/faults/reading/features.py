"""Readers of records of features, their labels, and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from open_clt.config import CrossLayerConfig, TopKConfig
from open_clt.evaluation.calibration import Calibration, load_calibration, save_calibration, with_confidence
from open_clt.evaluation.report_file import load_report, save_report
from open_clt.features.about import ABOUT as ABOUT_FILE
from open_clt.features.about import read_about, write_about
from open_clt.features.feature_files import FeatureFiles, read_feature_json, write_feature_files, write_feature_json
from open_clt.features.labelling.given import read_labels
from open_clt.publishing.push import publication
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from tests.faults.artefacts import calibration_of, record_of, report_of
from tests.faults.reading.reader import Reader, nothing
from tests.features.rich_record import ABOUT
from tests.graphs.hand_graph import hand_graph


def calibration_numbers(calibration: Calibration) -> Iterable[float]:
    """The numbers of a calibration, and the confidence that it gives to a graph."""
    for regression in (calibration.node, calibration.edge):
        if regression is not None:
            yield from (regression.intercept, *regression.weights, regression.share)
    yield from with_confidence(hand_graph(), calibration).nodes.confidence.nan_to_num(0).tolist()


def _write_card(folder: Path) -> None:
    config = CrossLayerConfig(n_layers=2, d_model=4, n_features=6, nonlinearity=TopKConfig(k=2))
    save_transcoder(make_transcoder(config), folder)
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


FEATURES: dict[str, Reader] = {
    "calibration": Reader(
        lambda folder: save_calibration(calibration_of(1), folder),
        lambda folder: calibration_numbers(load_calibration(folder)),
        "evaluation.calibration",
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
        nothing(lambda folder: read_about(folder / ABOUT_FILE)),
        "features.about",
    ),
    "feature as JSON": Reader(
        lambda folder: write_feature_json([record_of(0, 1)], folder),
        lambda folder: _record_numbers(read_feature_json(folder, Feature(0, 0))),
        "features.feature_files",
    ),
    "labels": Reader(
        lambda folder: (folder / "labels.json").write_text('{"L0/1": "Texas", "0_2": "cities"}'),
        nothing(lambda folder: read_labels(folder / "labels.json")),
        "features.labelling.given",
    ),
    "labels in a table": Reader(
        lambda folder: (folder / "labels.csv").write_text('feature,label\nL0/1,Texas\n0_2,"cities, towns"\n'),
        nothing(lambda folder: read_labels(folder / "labels.csv")),
        "features.labelling.given",
    ),
}
