"""The table of the layouts of stored transcoders, and ``load_transcoder``, which reads every one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from open_clt import files
from open_clt.config.arguments import Count, checked_arguments
from open_clt.device import check_device
from open_clt.errors import CheckpointError
from open_clt.memory import memory_errors
from open_clt.transcoders.formats import circuit_tracer, native
from open_clt.transcoders.formats.checks import check_all
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import LocalFiles, WeightFiles
from open_clt.transcoders.make import OwnCode
from open_clt.transcoders.transcoder import Transcoder


class Layout(NamedTuple):
    """A layout of a stored transcoder: its names, and the functions that recognise and read the files of one."""

    key: str
    """Short name, which commands use."""
    name: str
    """Name, with the files that tell it from others."""
    head: str
    """Name of the file that is written last, so that a save that was interrupted is noticed."""
    recognises: Callable[[WeightFiles], bool]
    read: Callable[[WeightFiles, OwnCode], StoredTranscoder | Transcoder]
    """Reads what the files say; a transcoder that is not a cross-layer transcoder of OpenCLT is read as a whole."""


def _without_code(
    open_files: Callable[[WeightFiles], StoredTranscoder],
) -> Callable[[WeightFiles, OwnCode], StoredTranscoder]:
    """A function that opens the files of a layout which names no classes, so that ``own_class`` is refused."""

    def opened(weight_files: WeightFiles, code: OwnCode) -> StoredTranscoder:
        code.architecture(None, weight_files.place)
        return open_files(weight_files)

    return opened


LAYOUTS = (
    Layout(
        "native",
        "OpenCLT's (config.json and transcoder.safetensors)",
        "config.json",
        native.recognises_files,
        native.open_native,
    ),
    Layout(
        "circuit-tracer",
        "circuit-tracer's (config.yaml, W_enc_0.safetensors, ...)",
        "config.yaml",
        circuit_tracer.recognises,
        _without_code(circuit_tracer.open_circuit_tracer),
    ),
)
"""Every layout, in the order in which they are tried. A new layout is its own file and a line here."""


def layout_of(directory: Path) -> Layout | None:
    """The layout of the transcoder in a directory, whole or damaged; None if there is none."""
    for layout in LAYOUTS:
        if files.read_saved(directory, layout.head, lambda saved, layout=layout: layout.recognises(LocalFiles(saved))):
            return layout
    return None


def holds_transcoder(directory: str | Path) -> bool:
    """Whether a directory holds a transcoder of any known layout, whole or damaged."""
    return layout_of(Path(directory)) is not None


@checked_arguments
def load_transcoder(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    memory_limit: Count | None = None,
    own_class: type[Any] | None = None,
    trust_code: bool = False,
) -> Transcoder:
    """Read a transcoder of any known layout, in inference mode; raises CheckpointError if the directory has none.

    ``dtype`` is the type that the transcoder computes in. Encoders and decoders that take more than ``memory_limit``
    bytes in that type, by default half of the memory that is available, stay in their files: encoders are read block
    by block, and decoders where features are active. Everything but training works with such a transcoder too.

    A transcoder of a user's own class needs ``own_class``, the class. With ``trust_code``, the class that
    ``config.json`` names is imported instead, so the code of its module runs; use it only for directories that you
    trust. Otherwise the directory cannot make any code run. Nothing is downloaded.
    """
    directory, device = Path(directory), check_device(device)
    code = OwnCode(own_class=own_class, trust_code=trust_code)
    layout = layout_of(directory)
    if layout is None:
        names = " or ".join(layout.name for layout in LAYOUTS)
        raise CheckpointError(f"{directory} does not hold a transcoder of a known layout; known layouts are {names}.")
    with memory_errors(f"The transcoder {directory}", "close other programs, or use a machine with more memory"):
        opened = files.read_saved(directory, layout.head, lambda saved: layout.read(LocalFiles(saved), code))
        if isinstance(opened, StoredTranscoder):
            return opened.load(device=device, dtype=dtype, memory_limit=memory_limit)
        stored_in = opened.dtype
        transcoder = opened.to(device=device, dtype=dtype).eval()
    if dtype != stored_in:  # the largest number of float16 is 65,504; readers check before the conversion
        check_all(transcoder, directory)
    return transcoder
