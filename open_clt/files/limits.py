"""Limits: how much a reader takes from one file, so that a small file of a stranger cannot fill the memory.

Compressed data can unpack to a thousand times its size, and a header can announce tensors that its file does not hold.
Each reader therefore compares sizes with these limits before it takes memory. The limits are far above the sizes of
real files. ``SECURITY.md`` lists them.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from open_clt.errors import CheckpointError

LARGEST_JSON = 2**30
"""Largest number of bytes of a JSON, GraphML or CSV file, after it is unpacked."""
MOST_VALUES = 50_000_000
"""Largest number of values of a JSON, GraphML or CSV file; a value takes more memory than its bytes in the file."""
LARGEST_TEXT = 2**30
"""Largest number of bytes of one text, or of one row of a file of texts, after it is unpacked."""
LARGEST_SETTINGS = 2**20
"""Largest number of bytes of a YAML file of settings."""
MOST_SETTINGS = 10_000
"""Largest number of keys and values of a YAML file, when each alias counts as often as it is used."""
LARGEST_FEATURE = 2**26
"""Largest number of bytes of the record of one feature, after it is unpacked."""
LARGEST_HEADER = 2**24
"""Largest number of bytes of the header of a safetensors file; it bounds the number of tensors."""
LARGEST_ROW_GROUP = 2**33
"""Largest number of bytes of a row group of a Parquet file, after it is unpacked."""
MOST_FILES = 20_000
"""Largest number of files and folders in the directory of a data set; a library looks at each of them many times."""

_CHUNK = 2**20
"""Number of bytes that are read at once."""


class _Packing(NamedTuple):
    """A way to compress data: a function that unpacks at most ``limit + 1`` bytes, and its errors."""

    unpack: Callable[[bytes, int], bytes]
    errors: tuple[type[Exception], ...]


def too_large(name: object, limit: int) -> CheckpointError:
    """The error for a file, or a part of one, that is larger than a limit."""
    return CheckpointError(
        f"{name} holds more than {limit:,} bytes, which is the limit for a file of this kind; check the path, or split "
        "the file."
    )


def read_at_most(read: Callable[[int], bytes], limit: int) -> bytes:
    """Read a file to its end with its method ``read``, or ``limit + 1`` bytes of it; memory grows as they arrive."""
    content = BytesIO()
    while chunk := read(min(_CHUNK, limit + 1 - content.tell())):
        content.write(chunk)
    return content.getvalue()


def check_values(content: str | bytes, marks: str) -> None:
    """Raise ValueError if a file holds too many values, each of which begins or ends with one of the marks."""
    counts = (content.count(m) if isinstance(content, str) else content.count(m.encode()) for m in marks)
    if sum(counts) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")


def check_row_groups(metadata: Any, path: Path) -> None:
    """Raise CheckpointError if a row group of a Parquet file is too large; ``metadata`` is that of pyarrow.

    The columns of a row group are not asked for their sizes: on damaged metadata, pyarrow ends the process there.
    """
    for group in range(metadata.num_row_groups):
        if metadata.row_group(group).total_byte_size > LARGEST_ROW_GROUP:
            raise too_large(f"Row group {group} of {path}", LARGEST_ROW_GROUP)


def unpacked(content: bytes, packing: str, name: object, limit: int) -> bytes:
    """Decompress ``content`` (``packing`` is gzip, bz2 or zlib), which ``name`` names in errors.

    Raises CheckpointError if it is damaged, or if it unpacks to more than ``limit`` bytes; then it is not unpacked
    further.
    """
    unpack, errors = _PACKINGS[packing]
    try:
        result = unpack(content, limit)
    except errors as error:
        raise CheckpointError(f"{name} cannot be unpacked with {packing} ({error}); it is damaged.") from error
    if len(result) > limit:
        raise too_large(name, limit)
    return result


def _unpack_gzip(content: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=BytesIO(content)) as file:
        return read_at_most(file.read, limit)


def _unpack_bz2(content: bytes, limit: int) -> bytes:
    with bz2.BZ2File(BytesIO(content)) as file:
        return read_at_most(file.read, limit)


def _unpack_zlib(content: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    result = stream.decompress(content, limit + 1)
    if not stream.eof and len(result) <= limit:
        raise zlib.error("it ends too early")
    return result


_PACKINGS = {
    "gzip": _Packing(_unpack_gzip, (OSError, EOFError, zlib.error)),
    "bz2": _Packing(_unpack_bz2, (OSError, EOFError)),
    "zlib": _Packing(_unpack_zlib, (zlib.error,)),
}
