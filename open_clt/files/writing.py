"""Writing: a single file is written whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
import yaml
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch import Tensor

from open_clt.errors import CheckpointError
from open_clt.files.disk_errors import disk_errors, final_path
from open_clt.files.opening import check_regular
from open_clt.files.places import check_file, flush, make_directory, part_path
from open_clt.files.reading import parse_json, parse_yaml
from open_clt.files.stored_tensors import SAFETENSORS_TYPES
from open_clt.short_repr import short_repr


@contextmanager
def writing(path: Path, *, needed: int | None = None) -> Generator[Path]:
    """Give a temporary path to write a file to, and rename it to ``path`` at the end; a failure leaves ``path`` alone.

    The temporary path has the same suffix. Missing directories are created, and a symbolic link is followed. Raises
    ResourceError if the disk is full or cannot be written; ``needed`` is the number of bytes of the file, if known.
    """
    check_file(path)
    path = Path(os.path.realpath(path))
    make_directory(path.parent)
    part = part_path(path)
    try:
        with disk_errors(part, needed):
            part.unlink(missing_ok=True)
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors writes files that other users cannot read
            flush(part)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def appending(path: Path) -> Generator[Callable[[str], None]]:
    """Give a function that appends a line to a log, which is created if it does not exist.

    Raises ConfigError or ResourceError if the log cannot be written. A line that does not fit on the disk is left out,
    so that a full disk does not end the program that logs.
    """
    check_file(path)
    check_regular(path)
    make_directory(path.parent)
    with disk_errors(path):
        file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def append(line: str) -> None:
        with suppress(OSError):
            file.write(f"{line}\n")

    try:
        yield append
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def continuing(path: Path, begin: int) -> Generator[Callable[[bytes], None]]:
    """Give a function that appends bytes to a file, which has ``begin`` bytes or, for 0, need not exist.

    What is appended stays if the block fails. Raises ResourceError if the disk is full or cannot be written; then the
    file is as it was before. Who needs all of it on the disk calls ``move`` at the end.
    """
    check_file(path)
    make_directory(path.parent)
    with disk_errors(path):
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)

        def append(content: bytes) -> None:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(number, rest) :]

        try:
            yield append
        except OSError:
            os.ftruncate(number, begin)
            if begin == 0:
                path.unlink()
            raise
        finally:
            os.close(number)


def move(path: Path, target: Path) -> None:
    """Give a file or a directory on the same disk its final name, and wait until the disk has it.

    Raises FileExistsError if a directory goes where something is, and ResourceError if the disk cannot be written.
    """
    with disk_errors(target):
        if path.is_dir():
            path.rename(target)
        else:
            flush(path)
            path.replace(target)
        for directory in {path.parent, target.parent}:
            flush(directory)


@contextmanager
def filling(path: Path, size: int) -> Generator[Callable[[int, bytes], None]]:
    """Give a function that writes bytes at a position of a file, which exists and gets ``size`` bytes.

    Several threads may call the function. Raises ResourceError if the disk is full or cannot be written.
    """
    with disk_errors(path, size):
        number = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
        try:
            os.ftruncate(number, size)
            yield partial(_write_at, number)
        finally:
            os.close(number)


def _write_at(number: int, begin: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(number, rest, begin)
        begin, rest = begin + written, rest[written:]


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    with writing(path, needed=len(content)) as part:
        part.write_bytes(content)
    return path


def write_parts(path: Path, parts: Iterable[bytes]) -> Path:
    """Write a file whose parts are made one after another, and return its path."""
    with writing(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part)
    return path


def write_text(path: Path, content: str) -> Path:
    """Write a text file in UTF-8 and return its path; half a character (a lone surrogate) is written as its number."""
    return write_bytes(path, content.encode(errors="backslashreplace"))


def json_text(
    content: object, subject: object, *, finite: bool = False, strict: bool = False, indent: int | None = 2
) -> str:
    """Return values as JSON that ``parse_json`` reads; raises CheckpointError, which names the subject, if it cannot.

    ``finite`` refuses NaN and infinity. ``strict`` does so too, because many other programs cannot read them, and
    writes letters as they are, not as their numbers. Without ``indent``, the text has no spaces between values.
    """
    finite = finite or strict
    separators = (",", ":") if indent is None else None
    try:
        text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=not strict, allow_nan=not finite)
        parse_json(text, finite=finite)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{subject} cannot be written as JSON ({error}); give plain values, and integers of at most 64 bits."
        ) from error
    return text


def write_json(
    path: Path, content: object, *, finite: bool = False, strict: bool = False, indent: int | None = 2
) -> Path:
    """Write a JSON file and return its path; raises CheckpointError for values that ``json_text`` refuses."""
    return write_text(path, json_text(content, final_path(path), finite=finite, strict=strict, indent=indent) + "\n")


def write_yaml(path: Path, content: object, *, comment: str) -> Path:
    """Write a YAML file of plain values that begins with a comment, and return its path.

    Raises CheckpointError for values that ``read_yaml`` refuses.
    """
    text = f"# {comment}\n{yaml.safe_dump(content, sort_keys=False)}"
    parse_yaml(text, final_path(path))
    return write_text(path, text)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a safetensors file and return its path."""
    with writing(path, needed=sum(tensor.nbytes for tensor in tensors.values())) as part:
        save_file(_apart(tensors), part)
    return path


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of the file that ``write_tensors`` writes."""
    return safetensors_bytes(_apart(tensors))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, contiguous, and none in the memory of another."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return apart


class TensorBlocks(NamedTuple):
    """A tensor that is written block by block, so that it need not fit into memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[Tensor]]
    """Makes the blocks, which are the rows of the first axis in order."""
    transposed: bool = False
    """Whether the tensor has two axes, and the blocks are those of its transpose."""

    @property
    def n_bytes(self) -> int:
        """Number of bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    __repr__ = short_repr


def in_one_block(tensor: Tensor) -> TensorBlocks:
    """A tensor that is in memory, to be written beside others that are not."""
    return TensorBlocks(tuple(tensor.shape), tensor.dtype, lambda: (tensor,))


def write_blocks(path: Path, tensors: Mapping[str, TensorBlocks]) -> Path:
    """Write a safetensors file of which only one block at a time is in memory, and return its path."""
    text, ordered = _header(tensors)
    end = sum(tensor.n_bytes for tensor in ordered)
    with writing(path, needed=len(text) + end) as part, part.open("wb") as file:
        file.write(text)
        for tensor in ordered:
            end = file.tell() + tensor.n_bytes
            written = _write_columns(file, tensor) if tensor.transposed else _write_in_order(file, tensor)
            assert written == tensor.n_bytes, "the blocks do not make up the tensor"
            file.seek(end)
    return path


def stream_blocks(tensors: Mapping[str, TensorBlocks]) -> tuple[int, Iterator[bytes]]:
    """The number of bytes of a safetensors file, and its bytes, of which one block at a time is in memory."""
    text, ordered = _header(tensors)
    assert not any(tensor.transposed for tensor in ordered), "the rows of a file follow one another"
    size = len(text) + sum(tensor.n_bytes for tensor in ordered)
    return size, chain((text,), (bytes(_bytes(block)) for tensor in ordered for block in tensor.blocks()))


def _header(tensors: Mapping[str, TensorBlocks]) -> tuple[bytes, list[TensorBlocks]]:
    """The beginning of a safetensors file, and the tensors in the order in which they follow."""
    # Wide numbers come first, so that every number lies at a multiple of its size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    names = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.n_bytes
        header[name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, list(ordered.values())


def _write_in_order(file: BinaryIO, tensor: TensorBlocks) -> int:
    """Write blocks one after another, and return the number of bytes."""
    return sum(file.write(_bytes(block.to("cpu", tensor.dtype))) for block in tensor.blocks())


def _write_columns(file: BinaryIO, tensor: TensorBlocks) -> int:
    """Write each block as columns, so each of its numbers goes to its row, and return the number of bytes."""
    begin, row_bytes, filled, written = file.tell(), tensor.shape[1] * tensor.dtype.itemsize, 0, 0
    for block in tensor.blocks():
        columns = block.detach().to("cpu", tensor.dtype).T.clone(memory_format=torch.contiguous_format)
        for row, numbers in enumerate(columns):
            file.seek(begin + row * row_bytes + filled)
            written += file.write(_bytes(numbers))
        filled += len(block) * tensor.dtype.itemsize
    return written


def _bytes(numbers: Tensor) -> memoryview:
    return memoryview(cast(Any, numbers.detach().contiguous().flatten().view(torch.uint8).numpy()))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a CSV file with a header row and return its path; a key that a row lacks is an empty cell."""
    with writing(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path
