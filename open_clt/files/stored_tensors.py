"""Stored tensors: the tensors of a safetensors file, which stay in the file until some of their rows are needed.

Opening a file reads its header only. A stored tensor is a view of the file that is mapped into memory, so that slicing
and transposing it reads nothing. ``rows`` and ``read`` copy what they return. The operating system may drop the pages
of the file that were read whenever memory is short, so a file may be much larger than the memory. A remote file is the
same, except that the bytes which are read are fetched first.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, final, runtime_checkable

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from open_clt.errors import CheckpointError
from open_clt.files.limits import LARGEST_HEADER, too_large
from open_clt.files.opening import opened
from open_clt.files.reading import WEIGHT_TYPES, missing, parse_json, unreadable
from open_clt.finite import check_finite, find_not_finite, layer_axis
from open_clt.short_repr import short_repr

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The types of safetensors, by the name that a header states; ``check_weight_types`` says which can be weights."""
_LENGTH = 8
"""Number of bytes that state the length of a header."""


@runtime_checkable
class Remote(Protocol):
    """A remote file, parts of which are fetched into a local file of the same size."""

    path: Path
    size: int

    def read(self, begin: int, end: int) -> bytes:
        """The bytes between two positions."""
        ...

    def ensure(self, spans: Iterable[tuple[int, int]]) -> None:
        """Fetch the bytes between these pairs of positions into the local file."""
        ...


class _Source(NamedTuple):
    """The remote file behind a mapping, and the address at which the mapping begins."""

    remote: Remote
    address: int

    def ensure(self, view: Tensor, index: Tensor) -> None:
        """Fetch these rows of a view of the mapping."""
        if not view.numel():
            return
        size = view.element_size()
        extent = size * (1 + sum((n - 1) * step for n, step in zip(view.shape[1:], view.stride()[1:], strict=True)))
        starts = view.data_ptr() - self.address + index * (view.stride(0) * size)
        self.remote.ensure([(start, start + extent) for start in starts.tolist()])


Key: TypeAlias = int | slice | tuple[int | slice, ...]
"""An index that selects a view of a tensor, and so reads nothing."""


@final
class StoredTensor:
    """A tensor that is read from its file where it is needed: views of it read nothing, ``rows`` and ``read`` do."""

    def __init__(self, view: Tensor, name: str, place: object, source: _Source | None = None) -> None:
        self._view, self.name, self.place, self._source = view, name, place, source

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self._view.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored numbers."""
        return self._view.dtype

    @property
    def is_remote(self) -> bool:
        """Whether the tensor is in a remote file, whose bytes are fetched when they are read."""
        return self._source is not None

    @property
    def T(self) -> StoredTensor:
        """The tensor with its first two axes exchanged."""
        return self._with(self._view.transpose(0, 1))

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that are read for this one, which is itself."""
        return (self,)

    @property
    def extent(self) -> tuple[int, ...]:
        """The part of the file that the tensor is: where it begins in memory, its shape and its strides."""
        return (self._view.data_ptr(), *self._view.shape, *self._view.stride())

    def __len__(self) -> int:
        return self._view.shape[0]

    def __getitem__(self, key: Key) -> StoredTensor:
        """The part of the tensor that an index of numbers and slices selects."""
        return self._with(self._view[key])

    def unsqueeze(self, axis: int) -> StoredTensor:
        """The tensor with a new axis of length one."""
        return self._with(self._view.unsqueeze(axis))

    def _with(self, view: Tensor) -> StoredTensor:
        return StoredTensor(view, self.name, self.place, self._source)

    def rows(self, index: Int[Tensor, "chosen"]) -> Tensor:
        """Read some rows of the first axis; each row is read once, and in the order of the file.

        Raises CheckpointError, which names the file, the tensor and the row, if a number is not finite.
        """
        index = index.cpu()
        unique, places = index.unique(return_inverse=True)
        if self._source is not None:
            self._source.ensure(self._view, unique)
        rows = self._view.index_select(0, unique)
        if rows.dtype.is_floating_point and (wrong := find_not_finite(rows)) is not None:
            wrong = wrong._replace(place=(int(unique[wrong.place[0]]), *wrong.place[1:]))
            raise CheckpointError(
                f"The tensor {self.name!r} of {self.place} must be finite{wrong.type_words}, and not "
                f"{wrong.describe(('row',))}."
            )
        return rows if torch.equal(unique, index) else rows[places]

    def copy_rows(self, index: Int[Tensor, "chosen"] | slice, out: Tensor) -> None:
        """Copy some rows of the first axis of a local file into ``out``; whether they are finite is not checked."""
        if isinstance(index, slice):
            out.copy_(self._view[index])
        else:
            torch.index_select(self._view, 0, index, out=out)

    def check_finite(self, n_layers: int, layers: Sequence[int] | None = None) -> None:
        """Search a tensor of a local file for NaN and infinity; ``n_layers`` tells whether its first axis is the layer.

        ``layers`` are the numbers of these layers in the language model, if they are not all of its layers.
        Raises CheckpointError, which names the file, the tensor and the place, if a number is not finite.
        """
        if self.dtype.is_floating_point:
            view = self._view if self.dtype in WEIGHT_TYPES else self._view.float()
            axes = layer_axis(self.name, view, n_layers)
            check_finite(
                view, f"The tensor {self.name!r} of {self.place}", axes=axes, layers=layers, error=CheckpointError
            )

    def read(self) -> Tensor:
        """Read the whole tensor; whether its numbers are finite is not checked."""
        if self._source is not None:
            self._source.ensure(self._view[None], torch.zeros(1, dtype=torch.long))
        return self._view.clone(memory_format=torch.contiguous_format)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r} of {self.place}, shape={tuple(self.shape)}, dtype={self.dtype})"


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Open a safetensors file, and return its tensors by name, none of which is read yet.

    Raises CheckpointError if the file is missing, damaged, or of another kind.
    """
    try:
        with opened(path, unpack=False) as file:
            size = path.stat().st_size
            length = _header_length(file.read(_LENGTH), size, path)
            header = file.read(length)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(path, "safetensors", error) from error
    return tensors_in(memory, _LENGTH + length, _read_header(header, size - _LENGTH - length, path), path)


def open_remote_tensors(remote: Remote, place: Path) -> dict[str, StoredTensor]:
    """Open a remote safetensors file, of which only the header is fetched; ``place`` is its address in messages."""
    try:
        length = _header_length(remote.read(0, min(_LENGTH, remote.size)), remote.size, place)
        header = remote.read(_LENGTH, _LENGTH + length)
        with opened(remote.path, unpack=False) as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(place, "safetensors", error) from error
    start = _LENGTH + length
    return tensors_in(memory, start, _read_header(header, remote.size - start, place), place, remote)


class Entry(NamedTuple):
    """What the header of a file says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Position of the tensor's first byte after the header."""

    __repr__ = short_repr


