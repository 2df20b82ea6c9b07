"""The public interface: every public name exists, and importing the package alone loads no library."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

import open_clt
from tests.refusals import refuses


@pytest.mark.parametrize("name", open_clt.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(open_clt, name) is not None
    assert name in dir(open_clt)


def test_lazy_names_equal_the_names_that_type_checkers_see() -> None:
    """The imports under ``if TYPE_CHECKING``, the table of lazy names and ``__all__`` contain the same names."""
    tree = ast.parse(Path(open_clt.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    imported = {alias.name: node.module for node in imports for alias in node.names}
    ours = {name: module for name, module in imported.items() if module and module.startswith("open_clt.")}
    assert ours == open_clt._MODULE_OF
    assert {*ours, "__version__"} == set(open_clt.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with refuses(AttributeError, "transcode"):
        _ = open_clt.transcode


def test_importing_the_package_loads_one_module_and_no_library() -> None:
    code = "import sys; before = {*sys.modules}; import open_clt; print(*({*sys.modules} - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"open_clt"}


def undocumented_methods() -> Iterator[str]:
    """Public methods of public classes that neither have nor inherit a docstring."""
    modules = [module.name for module in pkgutil.walk_packages(open_clt.__path__, "open_clt.")]
    for module in map(import_module, (name for name in modules if name != "open_clt.__main__")):
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and not name.startswith("_"):
                methods = (key for key, value in vars(kind).items() if isinstance(value, FunctionType | property))
                public = (key for key in methods if not key.startswith("_"))
                yield from (
                    f"{module.__name__}.{name}.{key}" for key in public if not inspect.getdoc(getattr(kind, key))
                )


def test_every_public_method_has_a_docstring() -> None:
    assert list(undocumented_methods()) == []
