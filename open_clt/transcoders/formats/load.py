"""The table of the layouts of stored transcoders, and ``load_transcoder``, which reads every one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from open_clt import files
from open_clt.config import TranscoderConfig
from open_clt.config.arguments import Count, checked_arguments
from open_clt.device import check_device
from open_clt.errors import CheckpointError
from open_clt.hub.repository import HubName, Repository
from open_clt.memory import memory_errors
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats import (
    bluelight,
    bytedance,
    circuit_tracer,
    circuit_tracer_layers,
    circuit_tracer_writer,
    clt_forge,
    clt_training,
    crosslayer_transcoder,
    decode_clt,
    gemma_scope_1,
    gemma_scope_2,
    gemma_scope_2_layers,
    llamascope,
    llamascope_layers,
    native,
    saelens,
    saelens_writer,
)
from open_clt.transcoders.formats.checks import check_all, check_dtype
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import HubFiles, LocalFiles, SelectedFiles, WeightFiles
from open_clt.transcoders.make import NO_CODE, OwnCode
from open_clt.transcoders.neurons.source import is_neurons, not_stored
from open_clt.transcoders.transcoder import Transcoder

_WEIGHTS = "*.safetensors"
"""Pattern of files that many directories hold, so that they do not tell layouts apart."""


class Writer(NamedTuple):
    """How a transcoder is written in a layout."""

    check_place: Callable[[Path], None]
    """Raises ConfigError if a transcoder would replace other files in a directory."""
    save: Callable[[Transcoder, Path], Path]
    """Writes a transcoder into a directory; raises CheckpointError for what the layout cannot hold."""
    check_config: Callable[[TranscoderConfig], None] | None = None
    """Raises CheckpointError if the layout cannot hold transcoders of a shape, before anything is computed."""

    __repr__ = short_repr


class Layout(NamedTuple):
    """A layout of a stored transcoder: its name, and the functions that recognise and read the files of one."""

    key: str
    """Short name, which commands use."""
    head: str
    """Name of the file that is written last, so that a save that was interrupted is noticed."""
    needs: tuple[str, ...]
    """Patterns of the files that every transcoder of this layout has, of which ``|`` separates alternatives."""
    recognises: Callable[[WeightFiles], bool]
    read: Callable[[WeightFiles, OwnCode], StoredTranscoder | Transcoder]
    """Reads what the files say; a transcoder that is not a cross-layer transcoder of OpenCLT is read as a whole."""
    writer: Writer | None = None
    """Writes transcoders; None for a layout that is only read."""

    def may_hold(self, path: Path) -> bool:
        """Whether a file in the transcoder's directory may be one of its files, by its suffix."""
        return path.suffix in {Path(name).suffix for need in self.needs if "/" not in need for name in need.split("|")}

    def opened(self, weight_files: WeightFiles, code: OwnCode) -> Opened:
        """Open a transcoder of this layout."""
        content = self.read(weight_files, code)
        if isinstance(content, StoredTranscoder):
            content = content.of_files(weight_files.opened)
        return Opened(self, content, sum(weight_files.opened.sizes.values()))

    __repr__ = short_repr


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
        "config.json",
        ("config.json", "transcoder.safetensors"),
        native.recognises_files,
        native.open_native,
        Writer(native.check_place, native.save_transcoder),
    ),
    Layout(
        "circuit-tracer",
        "config.yaml",
        ("config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors"),
        circuit_tracer.recognises,
        _without_code(circuit_tracer.open_circuit_tracer),
        Writer(
            circuit_tracer_writer.check_place,
            circuit_tracer_writer.save_circuit_tracer,
            circuit_tracer_writer.check_config,
        ),
    ),
    Layout(
        "circuit-tracer-layers",
        "config.yaml",
        ("config.yaml", "layer_0.safetensors"),
        circuit_tracer_layers.recognises,
        _without_code(circuit_tracer_layers.open_circuit_tracer_layers),
        Writer(
            circuit_tracer_writer.check_place_of_layers,
            circuit_tracer_writer.save_circuit_tracer_layers,
            circuit_tracer_writer.check_config_of_layers,
        ),
    ),
    Layout(
        "gemma-scope-1",
        "params.npz",
        ("layer_*/width_*/average_l0_*/params.npz",),
        gemma_scope_1.recognises,
        _without_code(gemma_scope_1.open_gemma_scope_1),
    ),
    Layout(
        "gemma-scope-2",
        "params_layer_0.safetensors",
        ("params_layer_*.safetensors",),
        gemma_scope_2.recognises,
        _without_code(gemma_scope_2.open_gemma_scope_2),
    ),
    Layout(
        "gemma-scope-2-layers",
        "params.safetensors",
        ("layer_*_width_*/params.safetensors",),
        gemma_scope_2_layers.recognises,
        _without_code(gemma_scope_2_layers.open_gemma_scope_2_layers),
    ),
    Layout(
        "clt-forge",
        "clt_cfg.json",
        ("clt_cfg.json", "clt_weights.safetensors|rank*_clt_weights.safetensors"),
        clt_forge.recognises,
        _without_code(clt_forge.open_clt_forge),
    ),
    Layout(
        "bytedance",
        "config.json",
        ("config.json", "W_enc_0.safetensors", "W_dec_0.safetensors"),
        bytedance.recognises,
        _without_code(bytedance.open_bytedance),
    ),
    Layout(
        "bluelight",
        "model_config.json",
        ("model_config.json", "clt.safetensors|manifest.json"),
        bluelight.recognises,
        _without_code(bluelight.open_bluelight),
    ),
    Layout(
        "crosslayer-transcoder",
        "config.yaml",
        ("config.yaml", "checkpoint.safetensors"),
        crosslayer_transcoder.recognises,
        _without_code(crosslayer_transcoder.open_crosslayer_transcoder),
    ),
    Layout(
        "llamascope",
        "config.json",
        ("config.json", "sae_weights.safetensors"),
        llamascope.recognises,
        _without_code(llamascope.open_llamascope),
    ),
    Layout(
        "saelens",
        saelens_writer.HEAD,
        ("*/cfg.json", "*/sae_weights.safetensors"),
        saelens.recognises,
        _without_code(saelens.open_saelens),
        Writer(saelens_writer.check_place, saelens_writer.save_saelens, saelens_writer.check_config),
    ),
    Layout(
        "llamascope-layers",
        "config.json",
        ("layer*/config.json", "layer*/sae_weights.safetensors"),
        llamascope_layers.recognises,
        _without_code(llamascope_layers.open_llamascope_layers),
    ),
    Layout(
        "clt-training",
        "cfg.json",
        ("*/cfg.json", "*/sae.safetensors"),
        clt_training.recognises,
        _without_code(clt_training.open_clt_training),
    ),
    Layout(
        "decode-clt",
        "cfg.json",
        ("cfg.json", _WEIGHTS),
        decode_clt.recognises,
        _without_code(decode_clt.open_decode_clt),
    ),
)
"""Every layout, in the order in which they are tried. A new layout is its own file and a line here."""


