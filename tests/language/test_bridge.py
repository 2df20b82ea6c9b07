"""The bridge of TransformerLens is read in the language model's room only."""

from __future__ import annotations

import ast
from pathlib import Path

ROOM = Path("open_clt", "language")
LOOKED_AT = ("open_clt", "examples", "benchmarks")


def reads_of_bridge(source: str) -> list[int]:
    """Lines that read an attribute ``bridge`` of anything."""
    return [
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "bridge"
    ]


def test_only_the_language_models_room_reads_the_bridge(repository: Path) -> None:
    files = [path for folder in LOOKED_AT for path in (repository / folder).rglob("*.py")]
    readers = {path.relative_to(repository) for path in files if reads_of_bridge(path.read_text(encoding="utf-8"))}
    assert ROOM / "language_model.py" in readers
    assert {path for path in readers if ROOM not in path.parents} == set()
