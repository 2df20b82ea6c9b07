"""The notebooks, run from their first cells to their last, and saved with their outputs: ``make notebooks``.

    python -m tools.run_notebooks           run all notebooks
    python -m tools.run_notebooks 02 05     run those whose names begin with 02 or 05

The address of the repository stands in ``pyproject.toml`` only. Before a notebook is run, the badge in its first cell
and the cell that installs OpenCLT are written again from there.
"""

from __future__ import annotations

import os
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbclient
import nbformat
from PIL import Image

from tools.site.repository import REPOSITORY, repository_address

NOTEBOOKS = REPOSITORY / "notebooks"
BADGE = "[![Open in Colab]"
_BADGE_PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
_INSTALL = """\
from importlib.util import find_spec

if find_spec("open_clt") is None:
    %pip install --quiet "open-clt @ git+{repository}\""""


def install_cell(repository: str) -> str:
    """The first cell of code, which installs OpenCLT unless it is installed."""
    return _INSTALL.format(repository=repository)


def badge(repository: str, name: str) -> str:
    """The link that opens the notebook ``name`` in Google Colab, as a line of Markdown."""
    on_github = repository.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{on_github}/blob/main/notebooks/{name}"
    return f"{BADGE}({_BADGE_PICTURE})]({address})"


def write_addresses(notebook: Any, name: str, repository: str) -> None:
    """Write the badge and the cell that installs OpenCLT; the notebook begins with a text and a cell of code."""
    text, code = notebook.cells[:2]
    lines = text.source.splitlines()
    text.source = "\n".join(badge(repository, name) if line.startswith(BADGE) else line for line in lines)
    code.source = install_cell(repository)


def executed(path: Path, folder: Path) -> Any:
    """Run a notebook in ``folder``, where it may write files, and return it with its outputs, without progress bars.

    Commands that the notebook calls, such as ``open-clt``, are those beside the Python that runs this program.
    """
    notebook = nbformat.read(path, as_version=4)
    write_addresses(notebook, path.name, repository_address())
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        notebook, timeout=600, record_timing=False, coalesce_streams=True, resources=resources
    )
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # Jupyter chooses its own
    client.execute(env={**inherited, "PATH": programs})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
    return notebook


def is_progress_bar(output: Any) -> bool:
    """Whether an output is a progress bar, which moves the cursor of a terminal and means nothing once it is full."""
    return output.get("name") == "stderr" and output["text"].startswith("\x1b[")


def smaller(picture: str) -> str:
    """A PNG in base64 with a palette of 256 colours, which takes a third of the bytes and looks the same."""
    image = Image.open(BytesIO(b64decode(picture))).convert("RGB")
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # keeps rare colours
    packed = BytesIO()
    image.save(packed, "PNG", optimize=True)
    return min(b64encode(packed.getvalue()).decode(), picture, key=len)


def run(path: Path) -> None:
    """Run a notebook and save it; times of the run are not kept, because they differ at every run."""
    with TemporaryDirectory() as folder:
        notebook = executed(path, Path(folder))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not sys.argv[1:] or path.name.startswith(tuple(sys.argv[1:])):
            run(path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
