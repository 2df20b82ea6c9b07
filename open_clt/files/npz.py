"""NPZ files: the arrays of a file of ``numpy.savez``, which stay in the file until some of their rows are needed.

An npz file is a zip file with a member for each array. Members that are not compressed can be mapped into memory, as
the tensors of safetensors files are; others are refused. So are arrays of objects, which are pickles.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import tokenize
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import torch

from open_clt.files.limits import LARGEST_HEADER
from open_clt.files.opening import opened
from open_clt.files.reading import missing, unreadable
from open_clt.files.stored_tensors import Entry, Remote, StoredTensor, tensors_in
from open_clt.short_repr import short_repr

_TYPES = {
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
    "<i4": torch.int32,
    "<i8": torch.int64,
    "|b1": torch.bool,
}
"""The types of arrays by their names in numpy; ``check_weight_types`` says which can be weights."""
_MEMBER, _LONGEST_HEADER = 30, 2**14
"""Number of bytes of the fixed part of a member's header, and the largest number of bytes of an array's header."""
_ERRORS = (OSError, ValueError, EOFError, OverflowError, NotImplementedError, struct.error, zipfile.BadZipFile)
_Read = Callable[[int, int], bytes]
"""Returns the bytes of a file between two positions."""


def open_npz(path: Path) -> dict[str, StoredTensor]:
    """Open an npz file, and return its arrays by name as tensors, none of which is read yet.

    Raises CheckpointError if the file is missing, damaged, compressed, or of another kind.
    """
    try:
        with opened(path, unpack=False) as file:
            descriptor = file.fileno()
            arrays = _arrays(lambda begin, end: os.pread(descriptor, end - begin, begin), os.fstat(descriptor).st_size)
            memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except _ERRORS as error:
        raise unreadable(path, "npz", error) from error
    return _tensors(memory, arrays, path)


def open_remote_npz(remote: Remote, place: Path) -> dict[str, StoredTensor]:
    """Open a remote npz file, of which only headers are fetched; ``place`` is its address in messages."""
    try:
        arrays = _arrays(remote.read, remote.size)
        with opened(remote.path, unpack=False) as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except _ERRORS as error:
        raise unreadable(place, "npz", error) from error
    return _tensors(memory, arrays, place, remote)


class _Array(NamedTuple):
    """Where an array lies in its file; ``by_columns`` says that the array is transposed there."""

    entry: Entry
    by_columns: bool

    __repr__ = short_repr


class _Window(io.RawIOBase):
    """A file that zipfile can read, of which only the parts that it asks for are read."""

    def __init__(self, read: _Read, size: int) -> None:
        self._read_between, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("it ends too early")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._size - self._position)
        size = rest if size is None or size < 0 else min(size, rest)
        if size > LARGEST_HEADER:
            raise ValueError(f"its list of members is larger than {LARGEST_HEADER:,} bytes")
        content = self._read_between(self._position, self._position + size) if size else b""
        self._position += size
        return content


def _arrays(read: _Read, size: int) -> dict[str, _Array]:
    """The arrays of an npz file of ``size`` bytes; raises one of ``_ERRORS`` if it is damaged."""
    with zipfile.ZipFile(cast(BinaryIO, _Window(read, size))) as archive:
        members = archive.infolist()
    return {member.filename.removesuffix(".npy"): _array(member, read, size) for member in members}


def _array(member: zipfile.ZipInfo, read: _Read, size: int) -> _Array:
    name = member.filename
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"its array {name!r} is compressed or encrypted; write it again with numpy.savez")
    header = read(member.header_offset, min(size, member.header_offset + _MEMBER))
    begin = member.header_offset + _MEMBER + sum(struct.unpack("<HH", header[-4:]))
    end = begin + member.file_size
    if not 0 <= begin <= end <= size:
        raise ValueError(f"its array {name!r} does not lie in the file")
    content = io.BytesIO(read(begin, min(end, begin + _LONGEST_HEADER)))
    described = _described(content, name)
    begin += content.tell()
    if math.prod(described.entry.shape) * described.entry.dtype.itemsize != end - begin:
        raise ValueError(f"its array {name!r} has another shape than its header says")
    return described._replace(entry=described.entry._replace(begin=begin))


def _described(content: io.BytesIO, name: str) -> _Array:
    """What the header of an array says, without its position; ``content`` is left at the end of the header."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on headers of Python 2, which are read
            shape, by_columns, dtype = readers[np.lib.format.read_magic(content)](content)
    except (KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"its array {name!r} has a damaged header") from error
    if dtype.str not in _TYPES:
        raise ValueError(f"its array {name!r} has the type {dtype.str}, which is not read")
    if len(shape) > 2 or not all(0 <= axis < 2**48 for axis in shape):
        raise ValueError(f"its array {name!r} must have at most two axes")
    by_columns = by_columns and len(shape) == 2
    return _Array(Entry(_TYPES[dtype.str], tuple(shape[::-1] if by_columns else shape), 0), by_columns)


def _tensors(
    memory: mmap.mmap, arrays: dict[str, _Array], place: Path, remote: Remote | None = None
) -> dict[str, StoredTensor]:
    tensors = tensors_in(memory, 0, {name: array.entry for name, array in arrays.items()}, place, remote)
    return {name: tensor.T if arrays[name].by_columns else tensor for name, tensor in tensors.items()}
