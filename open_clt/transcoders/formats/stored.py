"""Stored transcoders: what the files of a transcoder say, before anything large is read.

Each reader of a layout returns a ``StoredTranscoder``. ``load`` makes a transcoder of it: in memory if it is small
enough, and otherwise with encoders and decoders that stay in their files.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from open_clt.config import CrossLayerConfig, JumpReLUConfig, TopKConfig
from open_clt.errors import CheckpointError
from open_clt.files import Table
from open_clt.finite import check_finite, is_finite
from open_clt.memory import available_on
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.checks import OFFSETS, THRESHOLDS, check_all, jumprelu_tensors
from open_clt.transcoders.formats.weight_files import OpenedFiles
from open_clt.transcoders.stored_weights import StoredWeights, tensors_in_memory

_SHARE_OF_MEMORY = 0.5
"""Share of the available memory that the weights of a transcoder may take, unless the user says otherwise."""
_LARGEST_CHECKED = 2**24
"""Largest number of entries of a tensor that is checked although nothing uses it, if tables stay in their files."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTranscoder:
    """A transcoder as its files describe it; its large tables are not read yet."""

    place: Path
    """The directory or file of the transcoder, for messages."""
    config: CrossLayerConfig
    """Shape, hooks and nonlinearity; JumpReLU becomes fixed JumpReLU if a threshold turns out to be negative, and TopK
    with offsets becomes TopK without them if all of them turn out to be zero."""
    weights: StoredWeights
    """Encoders and decoders."""
    small: Callable[[], Mapping[str, Tensor]]
    """Reads all other tensors, by their names in ``CrossLayerTranscoder.state_dict``; those left out keep defaults.

    A layout with thresholds of JumpReLU gives them as they are, under the name ``THRESHOLDS``."""

    unset: Container[str] = ()
    """Names of tensors that may hold any bytes, because the package that wrote them does not set their numbers."""
    opened: OpenedFiles = field(default_factory=OpenedFiles)
    """All files that the reader opened."""

    states_hooks: bool = True
    """Whether the files, or the description of their layout, state the hooks; otherwise those of the config are an
    assumption."""

    @torch.no_grad()
    def load(
        self, *, device: torch.device, dtype: torch.dtype = torch.float32, memory_limit: int | None = None
    ) -> CrossLayerTranscoder:
        """Make a transcoder that computes in ``dtype``, in inference mode.

        Encoders and decoders are read into memory if they take at most ``memory_limit`` bytes there, which by default
        is half of the memory that is available. Otherwise they stay in their files. Raises CheckpointError if a number
        that is read is not finite, or if a threshold or a scale makes no sense.
        Numbers that nothing uses are checked, too, unless they are on the hub, or belong to a tensor of more than 16
        million numbers while encoders and decoders stay in their files.
        """
        self._check_shapes()
        in_memory = self.fits(device, dtype, memory_limit)
        self._check_finite(in_memory)
        config, small = self._settled()
        with torch.device("meta"):  # so that no weights are drawn
            transcoder = CrossLayerTranscoder(config, stored=None if in_memory else self.weights)
        _give_memory(transcoder)
        self._fill(transcoder, small)
        if in_memory:
            self._read_tables(transcoder)
        transcoder = transcoder.to(device=device, dtype=dtype)
        check_all(transcoder, self.place)
        return transcoder.eval().requires_grad_(in_memory)

    @property
    def remote(self) -> bool:
        """Whether encoders and decoders are on the hub, and not on this machine."""
        return any(table.is_remote for table in self.weights.tables)

    def fits(self, device: torch.device, dtype: torch.dtype, memory_limit: int | None) -> bool:
        """Whether encoders and decoders are read into memory."""
        if memory_limit is None:
            available = available_on(device)
            return available is None or self.bytes_in_memory(dtype) <= available * _SHARE_OF_MEMORY
        return self.bytes_in_memory(dtype) <= memory_limit

    def bytes_in_memory(self, dtype: torch.dtype) -> int:
        """Number of bytes that encoders and decoders take in memory."""
        return self.weights.n_parameters * dtype.itemsize

    def of_files(self, opened: OpenedFiles) -> StoredTranscoder:
        """The same transcoder; ``load`` searches all tensors of these files for NaN and infinity."""
        return replace(self, opened=opened)

    def _check_finite(self, in_memory: bool) -> None:
        """Raise CheckpointError, which names a tensor, if the files hold NaN or infinity outside the tables.

        A damaged file is not trusted, even where the damage does not change what the transcoder computes. Tables are
        checked when they are read; here are all other tensors, such as second copies, and tables of which a part is
        not used. The large ones among them are skipped if the tables stay in their files.
        """
        used = _used(self.weights.tables)
        for tensors in self.opened.tensors.values():
            for name, tensor in tensors.items():
                size = tensor.shape.numel()
                skipped = tensor.is_remote or name in self.unset or (not in_memory and size > _LARGEST_CHECKED)
                if not skipped and used.get((name, str(tensor.place))) != size:
                    tensor.check_finite(self.config.n_layers, self.config.layers)

    def _check_shapes(self) -> None:
        """Raise CheckpointError if encoders or decoders do not have the shapes that the config asks for."""
        config = self.config
        width, d_model = config.n_features, config.d_model
        assert len(self.weights.encoders) == len(self.weights.decoders) == config.n_layers
        for encoder in self.weights.encoders:
            if encoder.shape != (width, d_model):
                raise self._wrong_shape(encoder.name, tuple(encoder.shape), (width, d_model))
        for source, parts in enumerate(self.weights.decoders):
            reach = sum(part.shape[1] for part in parts)
            for part in parts:
                expected = (width, config.reach_of(source) - reach + part.shape[1], d_model)
                if part.shape != expected:
                    raise self._wrong_shape(part.name, tuple(part.shape), expected)

    def _wrong_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> CheckpointError:
        return CheckpointError(
            f"{self.place} holds the tensor {name!r} with shape {found}; it must have shape {expected}."
        )

    def _settled(self) -> tuple[CrossLayerConfig, Mapping[str, Tensor]]:
        """The config and the small tensors, after the numbers of the nonlinearity have decided on its kind."""
        small = dict(self.small())
        nonlinearity = self.config.nonlinearity
        if isinstance(nonlinearity, TopKConfig) and nonlinearity.offsets and not bool(small[OFFSETS].any()):
            del small[OFFSETS]
            return replace(self.config, nonlinearity=replace(nonlinearity, offsets=False)), small
        if not (isinstance(nonlinearity, JumpReLUConfig) and THRESHOLDS in small):
            return self.config, small
        jumprelu = jumprelu_tensors(small.pop(THRESHOLDS), self.place)
        return replace(self.config, nonlinearity=jumprelu.config), {**small, **jumprelu.tensors}

    def _fill(self, transcoder: CrossLayerTranscoder, given: Mapping[str, Tensor]) -> None:
        """Fill all tensors of a transcoder but the tables: with those of the files, and others with their defaults."""
        defaults = tensors_in_memory(CrossLayerTranscoder(transcoder.config, stored=self.weights))
        state = tensors_in_memory(transcoder)
        for name, default in defaults.items():
            tensor = given.get(name, default)
            if tensor.shape != default.shape:
                raise self._wrong_shape(name, tuple(tensor.shape), tuple(default.shape))
            state[name].copy_(tensor)
        unknown = given.keys() - defaults.keys()
        assert not unknown, f"a reader of a layout gives tensors that the transcoder does not have: {unknown}"

    def _read_tables(self, transcoder: CrossLayerTranscoder) -> None:
        """Read encoders and decoders into a transcoder; raises CheckpointError if a number is not finite."""
        for layer, encoder in enumerate(self.weights.encoders):
            transcoder.W_enc[layer].copy_(_read(encoder, layer))
        for source, (table, parts) in enumerate(zip(transcoder.W_dec, self.weights.decoders, strict=True)):
            begin = 0
            for part in parts:
                table[:, begin : begin + part.shape[1]].copy_(_read(part, source))
                begin += part.shape[1]

    __repr__ = short_repr


