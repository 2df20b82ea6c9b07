"""The limits on size in docs/ARCHITECTURE.md hold for every file, function, folder, class and config."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("open_clt", "benchmarks", "examples", "tests", "tools", "practice_run.py")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Rule(NamedTuple):
    """A limit, and a function that returns the size of every item by name."""

    limit: int
    sizes: Callable[[], dict[str, int]]


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its path from the root of the repository."""
    files = [file for source in SOURCES for file in [ROOT / source, *sorted((ROOT / source).rglob("*.py"))]]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in files if file.suffix == ".py"}


def named(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Every class and function below a node, with its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            yield name, child
            yield from named(child, f"{name}.")
        else:
            yield from named(child, prefix)


@cache
def definitions() -> list[tuple[str, ast.ClassDef | Function]]:
    return [definition for path, tree in trees().items() for definition in named(tree, f"{path}: ")]


def lines_of_files() -> dict[str, int]:
    return {path: len((ROOT / path).read_text().splitlines()) for path in trees()}


def lines_of_functions() -> dict[str, int]:
    """Lines from ``def`` to the end; a nested function also counts as part of the function around it."""
    return {
        name: (node.end_lineno or node.lineno) - node.lineno + 1
        for name, node in definitions()
        if not isinstance(node, ast.ClassDef)
    }


def modules_of_folders() -> dict[str, int]:
    """Modules without ``__init__.py``; the root, its tests and folders with one file per kind are not limited."""
    folders = Counter(Path(path).parent for path in trees() if not path.endswith("__init__.py"))
    unlimited = {"open_clt", "tests", "commands", "formats", "benchmarks"}
    return {folder.as_posix(): count for folder, count in folders.items() if folder.name not in unlimited}


def public_methods_of_classes() -> dict[str, int]:
    """Public methods, without properties."""

    def is_method(node: ast.stmt) -> bool:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            return False
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        return not decorators & {"property", "cached_property", "overload"}

    return {name: sum(map(is_method, node.body)) for name, node in definitions() if isinstance(node, ast.ClassDef)}


def fields_of_configs() -> dict[str, int]:
    """Own and inherited fields of every class whose name ends in ``Config``."""
    classes = {name.split(": ")[1]: node for name, node in definitions() if isinstance(node, ast.ClassDef)}

    def fields(name: str) -> set[str]:
        node = classes.get(name)
        if node is None:
            return set()
        annotated = [child for child in node.body if isinstance(child, ast.AnnAssign)]
        own = {ast.unparse(child.target) for child in annotated if "ClassVar" not in ast.unparse(child.annotation)}
        return own.union(*(fields(ast.unparse(base)) for base in node.bases))

    return {name: len(fields(name)) for name in classes if name.endswith("Config")}


def positional_parameters_of_functions() -> dict[str, int]:
    """Positional parameters without ``self`` and ``cls``; tests are not counted, because pytest passes by name."""

    def count(node: Function) -> int:
        names = [parameter.arg for parameter in [*node.args.posonlyargs, *node.args.args]]
        return len(names) - (names[:1] in (["self"], ["cls"]))

    functions = {name: node for name, node in definitions() if not isinstance(node, ast.ClassDef)}
    return {name: count(node) for name, node in functions.items() if not node.name.startswith("test_")}


RULES = {
    "lines of a file": Rule(400, lines_of_files),
    "lines of a function": Rule(60, lines_of_functions),
    "modules of a folder": Rule(12, modules_of_folders),
    "public methods of a class": Rule(12, public_methods_of_classes),
    "fields of a config": Rule(12, fields_of_configs),
    "positional parameters": Rule(5, positional_parameters_of_functions),
}

EXCEPTIONS = {
    "CrossLayerConfig": "it is the one config of the CLT, the SAE and the Matryoshka transcoder, one formula",
    "open_clt/graphs/graph.py: AttributionGraph": "its methods are the interface that people use on a graph",
    "open_clt/open_cross_layer_transcoder.py: OpenCrossLayerTranscoder": "its methods are the interface people know",
}
"""Items that may exceed a limit, and the reason."""


def above_limit(rule: Rule) -> dict[str, int]:
    return {name: size for name, size in rule.sizes().items() if size > rule.limit}


@pytest.mark.parametrize("name", RULES)
def test_everything_is_within_its_limit(name: str) -> None:
    assert {item: size for item, size in above_limit(RULES[name]).items() if item not in EXCEPTIONS} == {}


def test_every_exception_is_needed() -> None:
    needed = {item for rule in RULES.values() for item in above_limit(rule)}
    assert set(EXCEPTIONS) - needed == set()
