"""Reading: every reader reports a missing or damaged file in the same words."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from open_clt.errors import CheckpointError, ResourceError
from open_clt.files.limits import (
    LARGEST_HEADER,
    LARGEST_JSON,
    LARGEST_SETTINGS,
    MOST_SETTINGS,
    check_values,
    read_at_most,
    too_large,
    unpacked,
)
from open_clt.files.opening import opened
from open_clt.files.places import old_path
from open_clt.finite import check_finite, layer_axis
from open_clt.memory import check_memory, is_failed_allocation, memory_errors

_PACKINGS = {".gz": "gzip", ".bz2": "bz2"}
"""How a file is compressed, by the suffix of its name."""
WRONG_VALUES = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What code raises that takes values of a file for what they should be: missing, of a wrong type, or too large."""
WEIGHT_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MEMORY_WAYS = "close other programs, or use a machine with more memory"
_LARGEST_INTEGER = 2**63 - 1
"""Largest integer that a tensor holds; no file of OpenCLT holds a larger one."""


@final
@dataclass(frozen=True)
class FileFormat:
    """A JSON format with a header that states the format's name and version, and the versions that are read."""

    name: str
    newest: int
    oldest: int = 1

    def header(self, version: int | None = None) -> dict[str, Any]:
        """The first keys of a file: the name of the format, and a version, by default the newest."""
        return {"format": self.name, "format_version": self.newest if version is None else version}

    def read(self, path: Path, *, finite: bool = False) -> dict[str, Any]:
        """Read a file of this format; with ``finite``, it may not hold NaN or Infinity.

        Raises CheckpointError if the file is missing, damaged, of another format, or of a version that is not read.
        """
        return self.check(read_json(path, finite=finite), path)

    def check(self, content: object, path: Path) -> dict[str, Any]:
        """Return the content of a file of this format; raises CheckpointError, which names the path, if it is not."""
        if not isinstance(content, dict) or cast(dict[str, Any], content).get("format") != self.name:
            raise CheckpointError(f"{path} does not have the format {self.name!r}; check the path.")
        content = cast(dict[str, Any], content)
        version = content.get("format_version")
        if not isinstance(version, int) or not self.oldest <= version <= self.newest:
            versions = f"{self.newest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"
            advice = "update OpenCLT" if isinstance(version, int) and version > self.newest else "save it again"
            raise CheckpointError(
                f"{path} has format version {version!r}, but this OpenCLT reads version {versions}; {advice}."
            )
        return content


def format_of(path: Path) -> str | None:
    """The name of the format that a JSON file states; None if it states none or cannot be read."""
    try:
        content = read_json(path)
    except CheckpointError:
        return None
    name = cast(dict[str, Any], content).get("format") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def missing(path: Path) -> CheckpointError:
    """The error for a file that does not exist, or that an interrupted save left under its ``.old-`` name."""
    former = old_path(path)
    if former.exists():
        return CheckpointError(
            f"{path} is missing because saving it was interrupted; save it again, or use the former file {former}."
        )
    return CheckpointError(f"{path} is missing; check the path or save it again.")


def unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read as a file of its ``kind``: JSON, safetensors, ...

    If the system refuses to read the file, nothing is known of its content. Raises ResourceError if memory is too small
    to read it.
    """
    if is_failed_allocation(error):
        raise ResourceError(f"Reading {path} needs more memory than there is; {_MEMORY_WAYS}.") from error
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return CheckpointError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.")
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is not a readable {kind} file ({reason}); it is damaged or truncated.")


def read_bytes(path: Path, kind: str = "binary", *, limit: int = LARGEST_JSON) -> bytes:
    """Read a regular file; raises CheckpointError if it is missing, cannot be read, or holds more than ``limit`` bytes.

    The content is as it is stored; ``read_unpacked`` also decompresses it.
    """
    try:
        with opened(path, unpack=False) as file:
            content = read_at_most(file.read, limit)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except (OSError, ValueError) as error:
        raise unreadable(path, kind, error) from error
    if len(content) > limit:
        raise too_large(path, limit)
    return content


def read_unpacked(path: Path, kind: str = "binary", *, limit: int = LARGEST_JSON) -> bytes:
    """Read a file, and decompress it if its suffix is ``.gz`` or ``.bz2``; ``limit`` holds before and after."""
    content = read_bytes(path, kind, limit=limit)
    packing = _PACKINGS.get(path.suffix.lower())
    return content if packing is None else unpacked(content, packing, path, limit)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal; raises CheckpointError if it is missing or cannot be read."""
    try:
        with opened(path, unpack=False) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except OSError as error:
        raise unreadable(path, "binary", error) from error


