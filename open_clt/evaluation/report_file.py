"""Reports as files, so that transcoders are compared without measuring them again.

    evaluation.json          everything
    evaluation.csv           a row for each layer
    evaluation-totals.csv    a row for the transcoder: the columns of a comparison

Where a training could not measure what becomes of predictions, its ``evaluation.json`` holds only how well the
transcoder reconstructs, and why: no report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.evaluation.report import NORM_QUANTILES, Report

FORMAT = files.FileFormat("open-clt-evaluation", newest=2, oldest=2)
"""1 did not say what was measured on: such reports are not read."""
_RECONSTRUCTION = files.FileFormat("open-clt-reconstruction", newest=2)
_JSON, _LAYERS, _TOTALS = "evaluation.json", "evaluation.csv", "evaluation-totals.csv"


class ReportFiles(NamedTuple):
    """Where a report was written."""

    everything: Path
    layers: Path
    totals: Path


def save_report(found: Report, directory: str | Path) -> ReportFiles:
    """Write a report as JSON, and as tables of its layers and of its totals; returns their paths."""
    directory = Path(directory)
    with files.saving(directory) as stage:
        files.write_rows(stage(_LAYERS), [_layer_row(layer) for layer in found.layers()])
        files.write_rows(stage(_TOTALS), [total_row(found)])
        files.write_json(stage(_JSON), {**FORMAT.header(), **found.as_dict()})
    return ReportFiles(everything=directory / _JSON, layers=directory / _LAYERS, totals=directory / _TOTALS)


def total_row(found: Report) -> dict[str, Any]:
    """A transcoder's row in a table of several, with what it was measured on."""
    return {**found.row(), "measured_on": found.measured_on.description}


def _layer_row(layer: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a layer, each quantile of its decoder norms in a column."""
    row = dict(layer)
    norms: tuple[float, ...] = row.pop("decoder_norms")
    return row | {f"decoder_norm_p{100 * share:g}": norm for share, norm in zip(NORM_QUANTILES, norms, strict=True)}


def load_report(path: str | Path) -> Report:
    """Read a report that ``save_report`` wrote, from its file or its directory; raises CheckpointError on others."""
    path = Path(path)
    path = files.kept(path / _JSON if path.is_dir() else path)
    if files.format_of(path) == _RECONSTRUCTION.name:
        reason = _RECONSTRUCTION.read(path).get("reason")
        raise CheckpointError(f"{path} says only how well the transcoder reconstructs. {reason}")
    content = FORMAT.read(path)
    content = {key: value for key, value in content.items() if key not in FORMAT.header()}
    try:
        return Report.from_dict(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not hold a whole evaluation report ({error!r}); `open-clt evaluate --output` writes one."
        ) from error


def is_report(path: str | Path) -> bool:
    """Whether a path is a file, or a directory that holds a report, be it one that cannot be read."""
    path = Path(path)
    report = files.kept(path / _JSON)
    return path.is_file() or (report.is_file() and files.format_of(report) != _RECONSTRUCTION.name)


def save_reconstruction(numbers: Mapping[str, Any], directory: str | Path, *, reason: str) -> Path:
    """Write how well a transcoder reconstructs, and the sentence why no more is known; returns the file's path."""
    return files.write_json(Path(directory) / _JSON, {**_RECONSTRUCTION.header(), "reason": reason, **numbers})
