"""The notebooks, run from their first cells to their last, and saved with their outputs: ``make notebooks``."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def run(path: Path) -> None:
    """Run a notebook and save it; times of the run are not kept, because they differ at every run."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=600, record_timing=False)
    client.execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        run(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
