"""Report files: evaluation reports on disk, so that transcoders can be compared without measuring them again.

    evaluation.json          the whole report
    evaluation.csv           one row for each layer
    evaluation-totals.csv    one row for the transcoder, with the columns of a comparison

If a training run cannot measure predictions, or if a transcoder is measured on activations, ``evaluation.json`` is not
a report: it holds only the reconstruction and the reason.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from open_clt import files
from open_clt.errors import CheckpointError
from open_clt.evaluation.report import NORM_QUANTILES, Report

FORMAT = files.FileFormat("open-clt-evaluation", newest=2, oldest=2)
"""Format of a report. Version 1 did not say on which contexts a report was measured, and is not read."""
_RECONSTRUCTION = files.FileFormat("open-clt-reconstruction", newest=2)
"""Format of a file that holds only the reconstruction."""
REPORT_FILES = _JSON, _LAYERS, _TOTALS = "evaluation.json", "evaluation.csv", "evaluation-totals.csv"
"""Names of the files of a report."""


class ReportFiles(NamedTuple):
    """The paths of the files of a report."""

    everything: Path
    """JSON file with the whole report."""
    layers: Path
    """CSV file with one row for each layer."""
    totals: Path
    """CSV file with one row for the transcoder."""


def save_report(report: Report, directory: str | Path) -> ReportFiles:
    """Write a report as JSON, and its layers and totals as CSV; returns the paths of the files.

    A former report is replaced; raises ConfigError if files of other programs have these names, and CheckpointError if
    the report holds a number that is not finite, or lacks numbers that ``load_report`` needs.
    """
    directory = Path(directory)
    check_place(directory)
    with _whole(directory / _JSON):
        content = report.as_dict()
        Report.from_dict(content)
    with files.saving(directory) as stage:
        files.write_rows(stage(_LAYERS), [_layer_row(layer) for layer in report.layers()])
        files.write_rows(stage(_TOTALS), [total_row(report)])
        files.write_json(stage(_JSON), {**FORMAT.header(), **content}, finite=True)
    return ReportFiles(everything=directory / _JSON, layers=directory / _LAYERS, totals=directory / _TOTALS)


def check_place(directory: Path) -> None:
    """Raise ConfigError if a report cannot be saved in a directory, because it would replace other files."""
    files.check_artefact(directory, REPORT_FILES, FORMAT, _RECONSTRUCTION)


def total_row(report: Report) -> dict[str, Any]:
    """The row of a transcoder in a comparison table, with the contexts on which it was measured."""
    return {**report.row(), "measured_on": report.measured_on.description}


def _layer_row(layer: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a layer, with one column for each quantile of its decoder norms."""
    row = dict(layer)
    norms: tuple[float, ...] = row.pop("decoder_norms")
    return row | {f"decoder_norm_p{100 * share:g}": norm for share, norm in zip(NORM_QUANTILES, norms, strict=True)}


def load_report(path: str | Path) -> Report:
    """Read a report from its file or its directory; raises CheckpointError if it does not hold a whole report."""
    path = Path(path)
    files.check_readable(path)
    return files.read_saved_file(path / _JSON if path.is_dir() else path, _read_report)


def _read_report(path: Path) -> Report:
    if files.format_of(path) == _RECONSTRUCTION.name:
        reason = _RECONSTRUCTION.read(path).get("reason")
        raise CheckpointError(f"{path} says only how well the transcoder reconstructs. {reason}")
    content = FORMAT.read(path, finite=True)
    content = {key: value for key, value in content.items() if key not in FORMAT.header()}
    with _whole(path):
        return Report.from_dict(content)


@contextmanager
def _whole(path: Path) -> Generator[None]:
    """Raise CheckpointError, which names the file of a report, if the block finds that the report is not whole."""
    try:
        yield
    except files.WRONG_VALUES as error:
        raise CheckpointError(
            f"{path} does not hold a whole evaluation report ({error!r}); `open-clt evaluate --output` writes one."
        ) from error


def is_report(path: str | Path) -> bool:
    """Whether a path is a file, or a directory with a report; the report may be damaged."""
    path = Path(path)
    files.check_readable(path)
    if path.is_file():
        return True
    return files.read_saved(
        path, _JSON, lambda saved: saved(_JSON).is_file() and files.format_of(saved(_JSON)) != _RECONSTRUCTION.name
    )


def save_reconstruction(numbers: Mapping[str, Any], directory: str | Path, *, reason: str) -> Path:
    """Write the reconstruction of a transcoder and a sentence that says why it has no report; returns the path.

    A former report is replaced, and its tables are deleted. Raises ConfigError if files of other programs have the
    names of a report's files.
    """
    directory = Path(directory)
    check_place(directory)
    with files.saving(directory, replaces=REPORT_FILES) as stage:
        files.write_json(stage(_JSON), {**_RECONSTRUCTION.header(), "reason": reason, **numbers}, finite=True)
    return directory / _JSON
