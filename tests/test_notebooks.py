"""Every notebook runs from its first cell to its last, shows its figures and records, and stays below 600 kB."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from tools.run_notebooks import BADGE, NOTEBOOKS, badge, executed, install_cell, smaller
from tools.site.repository import repository_address

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PLOTLY = "application/vnd.plotly.v1+json"
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def check_outputs(path: Path) -> None:
    """No cell failed or wrote on standard error, and each that ends in a figure or a record shows it."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        assert all(output.output_type != "error" for output in cell.outputs), cell.source
        assert all(output.get("name") != "stderr" for output in cell.outputs), cell.source
        last = cell.source.splitlines()[-1]
        kinds = [set(output.get("data", {})) for output in cell.outputs]
        if "interactive_" in last:
            assert {PLOTLY, "image/png"} in kinds, last
        elif "visualize" in last or last == "plt.show()":
            assert any("image/png" in kind for kind in kinds), last
        elif last.isidentifier():
            assert any({"image/png", "text/html"} & kind for kind in kinds), last


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbformat.write(executed(path, tmp_path), tmp_path / path.name)
    check_outputs(tmp_path / path.name)


@each_notebook
def test_a_notebook_holds_its_outputs_and_shows_every_figure_and_record(path: Path) -> None:
    check_outputs(path)
    assert path.stat().st_size < 600_000


@each_notebook
def test_a_notebook_begins_with_its_badge_and_installs_from_the_address_of_pyproject(path: Path) -> None:
    text, code, *others = nbformat.read(path, as_version=4).cells
    assert [line for line in text.source.splitlines() if line.startswith(BADGE)] == [
        badge(repository_address(), path.name)
    ]
    assert code.source == install_cell(repository_address())
    assert not any(repository_address() in cell.source for cell in others)


@each_notebook
def test_a_notebook_introduces_itself_and_ends_with_what_to_change_for_gpt_2(path: Path) -> None:
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith(f"# {int(path.stem[:2])}. ")
    assert "You will" in texts[0] or "you will" in texts[0]
    assert re.search(r"^## For GPT-2", texts[-1], re.MULTILINE)


@each_notebook
def test_links_of_a_notebook_lead_to_files(path: Path) -> None:
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)]
    assert any(link.startswith("../docs/") for link in links)
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_notebooks_are_numbered() -> None:
    assert [int(path.stem[:2]) for path in PATHS] == list(range(1, len(PATHS) + 1))


def test_the_badge_opens_the_notebook_of_the_repository_in_colab() -> None:
    line = badge("https://github.com/owner/name", "01_first.ipynb")
    assert line.endswith("(https://colab.research.google.com/github/owner/name/blob/main/notebooks/01_first.ipynb)")
    assert '"open-clt @ git+https://github.com/owner/name"' in install_cell("https://github.com/owner/name")


def test_a_picture_is_stored_in_fewer_bytes_and_a_rare_colour_stays() -> None:
    opacity = np.abs(np.sin(np.arange(240)[:, None] ** 2 / 300 + np.arange(320) / 9))[..., None]
    pixels = (255 - opacity * np.array([255, 120, 80])).astype(np.uint8)  # from white to blue
    pixels[7:11, 5:9] = 230, 90, 20  # sixteen orange pixels
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    picture = b64encode(file.getvalue()).decode()
    stored = smaller(picture)
    assert len(stored) < len(picture) * 0.6
    again = np.asarray(Image.open(BytesIO(b64decode(stored))).convert("RGB"))
    assert np.abs(again.astype(int) - pixels.astype(int)).max() <= 16


CELLS = {
    "from open_clt import OpenCrossLayerTranscoder\n"
    "clt = OpenCrossLayerTranscoder.from_pretrained('embedded')\n"
    "prompt = 'The capital of France is'": [],
    "clt": ["text/html"],
    "clt.transcoder": ["text/html"],
    "clt.get_top_features(prompt)": ["text/html"],
    "clt.visualize_feature_activations(prompt)": ["image/png"],
    "figure = clt.visualize_feature_activations(prompt)": ["image/png"],
    "figure": ["image/png"],
    "for text in (prompt, 'The capital of Texas is'):\n    clt.visualize_feature_activations(text)": ["image/png"] * 2,
    "clt.visualize_feature_activations(prompt, save_path='figure.png').get_size_inches().size": [None],
    "graph = clt.create_attribution_graph(prompt)\ngraph": ["text/html"],
    "from open_clt import visualize_attribution_graph\nvisualize_attribution_graph(graph)": ["image/png"],
    "from matplotlib.figure import Figure\n"
    "from open_clt.visualization_utils import visualize_feature_heatmap\n"
    "ax = Figure().subplots()\n"
    "visualize_feature_heatmap(clt, prompt, ax=ax)": ["image/png"],
    "import matplotlib.pyplot as plt\n"
    "figure, (left, right) = plt.subplots(1, 2)\n"
    "for ax in (left, right):\n    visualize_feature_heatmap(clt, prompt, ax=ax)": ["image/png"],
    "visualize_attribution_graph(graph) ": ["image/png"],  # once, also after pyplot has its own form of figures
    "clt.replacement_model().compare(prompt, continuations=False)": ["text/html"],
    "from open_clt.visualization_utils import interactive_attribution_graph\ninteractive_attribution_graph(graph)": [
        PLOTLY
    ],
    "from open_clt.visualization_utils import interactive_feature_heatmap\n"
    "plot = interactive_feature_heatmap(clt, prompt)": [],
    "plot": [PLOTLY],
    "import plotly.io\nplotly.io.renderers.default = 'iframe'\nplot": ["text/html"],
}
"""The richest form of each output of a cell; None is plain text."""


@pytest.mark.slow
def test_a_notebook_shows_figures_and_records_and_no_advice_of_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND")  # a notebook chooses its own
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=280, resources=resources).execute()
    for cell, expected in zip(notebook.cells, CELLS.values(), strict=True):
        kinds = [set(output["data"]) for output in cell.outputs]  # an output on standard error has no data
        richest = [next((kind for kind in (PLOTLY, "image/png", "text/html") if kind in data), None) for data in kinds]
        assert richest == expected, cell.source
