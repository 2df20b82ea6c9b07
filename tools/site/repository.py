"""The repository: its folder, and its address, which stands in ``pyproject.toml`` only."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@cache
def repository_address() -> str:
    """The address of the repository, as ``pyproject.toml`` states it."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def address_of(path: Path) -> str:
    """The address of the page that shows a file or folder of the repository."""
    kind = "tree" if path.is_dir() else "blob"
    return f"{repository_address()}/{kind}/main/{path.relative_to(REPOSITORY).as_posix()}"