def tensors_in(
    memory: mmap.mmap, start: int, entries: Mapping[str, Entry], place: Path, remote: Remote | None = None
) -> dict[str, StoredTensor]:
    """The tensors of a file that is mapped into memory, by name; ``start`` is where its header ends.

    ``remote`` is the file whose parts the mapping keeps, if it is a remote one.
    """
    source = None if remote is None else _Source(remote, _flat(memory, torch.uint8, 1, 0).data_ptr())
    return {name: StoredTensor(_mapped(memory, start, entry), name, place, source) for name, entry in entries.items()}


def _header_length(first_bytes: bytes, size: int, place: object) -> int:
    """The length of a header, which the first eight bytes of a file of ``size`` bytes state."""
    length = int.from_bytes(first_bytes, "little")
    if length > LARGEST_HEADER:
        raise too_large(f"The header of {place}", LARGEST_HEADER)
    if len(first_bytes) < _LENGTH or length + _LENGTH > size:
        raise SafetensorError("its header is longer than the file")
    return length


def _read_header(header: bytes, size: int, place: Path) -> dict[str, Entry]:
    """The tensors that a header describes, by name; ``size`` is the number of bytes after the header.

    Raises CheckpointError if the header does not describe tensors that lie in these bytes.
    """
    try:
        content = parse_json(header)
        if not isinstance(content, dict):
            raise ValueError("its header is not an object")
        described = {name: entry for name, entry in cast(dict[str, Any], content).items() if name != "__metadata__"}
        return {name: _entry(name, entry, size) for name, entry in described.items()}
    except (ValueError, UnicodeDecodeError) as error:
        raise unreadable(place, "safetensors", error) from error


def _entry(name: str, entry: object, size: int) -> Entry:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            sizes = cast(list[object], shape)
        case _:
            raise ValueError(f"its header does not describe the tensor {name!r}")
    if dtype not in SAFETENSORS_TYPES:
        raise ValueError(f"the tensor {name!r} has the type {dtype}, which is not read")
    if not all(isinstance(axis, int) and 0 <= axis < 2**48 for axis in sizes):
        raise ValueError(f"the tensor {name!r} has a shape that is not made of sizes")
    described = Entry(SAFETENSORS_TYPES[dtype], tuple(cast(list[int], sizes)), begin)
    if not 0 <= begin <= end <= size or end - begin != math.prod(described.shape) * described.dtype.itemsize:
        raise ValueError(f"the tensor {name!r} does not lie in the file")
    return described


def _mapped(memory: mmap.mmap, start: int, entry: Entry) -> Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return _flat(memory, entry.dtype, count, start + entry.begin).view(entry.shape)


def _flat(memory: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    with warnings.catch_warnings():
        # The memory cannot be written, and nothing in this module writes to it.
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)


def check_weight_types(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError unless all tensors hold real numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_TYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_TYPES)
            raise CheckpointError(
                f"The tensor {name!r} of {tensor.place} has the type {tensor.dtype}; it must be {names}."
            )
