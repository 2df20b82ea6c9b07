"""Reading: every reader reports a missing or damaged file in the same words."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from open_clt.errors import CheckpointError
from open_clt.files.places import old_path

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

    def read(self, path: Path) -> dict[str, Any]:
        """Read a file of this format.

        Raises CheckpointError if the file is missing, damaged, of another format, or of a version that is not read.
        """
        content = read_json(path)
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
    """The error for a file that cannot be read as a file of its ``kind``: JSON, safetensors, ..."""
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is not a readable {kind} file ({reason}); it is damaged or truncated.")


def read_bytes(path: Path, kind: str = "binary") -> bytes:
    """Read a file; raises CheckpointError if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except OSError as error:
        raise unreadable(path, kind, error) from error


def read_text(path: Path, kind: str = "text") -> str:
    """Read a text file in UTF-8; raises CheckpointError if it is missing or cannot be read."""
    try:
        return read_bytes(path, kind).decode()
    except UnicodeDecodeError as error:
        raise unreadable(path, kind, error) from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises ValueError for text that is not JSON, is nested too deeply, or holds an integer of more than 64 bits.
    """
    try:
        return json.loads(text, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read a JSON file, or a gzip-compressed one if its suffix is ``.gz``; raises CheckpointError if that fails."""
    content = read_bytes(path, "JSON")
    try:
        return parse_json(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise unreadable(path, "JSON", error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; raises CheckpointError if it is missing, truncated or of another kind."""
    try:
        return load_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except (SafetensorError, OSError) as error:
        raise unreadable(path, "safetensors", error) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header row; raises CheckpointError if that fails."""
    lines = read_text(path, "CSV").splitlines(keepends=True)
    try:
        return [dict(row) for row in csv.DictReader(lines)]
    except csv.Error as error:
        raise unreadable(path, "CSV", error) from error


def _parse_integer(digits: str) -> int:
    integer = int(digits)
    if abs(integer) > _LARGEST_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... has more than 64 bits")
    return integer
