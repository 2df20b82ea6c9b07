"""The table of the layouts of stored transcoders, and ``load_transcoder``, which reads every one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from open_clt.config.arguments import checked_arguments
from open_clt.device import check_device
from open_clt.errors import CheckpointError
from open_clt.memory import memory_errors
from open_clt.transcoders.formats import circuit_tracer, native
from open_clt.transcoders.formats.checks import check_all
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.formats.native import load_native
from open_clt.transcoders.make import OwnCode
from open_clt.transcoders.transcoder import Transcoder


class Layout(NamedTuple):
    """A layout of a stored transcoder: its names, and the functions that recognise and read a directory of it."""

    name: str
    tensors: str
    """Name of the files that hold the tensors."""
    recognises: Callable[[Path], bool]
    load: Callable[[Path, OwnCode], Transcoder]


LAYOUTS = (
    Layout(
        "OpenCLT's (config.json and transcoder.safetensors)", "transcoder.safetensors", native.recognises, load_native
    ),
    Layout(
        "circuit-tracer's (config.yaml, W_enc_0.safetensors, ...)",
        "W_*.safetensors",
        circuit_tracer.recognises,
        load_circuit_tracer,
    ),
)
"""Every layout, in the order in which they are tried. A new layout is its own file and a line here."""


def holds_transcoder(directory: str | Path) -> bool:
    """Whether a directory holds a transcoder of any known layout, whole or damaged."""
    return any(layout.recognises(Path(directory)) for layout in LAYOUTS)


@checked_arguments
def load_transcoder(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    own_class: type[Any] | None = None,
    trust_code: bool = False,
) -> Transcoder:
    """Read a transcoder of any known layout, in inference mode; raises CheckpointError if the directory has none.

    A transcoder of a user's own class needs ``own_class``, the class. With ``trust_code``, the class that
    ``config.json`` names is imported instead, so the code of its module runs; use it only for directories that you
    trust. Otherwise the directory cannot make any code run. Nothing is downloaded.
    """
    directory, device = Path(directory), check_device(device)
    code = OwnCode(own_class=own_class, trust_code=trust_code)
    for layout in LAYOUTS:
        if layout.recognises(directory):
            with memory_errors(
                f"The transcoder {directory}", "close other programs, or use a machine with more memory"
            ):
                transcoder = layout.load(directory, code)
                stored_in = transcoder.dtype
                transcoder = transcoder.to(device=device, dtype=dtype).eval()
            if dtype != stored_in:  # the largest number of float16 is 65,504; readers check before the conversion
                check_all(transcoder, directory / layout.tensors)
            return transcoder
    names = " or ".join(layout.name for layout in LAYOUTS)
    raise CheckpointError(f"{directory} does not hold a transcoder of a known layout; known layouts are {names}.")
