"""Every notebook runs from its first cell to its last, shows its figures and records, and stays below 1 MB."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
PLOTLY = "application/vnd.plotly.v1+json"


def check_outputs(notebook: Path) -> None:
    """A notebook with outputs is small, no cell failed, and each that ends in a figure or a record shows it."""
    assert notebook.stat().st_size < 1_000_000
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        assert all(output.output_type != "error" for output in cell.outputs)
        last = cell.source.splitlines()[-1]
        kinds = [set(output.get("data", {})) for output in cell.outputs]
        if "interactive_" in last:
            assert {PLOTLY, "image/png"} in kinds, last
        elif "visualize" in last:
            assert any("image/png" in kind for kind in kinds), last
        elif last.isidentifier():
            assert any({"image/png", "text/html"} & kind for kind in kinds), last


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    client = nbclient.NotebookClient(
        nbformat.read(notebook, as_version=4),
        kernel_name="python3",
        timeout=280,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    nbformat.write(client.execute(), tmp_path / notebook.name)
    check_outputs(tmp_path / notebook.name)


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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_its_outputs_and_shows_every_figure_and_record(notebook: Path) -> None:
    check_outputs(notebook)