def layout_of(directory: Path, pattern: str = "") -> Layout | None:
    """The layout of the transcoder in a directory, whole or damaged; None if it holds none.

    A pattern restricts the search to the files that it selects.
    """
    for layout in LAYOUTS:
        recognises = layout.recognises
        if files.read_saved(
            directory,
            layout.head,
            lambda saved, recognises=recognises: recognises(_selected(LocalFiles(saved), pattern)),
        ):
            return layout
    return None


def holds_transcoder(directory: str | Path) -> bool:
    """Whether a directory holds a transcoder of any known layout, whole or damaged."""
    return layout_of(Path(directory)) is not None


class Opened(NamedTuple):
    """A transcoder whose layout is recognised, and whose settings and headers are read."""

    layout: Layout
    content: StoredTranscoder | Transcoder
    """What the files describe; a transcoder that is not a cross-layer transcoder of OpenCLT is read already."""
    bytes_on_disk: int
    """Number of bytes of the files of weights."""

    __repr__ = short_repr


def open_transcoder(source: str | Path, *, code: OwnCode = NO_CODE, whole: bool = False) -> Opened:
    """Open a transcoder: a directory, a file in it, or a name on the hub, ``org/name[/folder][@revision]``.

    A folder with ``*`` in its name selects those folders of a directory that hold the layers of one transcoder. Of a
    transcoder on the hub only settings and headers are fetched, unless ``whole`` asks for all of its files. Raises
    CheckpointError if the source does not hold a transcoder of a known layout, and HubUnreachableError if it is neither
    on this machine nor on a hub that answers.
    """
    if is_neurons(source):
        raise not_stored("read")
    place, pattern = _split(str(source))
    path = files.existing_path(place)
    if path is not None:
        named, path = (path, path.parent) if path.is_file() else (None, path)
        layout = layout_of(path, pattern)
        if named is not None and (layout is None or not layout.may_hold(named)):
            raise CheckpointError(f"{named} is not a file of a transcoder; give the directory of the transcoder.")
        if layout is None:
            raise files.read_saved(path, "config.json", lambda saved: unknown(_selected(LocalFiles(saved), pattern)))
        return files.read_saved(
            path, layout.head, lambda saved: layout.opened(_selected(LocalFiles(saved, whole), pattern), code)
        )
    name = HubName.parse(place)
    if name is None:
        raise CheckpointError(
            f"{place!r} is neither a directory nor a name on the hub (org/name[/folder][@revision]); check it."
        )
    weight_files = _selected(HubFiles(Repository.find(name), whole), pattern)
    for layout in LAYOUTS:
        if layout.recognises(weight_files):
            return layout.opened(weight_files, code)
    raise unknown(weight_files)


