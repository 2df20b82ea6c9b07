"""Dashboards: their data are those of the feature files, and no text becomes code."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_clt import files
from open_clt.errors import CheckpointError, ConfigError
from open_clt.features.feature_files import write_feature_files
from open_clt.features.records import FeatureRecord
from open_clt.transcoders.feature import Feature
from open_clt.visualization.dashboards.write import write_dashboards
from tests.features.rich_record import ABOUT, rich_record
from tests.refusals import refuses

N_FEATURES = 130
DEAD = FeatureRecord(Feature(1, 129), 0.0, 0.0, (), (), ())


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Feature files of two layers, in which some features have no record and one is dead."""
    records = [*(rich_record(0, index) for index in (0, 63, 64)), rich_record(1, 128), DEAD]
    write_feature_files(records, tmp_path / "stored", n_layers=2, n_features=N_FEATURES, about=ABOUT)
    return tmp_path / "stored"


def values_of(script: Path) -> Any:
    """The values that a script hands over, under its own name."""
    match = re.fullmatch(r'OpenCLT\.receive\("(.*?)", (.*)\);\n', script.read_text(encoding="utf-8"))
    assert match is not None
    assert match[1] == script.stem
    return json.loads(match[2])


def test_every_record_is_in_the_table_and_in_one_file(stored: Path, tmp_path: Path) -> None:
    page = write_dashboards(stored, tmp_path / "pages")
    table = values_of(page.parent / "data" / "table.js")
    assert table["about"]["tokens"] == ABOUT.tokens
    names = list(zip(table["rows"]["layer"], table["rows"]["index"], strict=True))
    assert names == [(0, 0), (0, 63), (0, 64), (1, 128), (1, 129)]
    parts = {path.stem: values_of(path)["features"] for path in (page.parent / "data").glob("L*.js")}
    assert {name: list(part) for name, part in parts.items()} == {
        "L0_0": ["0", "63"],
        "L0_1": ["64"],
        "L1_2": ["128", "129"],
    }


def test_the_values_are_those_of_the_record(stored: Path, tmp_path: Path) -> None:
    page = write_dashboards(stored, tmp_path / "pages")
    part, record = values_of(page.parent / "data" / "L0_0.js"), rich_record(0, 63)
    shown = part["features"]["63"]
    group = shown["groups"][1]
    assert group["name"] == record.groups[0].name
    tokens, active, peak = group["examples"][0]
    expected = record.groups[0].examples[0]
    assert tuple(part["tokens"][token] for token in tokens) == expected.tokens
    values = dict(zip(active[::2], active[1::2], strict=True))
    assert [values.get(position, 0.0) for position in range(4)] == pytest.approx(expected.activations.tolist())
    assert peak == expected.peak
    assert shown["label"]["text"] == "fires on “ïve” <b>"
    assert shown["percentiles"] == pytest.approx(record.quantile_values, rel=1e-3)
    assert [outputs["layer"] for outputs in shown["outputs"]] == [0, 1]
    assert shown["nearest"] == [["L0/64", 0.5]]


def test_numbers_that_are_not_known_are_null(tmp_path: Path) -> None:
    record = replace(rich_record(0, 0), density=math.nan, max_activation=math.nan, histogram=(), label=None)
    write_feature_files([record], tmp_path / "stored", n_layers=1, n_features=1)
    page = write_dashboards(tmp_path / "stored", tmp_path / "pages")
    shown = values_of(page.parent / "data" / "L0_0.js")["features"]["0"]
    assert (shown["density"], shown["max"], shown["label"], shown["histogram"]) == (None, None, None, [])


def test_no_text_becomes_code(tmp_path: Path) -> None:
    attack = '</script><img src=x onerror="alert(1)">\u2028'
    label = rich_record(0, 0).label
    assert label is not None
    record = replace(rich_record(0, 0), label=label._replace(text=attack))
    about = replace(ABOUT, model=attack, text=attack)
    write_feature_files([record], tmp_path / "stored", n_layers=1, n_features=1, about=about)
    page = write_dashboards(tmp_path / "stored", tmp_path / "pages")
    assert "<img" not in page.read_text()
    assert page.read_text().count("</script>") == 1
    for script in (page.parent / "data").iterdir():
        assert not set("<>&\u2028") & set(script.read_text(encoding="utf-8"))
    assert values_of(page.parent / "data" / "table.js")["rows"]["label"] == [attack]


def test_former_pages_are_replaced_and_other_files_stay(stored: Path, tmp_path: Path) -> None:
    output = tmp_path / "pages"
    write_dashboards(stored, output)
    (output / "data" / "mine.js").write_text("mine")
    write_feature_files([rich_record(0, 0)], tmp_path / "small", n_layers=1, n_features=1)
    write_dashboards(tmp_path / "small", output)
    left = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.js"))
    assert left == ["data/L0_0.js", "data/mine.js", "data/table.js"]


def test_a_page_of_another_program_is_kept(stored: Path, tmp_path: Path) -> None:
    page = files.write_text(tmp_path / "pages" / "index.html", "mine")
    with refuses(ConfigError, page):
        write_dashboards(stored, tmp_path / "pages")
    assert page.read_text() == "mine"
    assert [path.name for path in page.parent.iterdir() if not path.name.startswith(".")] == ["index.html"]


def test_a_directory_without_feature_files_is_refused(tmp_path: Path) -> None:
    with refuses(CheckpointError, "index.json.gz"):
        write_dashboards(tmp_path, tmp_path / "pages")
    assert not (tmp_path / "pages").exists()
