"""Information on a stored transcoder, from its settings and headers: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from open_clt.config import NonlinearityConfig, TopKConfig, TranscoderConfig
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import Opened, open_transcoder
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.make import OwnCode


@final
@dataclass(frozen=True, kw_only=True)
class TranscoderInfo:
    """What the files of a transcoder say of it."""

    layout: str
    """Short name of the layout of its files."""
    config: TranscoderConfig
    """Shape, hooks and nonlinearity."""
    n_parameters: int
    """Number of parameters: of encoders, decoders, biases, thresholds and skip paths."""
    bytes_on_disk: int
    """Number of bytes of the files of weights."""
    dtypes: tuple[str, ...]
    """Types in which encoders and decoders are stored."""
    states_hooks: bool = True
    """Whether the files, or the description of their layout, state the hooks; otherwise OpenCLT assumes them."""

    @property
    def bytes_in_memory(self) -> int:
        """Number of bytes of the parameters in memory, in float32."""
        return self.n_parameters * torch.float32.itemsize

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a table."""
        config = self.config
        kind = (
            ("cross-layer" if config.reach_of(0) > 1 else "per layer") if config.kind == "cross_layer" else config.kind
        )
        reach = config.reach_of(0)
        written = "features write to their own layer" if reach == 1 else f"features write to {reach} layers at most"
        skip = ", with a skip path" if config.skip else ""
        assumed = "" if self.states_hooks else " (assumed; the files do not state it)"
        return [
            ("layout", self.layout),
            ("kind", f"{kind}, {written}{skip}"),
            ("layers", _layers(config)),
            ("features", f"{config.n_features:,} per layer, {config.n_layers * config.n_features:,} in all"),
            ("width", f"{config.d_model:,}"),
            ("nonlinearity", describe_nonlinearity(config.nonlinearity)),
            ("reads", config.input_hook + assumed),
            ("writes", config.target_hook + assumed),
            ("language model", config.language_model or "not stated"),
            ("parameters", f"{self.n_parameters:,}"),
            ("on disk", f"{readable(self.bytes_on_disk)} ({', '.join(self.dtypes)})"),
        ]

    __repr__ = short_repr


def transcoder_info(source: str | Path, *, trust_code: bool = False) -> TranscoderInfo:
    """Read what the files of a transcoder say of it; the sources and errors are those of ``load_transcoder``.

    Of a transcoder on the hub only its settings and headers are fetched. One that has no decoders, or that is of a
    user's own class, is read as a whole.
    """
    return describe(open_transcoder(source, code=OwnCode(trust_code=trust_code)))


def describe(opened: Opened) -> TranscoderInfo:
    """What the files of a transcoder that is opened say of it."""
    content = opened.content
    if isinstance(content, StoredTranscoder):
        dtypes = {table.dtype for table in content.weights.tables}
        with torch.device("meta"):
            n_parameters = CrossLayerTranscoder(content.config).n_parameters
    else:
        dtypes, n_parameters = {parameter.dtype for parameter in content.parameters()}, content.n_parameters
    return TranscoderInfo(
        layout=opened.layout.key,
        config=content.config,
        n_parameters=n_parameters,
        bytes_on_disk=opened.bytes_on_disk,
        dtypes=tuple(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        states_hooks=not isinstance(content, StoredTranscoder) or content.states_hooks,
    )


def _layers(config: TranscoderConfig) -> str:
    """The number of layers, and which of the language model's they are if they may be a part of them."""
    if config.n_layers == 1:
        return f"1, which is layer {config.layer_words} of the language model"
    chosen = "" if config.layers is None else f", which are {config.layer_words} of the language model"
    return f"{config.n_layers}{chosen}"


def describe_nonlinearity(config: NonlinearityConfig) -> str:
    """The name of a nonlinearity, with the number of features that it selects if it has one."""
    name, k = config.kind.replace("_", " "), getattr(config, "k", None)
    if isinstance(config, TopKConfig) and config.k_total is not None:
        return f"{name}, k = {config.k_total} over all layers"
    per_layer = " times the number of layers, ranked over all layers" if getattr(config, "across_layers", False) else ""
    return name if k is None else f"{name}, k = {k}{per_layer}"


def readable(size: int) -> str:
    """A number of bytes with a unit, such as ``26.1 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
