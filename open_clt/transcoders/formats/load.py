"""Transcoders from disk: the one table of the layouts that are read, and ``load_transcoder``, which reads them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from open_clt.errors import CheckpointError
from open_clt.transcoders.formats import circuit_tracer, native
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.formats.native import load_native
from open_clt.transcoders.transcoder import Transcoder


class Layout(NamedTuple):
    """One layout of a stored transcoder: how its directories are recognised, and how they are read."""

    name: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path], Transcoder]


LAYOUTS = (
    Layout("OpenCLT's (config.json and transcoder.safetensors)", native.recognises, load_native),
    Layout("circuit-tracer's (config.yaml, W_enc_0.safetensors, ...)", circuit_tracer.recognises, load_circuit_tracer),
)
"""Every layout, in the order in which they are tried; a new one is its file and a line here."""


def holds_transcoder(directory: str | Path) -> bool:
    """Whether a directory looks like a transcoder's, of any known layout."""
    return any(layout.recognises(Path(directory)) for layout in LAYOUTS)


def load_transcoder(
    directory: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Transcoder:
    """Read a transcoder of any known layout, ready for use; raises CheckpointError on anything else.

    One of a class of a user's own imports the module that its ``config.json`` names, if this Python can find it: code
    of that module runs. Nothing is downloaded, and nothing but a subclass of Transcoder is called.
    """
    directory = Path(directory)
    for layout in LAYOUTS:
        if layout.recognises(directory):
            return layout.load(directory).to(device=device, dtype=dtype).eval()
    known = " or ".join(layout.name for layout in LAYOUTS)
    raise CheckpointError(f"{directory} does not hold a transcoder of a known layout; known are {known}.")
