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