class _Source(NamedTuple):
    """A source of a transcoder without a pattern, and the pattern that selects folders in it, or an empty text."""

    place: str
    pattern: str


def _split(source: str) -> _Source:
    """Split a source at the first folder whose name holds ``*``, unless a file or directory has the whole name."""
    if "*" not in source or files.existing_path(source) is not None:
        return _Source(source, "")
    start, _, end = source.partition("*")
    folder, _, first = start.rpartition("/")
    pattern, at, revision = f"{first}*{end}".partition("@")
    folder = folder or ("/" if start.startswith("/") else ".")
    return _Source(f"{folder}{at}{revision}", pattern.rstrip("/"))


def _selected(weight_files: WeightFiles, pattern: str) -> WeightFiles:
    return SelectedFiles(weight_files, pattern) if pattern else weight_files


def unknown(weight_files: WeightFiles) -> CheckpointError:
    """The error for files of no known layout; it names the files that the nearest layouts have besides them."""
    lacking: dict[str, list[str]] = {}
    nearness: dict[str, tuple[int, int]] = {}
    for key, _, needs, *_ in LAYOUTS:
        absent = [need for need in needs if not any(map(weight_files.names, need.split("|")))]
        if absent and set(needs) - {*absent, _WEIGHTS}:  # many other directories hold safetensors files, too
            lacking[key], nearness[key] = absent, (-len(absent), len(needs))
    if not lacking:
        only = " (it has weights, but no config.json, config.yaml or cfg.json)" if weight_files.names(_WEIGHTS) else ""
        return CheckpointError(
            f"{weight_files.place} does not hold a transcoder of one of the {len(LAYOUTS)} known layouts{only}; "
            "docs/layouts.md says which files they have."
        )
    nearest = [key for key in lacking if nearness[key] == max(nearness.values())]
    named = ", or ".join(f"{' and '.join(lacking[key]).replace('|', ' or ')} (layout {key})" for key in nearest)
    return CheckpointError(
        f"{weight_files.place} does not hold a whole transcoder of a known layout; it lacks {named}; see "
        "docs/layouts.md."
    )


@checked_arguments
def load_transcoder(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    memory_limit: Count | None = None,
    own_class: type[Any] | None = None,
    trust_code: bool = False,
) -> Transcoder:
    """Read a transcoder of any known layout, in inference mode.

    ``source`` is a directory, a file in it, or a name on the Hugging Face hub, ``org/name[/folder][@revision]``. Where
    each layer lies in a folder of its own, ``*`` in a name selects one of several transcoders:
    ``directory/layer_*_width_16k_l0_small``.
    ``dtype`` is the type that the transcoder computes in. Encoders and decoders that take more than ``memory_limit``
    bytes in that type, by default half of the memory that is available, stay in their files: encoders are read block
    by block, and decoders where features are active. Such a transcoder can be used as any other, but not trained,
    folded, converted or saved. If it is on the hub, these parts are fetched when they are needed first, and kept in a
    cache on disk.

    A transcoder of a user's own class needs ``own_class``, the class. With ``trust_code``, the class that
    ``config.json`` names is imported instead, so the code of its module runs; use it only for sources that you
    trust. Otherwise the source cannot make any code run.

    Raises CheckpointError if the source does not hold a transcoder of a known layout or if its files are damaged, and
    HubUnreachableError if it is neither on this machine nor on a hub that answers.
    """
    device = check_device(device)
    check_dtype(dtype)
    code = OwnCode(own_class=own_class, trust_code=trust_code)
    with memory_errors(f"The transcoder {source}", "close other programs, or use a machine with more memory"):
        transcoder = open_transcoder(source, code=code).content
        if isinstance(transcoder, StoredTranscoder):
            if transcoder.remote and transcoder.fits(device, dtype, memory_limit):  # then all files are downloaded
                transcoder = open_transcoder(source, code=code, whole=True).content
                assert isinstance(transcoder, StoredTranscoder)
            return transcoder.load(device=device, dtype=dtype, memory_limit=memory_limit)
        stored_in = transcoder.dtype
        transcoder = transcoder.to(device=device, dtype=dtype).eval()
    if dtype != stored_in:  # the largest number of float16 is 65,504; readers check before the conversion
        check_all(transcoder, Path(source))
    return transcoder