def _used(tables: Iterable[Table]) -> dict[tuple[str, str], int]:
    """How many numbers of stored tensors are in tables, by the name and the file of the stored tensor."""
    used: dict[tuple[str, str], int] = {}
    parts = {part.extent: part for table in tables for part in table.parts}  # several tables may share a part
    for part in parts.values():
        key = (part.name, str(part.place))
        used[key] = used.get(key, 0) + part.shape.numel()
    return used


def _read(stored: Table, layer: int) -> Tensor:
    tensor = stored.read()
    if not is_finite(tensor):  # the number may be in one of several files, or be infinite only once it is scaled
        for part in (*stored.parts, stored):
            name = f"The tensor {part.name!r} of layer {layer} in {part.place}"
            check_finite(part.read(), name, error=CheckpointError)
    return tensor


def _give_memory(module: nn.Module) -> None:
    """Replace tensors without memory by tensors on the CPU, whose values are not set.

    ``nn.Module.to_empty`` does the same, but imports torch's compiler, which takes half a second.
    """
    for part in module.modules():
        for name, tensor in list(part.named_parameters(recurse=False)):
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            setattr(part, name, nn.Parameter(empty, requires_grad=tensor.requires_grad))
        for name, tensor in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(tensor.shape, dtype=tensor.dtype))
