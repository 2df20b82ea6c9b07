"""Reports as files, so that transcoders are compared without measuring them again.

    evaluation.json          everything
    evaluation.csv           a row for each layer
    evaluation-totals.csv    a row for the transcoder: the columns of a comparison

Where a training could not measure what becomes of predictions, its ``evaluation.json`` holds only how well the
transcoder reconstructs, and why: no report.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from open_clt.analysis.report import NORM_QUANTILES, Report
from open_clt.errors import CheckpointError

FORMAT = "open-clt-evaluation"
FORMAT_VERSION = 2
"""1 did not say what was measured on: such reports are not read."""
_RECONSTRUCTION = "open-clt-reconstruction"
_JSON = "evaluation.json"


class ReportFiles(NamedTuple):
    """Where a report was written."""

    everything: Path
    layers: Path
    totals: Path


def save_report(found: Report, directory: str | Path) -> ReportFiles:
    """Write a report as JSON, and as tables of its layers and of its totals; returns their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **found.as_dict()}
    (directory / _JSON).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return ReportFiles(
        everything=directory / _JSON,
        layers=write_rows([_layer_row(layer) for layer in found.layers()], directory / "evaluation.csv"),
        totals=write_rows([total_row(found)], directory / "evaluation-totals.csv"),
    )


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
    path = path / _JSON if path.is_dir() else path
    try:
        content = _read(path)
        if content.get("format") == _RECONSTRUCTION:
            raise CheckpointError(f"{path} says only how well the transcoder reconstructs. {content['reason']}")
        if content.pop("format") != FORMAT or content.pop("format_version") > FORMAT_VERSION:
            raise KeyError("format")
        return Report.from_dict(content)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no evaluation report of this version; `open-clt evaluate --output` writes one."
        ) from error


def is_report(path: str | Path) -> bool:
    """Whether a path is a file, or a directory that holds a report, be it one that cannot be read."""
    path = Path(path)
    return path.is_file() or ((path / _JSON).is_file() and not _is_reconstruction(path / _JSON))


def save_reconstruction(numbers: Mapping[str, Any], directory: str | Path, *, reason: str) -> Path:
    """Write how well a transcoder reconstructs, and the sentence why no more is known; returns the file's path."""
    path = Path(directory) / _JSON
    content = {"format": _RECONSTRUCTION, "format_version": FORMAT_VERSION, "reason": reason, **numbers}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _is_reconstruction(path: Path) -> bool:
    try:
        return _read(path).get("format") == _RECONSTRUCTION
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return False  # whoever reads it will say what is wrong


def _read(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Rows of equal keys as a CSV file with a head."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
