"""Only the folder ``language`` reads the bridge of TransformerLens."""

from __future__ import annotations

import ast
from pathlib import Path

LANGUAGE = Path("open_clt", "language")
FOLDERS = ("open_clt", "examples", "benchmarks")


def reads_of_bridge(source: str) -> list[int]:
    """Return the numbers of the lines that read an attribute named ``bridge``."""
    return [
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "bridge"
    ]


def test_only_the_folder_language_reads_the_bridge(repository: Path) -> None:
    files = [path for folder in FOLDERS for path in (repository / folder).rglob("*.py")]
    readers = {path.relative_to(repository) for path in files if reads_of_bridge(path.read_text(encoding="utf-8"))}
    assert LANGUAGE / "language_model.py" in readers
    assert {path for path in readers if LANGUAGE not in path.parents} == set()