def read_text(path: Path, kind: str = "text", *, limit: int = LARGEST_JSON) -> str:
    """Read a text file in UTF-8; raises CheckpointError in the cases of ``read_bytes``, and if it is not UTF-8."""
    try:
        return read_bytes(path, kind, limit=limit).decode()
    except UnicodeDecodeError as error:
        raise unreadable(path, kind, error) from error


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON.

    Raises ValueError for text that is not JSON, is nested too deeply, holds too many values, or holds an integer of
    more than 64 bits; with ``finite`` also for the numbers NaN and Infinity, which Python writes although JSON does not
    have them.
    """
    check_values(text, "[{,")
    try:
        return json.loads(text, parse_int=_parse_integer, parse_constant=_refuse_constant if finite else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, *, finite: bool = False) -> Any:
    """Read a JSON file, or a compressed one (``.gz``, ``.bz2``); raises CheckpointError where ``parse_json`` fails."""
    content = read_unpacked(path, "JSON")
    try:
        return parse_json(content, finite=finite)
    except ValueError as error:
        raise unreadable(path, "JSON", error) from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values; raises CheckpointError if that fails or if aliases make it too large."""
    return parse_yaml(read_text(path, "YAML", limit=LARGEST_SETTINGS), path)


def parse_yaml(text: str, path: Path) -> Any:
    """Parse the YAML text of a file of plain values; raises CheckpointError in the cases of ``read_yaml``."""
    if len(text.encode(errors="surrogatepass")) > LARGEST_SETTINGS:
        raise too_large(path, LARGEST_SETTINGS)
    try:
        loader = yaml.SafeLoader(text)
        document = loader.get_single_node()
        if _size(document, {}) > MOST_SETTINGS:
            raise CheckpointError(
                f"{path} holds more than {MOST_SETTINGS:,} settings, because its aliases repeat others; write them out."
            )
        return None if document is None else loader.construct_document(document)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unreadable(path, "YAML", error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; raises CheckpointError if it is missing, truncated or of another kind.

    Raises ResourceError if memory is too small.
    """
    try:
        _check_header(path)
        check_memory(f"Reading {path}", path.stat().st_size, _MEMORY_WAYS)
        with memory_errors(f"Reading {path}", _MEMORY_WAYS):
            return load_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError if another process has just deleted it
        raise unreadable(path, "safetensors", error) from error


def parse_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """Parse the bytes of a safetensors file, which ``name`` names in errors; raises CheckpointError if they are not."""
    try:
        if int.from_bytes(content[:8], "little") > LARGEST_HEADER:
            raise too_large(f"The header of {name}", LARGEST_HEADER)
        check_memory(f"Reading {name}", len(content), _MEMORY_WAYS)
        with memory_errors(f"Reading {name}", _MEMORY_WAYS):
            return load(content)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name} is not a readable safetensors file; it is damaged or truncated.") from error


def check_weights(
    tensors: Mapping[str, Tensor], place: Path, n_layers: int, layers: Sequence[int] | None = None
) -> None:
    """Raise CheckpointError unless all tensors are real numbers that are finite in float32; ``place`` has them.

    The error names the tensor and, if it holds all ``n_layers`` layers, the layer; ``layers`` are the numbers of these
    layers in the language model, if they are not all of its layers.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_TYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_TYPES)
            raise CheckpointError(f"The tensor {name!r} of {place} has the type {tensor.dtype}; it must be {names}.")
        axes = layer_axis(name, tensor, n_layers)
        check_finite(tensor, f"The tensor {name!r} of {place}", axes=axes, layers=layers, error=CheckpointError)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header row; raises CheckpointError if that fails or rows differ in length."""
    text = read_text(path, "CSV")
    try:
        check_values(text, ",\n")
        rows = [row for row in csv.reader(text.splitlines(keepends=True)) if row]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    except (csv.Error, ValueError) as error:
        raise unreadable(path, "CSV", error) from error


def _check_header(path: Path) -> None:
    """Raise CheckpointError or SafetensorError if a safetensors file announces a header that it cannot hold."""
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise too_large(f"The header of {path}", LARGEST_HEADER)
    if length + 8 > path.stat().st_size:
        raise SafetensorError("its header is longer than the file")


def _size(node: Any, known: dict[int, int]) -> int:
    """Number of keys and values of a YAML node, in which an alias counts as much as what it repeats.

    Raises ValueError if a value holds half a character (a lone surrogate), which other readers of YAML refuse.
    """
    if node is None:
        return 1
    if isinstance(node, yaml.ScalarNode):
        node.value.encode()
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_SETTINGS + 1  # for an alias of a node inside itself
        children = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds the number {name}")


def _parse_integer(digits: str) -> int:
    integer = int(digits)
    if abs(integer) > _LARGEST_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... has more than 64 bits")
    return integer
