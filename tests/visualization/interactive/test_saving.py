"""Files of interactive figures: pages, and pictures that need another program."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from open_clt.errors import ConfigError
from open_clt.visualization.interactive import saving
from open_clt.visualization_utils import interactive_feature_density, save_interactive
from tests.refusals import refuses


@pytest.fixture
def figure() -> go.Figure:
    return interactive_feature_density(np.full((2, 3), 0.5), title="Density <1>")


@pytest.fixture
def with_kaleido(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "find_spec", lambda name: object())


def test_a_page_holds_the_whole_program_and_a_title(figure: go.Figure, tmp_path: Path) -> None:
    path = save_interactive(figure, tmp_path / "new" / "figure.html")
    page = path.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>Density &lt;1&gt;, 0.0% never active</title>" in page
    assert 4e6 < len(page) < 6e6
    assert "<script src" not in page
    assert [file.name for file in path.parent.iterdir()] == ["figure.html"]


def test_a_figure_function_writes_the_page_that_save_interactive_writes(tmp_path: Path, figure: go.Figure) -> None:
    interactive_feature_density(np.full((2, 3), 0.5), title="Density <1>", save_path=tmp_path / "one.html")
    save_interactive(figure, tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_figure_of_another_program_can_be_saved(tmp_path: Path) -> None:
    assert save_interactive(go.Figure(), tmp_path / "figure.html").exists()


@pytest.mark.parametrize("name", ["figure.gif", "figure", "figure.htm"])
def test_an_unknown_suffix_is_refused(figure: go.Figure, tmp_path: Path, name: str) -> None:
    with refuses(ConfigError, name, ".html", ".png", ".svg", ".pdf"):
        save_interactive(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_without_kaleido_is_refused_with_what_to_do(
    figure: go.Figure, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    with refuses(ConfigError, f"figure{suffix}", "kaleido", ".html", "visualize_feature_density"):
        save_interactive(figure, tmp_path / f"figure{suffix}")
    with refuses(ConfigError, "kaleido", "visualize_feature_density"):
        interactive_feature_density(np.full((2, 3), 0.5), save_path=tmp_path / f"figure{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("with_kaleido")
def test_a_picture_without_chrome_is_refused_with_what_to_do(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = "import sys; sys.exit('Kaleido requires Google Chrome to be installed. Either download it or not.')"
    monkeypatch.setattr(saving, "_EXPORT", export)
    with refuses(ConfigError, "figure.png", "requires Google Chrome", ".html", "visualize_feature_density"):
        save_interactive(figure, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("with_kaleido")
def test_a_chrome_that_hangs_is_ended(figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_EXPORT", "import time; time.sleep(1000)")
    monkeypatch.setattr(saving, "_PATIENCE", 0.2)
    with refuses(ConfigError, "figure.pdf", "seconds", "visualize_feature_density"):
        save_interactive(figure, tmp_path / "figure.pdf")


@pytest.mark.usefixtures("with_kaleido")
def test_a_picture_that_is_drawn_is_written(figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        saving,
        "_EXPORT",
        "import json, sys; figure = json.load(sys.stdin); sys.stdout.write(sys.argv[1] + str(len(figure['data'])))",
    )
    traces = len(tuple(figure.select_traces()))
    assert save_interactive(figure, tmp_path / "figure.SVG").read_text() == f"svg{traces}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("kaleido") is None, reason="kaleido is not installed")
def test_kaleido_draws_a_picture(figure: go.Figure, tmp_path: Path) -> None:
    assert save_interactive(figure, tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
