"""Dashboards: a directory of pages about all features, which opens from a disk without a server or a network.

    index.html       the table of features, and one page for each feature, made when it is opened
    data/table.js    the rows of the table
    data/L2_3.js     the records of features 192 to 255 of layer 2

A page from a disk may load scripts, but not data, so the data are scripts that hand over values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from open_clt import files
from open_clt.config.arguments import checked_arguments
from open_clt.config.json import to_dict
from open_clt.features.about import AboutRecords
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.records import FeatureRecord
from open_clt.features.table import FeatureRow
from open_clt.transcoders.feature import Feature
from open_clt.visualization.dashboards.values import part_values, table_values
from open_clt.visualization.page import escaped, page, script_text

HEAD = "index.html"
_STYLES, _SCRIPTS = ("feature.css", "dashboards.css"), ("elements.js", "feature.js", "dashboards.js")
_KEYS = "Keys: / search, ← and → the features before and after, r a random feature, Esc all features."
_PART = 64
"""Number of features whose records one file holds."""


@checked_arguments
def write_dashboards(directory: str | Path, output: str | Path) -> Path:
    """Write pages about all features of ``directory/features`` into a directory, and return the path of its page.

    Former pages are replaced, and the directory's manifest lists the new ones. Memory holds the records of 64 features
    and the rows of the table. Raises CheckpointError if the feature files are missing or damaged, and ConfigError if
    a file would be replaced that the manifest does not list.
    """
    stored, output = FeatureFiles(directory), Path(output)
    rows, about = stored.table(), stored.about()
    parts = [(name, list(features)) for name, features in groupby([row.feature for row in rows], _part_of)]
    names = [*(f"data/{name}.js" for name, _ in parts), "data/table.js", HEAD]
    with files.results(output, names):
        files.check_ours(output, names)
        former = files.listed_names(output)
        with files.saving(output, replaces=former) as stage:
            for name, features in parts:
                _write_values(stage(f"data/{name}.js"), name, part_values(list(_records(stored, features))))
            _write_values(stage("data/table.js"), "table", _table(rows, about))
            files.list_names(output, names)
            files.write_text(stage(HEAD), _page(about))
    return output / HEAD


def _part_of(feature: Feature) -> str:
    return f"L{feature.layer}_{feature.index // _PART}"


def _records(stored: FeatureFiles, features: Iterable[Feature]) -> Iterator[FeatureRecord]:
    for feature in features:
        record = stored.record(feature)
        if record is not None:
            yield record


def _table(rows: list[FeatureRow], about: AboutRecords | None) -> dict[str, Any]:
    return {
        "about": {} if about is None else {"tokens": about.tokens},
        "partSize": _PART,
        "rows": table_values(rows),
    }


def _write_values(path: Path, name: str, values: object) -> None:
    """Write a script that hands values to the page."""
    files.write_text(path, f"OpenCLT.receive({script_text(name, name)}, {script_text(name, values)});\n")


def _page(about: AboutRecords | None) -> str:
    """The page that shows the table and the features."""
    said = "" if about is None else f"{about.model}, transcoder {about.transcoder}; measured on {about.tokens:,} tokens"
    body = (
        f'<header class="d-top"><h1>Features</h1><p>{escaped(said)}</p>'
        '<form id="jump"><input id="named" aria-label="Name of a feature" placeholder="L2/417" autocomplete="off">'
        '<button class="d-button">Go</button></form>'
        '<button type="button" class="d-button" id="random">Random feature</button></header>'
        f'{_how_measured(about)}<main id="main"><noscript>This page needs JavaScript.</noscript></main>'
        f'<p class="d-keys">{_KEYS}</p>'
    )
    return page("Features", body, styles=_STYLES, scripts=_SCRIPTS, loads=True)


def _how_measured(about: AboutRecords | None) -> str:
    """How the features were measured, folded."""
    if about is None:
        return ""
    facts = {name.replace("_", " "): value for name, value in to_dict(about).items()}
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    return f'<details class="d-about"><summary>How the features were measured</summary><dl>{rows}</dl></details>'
