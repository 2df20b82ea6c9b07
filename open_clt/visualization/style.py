"""The style of all figures: fonts, colours for colour-blind readers, and how a figure is shown and saved."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, cast, final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from open_clt.errors import ConfigError
from open_clt.files import check_file, writing
from open_clt.visualization.notebook_cells import show_later

Array: TypeAlias = npt.NDArray[Any] | Tensor
"""Type of the values that figures draw: NumPy arrays or tensors."""

# Okabe and Ito (2008), "Color Universal Design".
BLUE, VERMILLION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
INK, GREY, PALE = "#222222", "#8A8A8A", "#F4F4F2"

DIVERGING = "RdBu"
"""Colour map for signed values: red is negative and blue is positive, as in attribution graphs."""

_SUFFIXES = (".png", ".svg", ".pdf")
_SHOWN_DPI = 96
"""Number of pixels of a notebook per inch of a figure, as in CSS."""
_SHARP_DPI = 144
"""Number of pixels of a notebook's picture per inch: more than are shown, so that letters are sharp on any screen."""
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
    "text.hinting": "no_hinting",  # the widths of letters do not depend on the resolution
    "pdf.fonttype": 42,
    "svg.hashsalt": "open-clt",
}


@final
class NotebookFigure(Figure):
    """A figure that a notebook shows as a picture, whether or not pyplot is used.

    ``notebook_cells.show_later`` shows it below the cell that draws it, unless the cell returns or displays it.
    """

    is_shown = False
    """Whether a notebook shows the picture, or it is part of what a notebook shows."""

    def png(self, dpi: int = _SHARP_DPI) -> bytes:
        """Return the picture as a PNG file; the figure then counts as shown."""
        self.is_shown = True
        png = BytesIO()
        with mpl.rc_context(cast(Any, _STYLE)):
            self.savefig(png, format="png", dpi=dpi, pil_kwargs={"compress_level": 9})
        return png.getvalue()

    def shown_size(self) -> tuple[int, int]:
        """Return the width and the height that a page shows, in its pixels."""
        width, height = self.get_size_inches()
        return round(width * _SHOWN_DPI), round(height * _SHOWN_DPI)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, bytes], dict[str, dict[str, int]]]:
        """The picture and its size in pixels; it has more pixels than are shown, so that letters are sharp.

        A notebook asks for this form first, also where pyplot has a form of its own for all figures.
        """
        width, height = self.shown_size()
        return {"image/png": self.png()}, {"image/png": {"width": width, "height": height}}

    def _repr_png_(self) -> bytes:
        return self.png()


def numbers(values: Array) -> npt.NDArray[Any]:
    """Return the values as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def sequential() -> Colormap:
    """Return a colour map that is white at 0, then runs from pale yellow to dark blue; larger values are darker."""
    ramp = mpl.colormaps["YlGnBu"](np.linspace(0.06, 1, 255))
    return ListedColormap(np.vstack([[1, 1, 1, 1], ramp]), name="more_is_darker")


def layer_colours(n_layers: int) -> npt.NDArray[Any]:
    """Return one RGBA colour per layer, from viridis without its bright end, which is hard to see on white."""
    return np.asarray(mpl.colormaps["viridis"](np.linspace(0, 0.88, n_layers)))


def add_layer_key(ax: Axes, n_layers: int) -> None:
    """Add a colour bar that shows which colour belongs to which layer."""
    norm = BoundaryNorm(np.arange(n_layers + 1) - 0.5, n_layers)
    mappable = ScalarMappable(norm, ListedColormap(layer_colours(n_layers)))
    step = -(-n_layers // 16)
    bar = figure_of(ax).colorbar(mappable, ax=ax, label="layer", ticks=range(0, n_layers, step), shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=0)


def figure_of(ax: Axes) -> Figure:
    """Return the figure that contains the axes, also if they lie in a subfigure."""
    return cast(Figure, cast(Any, ax.figure).canvas.figure)


@contextmanager
def styled(save_path: str | Path | None) -> Generator[None]:
    """Use the package's style within the block; raise ConfigError if ``save_path`` cannot be a picture.

    The path is checked before anything is drawn, so a misspelled suffix does not waste a long computation.
    """
    check_save_path(save_path)
    with mpl.rc_context(cast(Any, _STYLE)):
        yield


def check_save_path(save_path: str | Path | None) -> None:
    """Raise ConfigError if ``save_path`` does not end in .png, .svg or .pdf, or cannot be written; None is accepted."""
    if save_path is None:
        return
    if Path(save_path).suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{str(save_path)!r} does not end in a picture format; use one of {', '.join(_SUFFIXES)}.")
    check_file(Path(save_path))


def save(figure: Figure, save_path: str | Path | None) -> None:
    """Write a figure in the format of the suffix, creating folders as needed; the same figure gives the same file.

    A figure without a path is shown below the notebook cell that draws it, if a notebook runs.
    """
    if save_path is None:
        show_later(figure)
        return
    path = Path(save_path)
    # A file without a date is the same at every run.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with writing(path) as temporary:
        figure.savefig(temporary, metadata=metadata.get(path.suffix.lower()))
