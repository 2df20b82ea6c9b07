"""Every notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    client = nbclient.NotebookClient(
        nbformat.read(notebook, as_version=4),
        kernel_name="python3",
        timeout=280,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()


CELLS = """
from open_clt import OpenCrossLayerTranscoder
clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
clt.visualize_feature_activations("The capital of France is")
"""


@pytest.mark.slow
def test_a_notebook_shows_a_picture_and_no_advice_of_libraries() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS)])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=280).execute()
    (shown,) = notebook.cells[0].outputs  # and nothing on standard error
    assert "image/png" in shown["data"]
