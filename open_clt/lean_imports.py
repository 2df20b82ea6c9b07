"""Lean imports: TransformerLens and transformers without the libraries that they import and OpenCLT does not use.

Importing both costs as much as loading and explaining a small model, so the programs of OpenCLT import less of them:

    datasets, pandas, pytest   TransformerLens imports them for functions that OpenCLT does not call
    torch.distributed.tensor   transformers imports it for models that are divided over processes
    torch._dynamo, sympy       transformers marks functions for the compiler, which OpenCLT does not use
    scipy.optimize             transformers imports it for the losses of object detection
    names of all models        transformers reads the files of all its models twice, to find their names
    collections of garbage     imports make millions of objects, almost none of which is garbage

Only a program calls ``lean_imports``, because nothing else runs in its process: from Python, ``load_language_model``
imports the libraries as they are. Every placeholder is removed again when the imports are done, so a later import of
one of these packages finds the package itself. Versions that were not tested are imported as they are.
``benchmarks/cold_start.py`` measures what this saves.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from open_clt.first_line import is_one_of_several

TESTED = {"torch": "2.13.", "transformers": "5.", "transformer-lens": "4."}
"""Beginnings of the versions with which lean imports were tested."""
_DATASETS = ("datasets", "datasets.arrow_dataset", "datasets.iterable_dataset", "datasets.load")
_COMPILER = "torch._dynamo"
_IMPORTED = ("transformer_lens.model_bridge", "transformers.masking_utils", "transformers.generation.utils")
"""Modules that import all others of which every model needs."""


@contextmanager
def lean_imports() -> Generator[None]:
    """Import what a language model needs, which is loaded in the block.

    Does nothing if the libraries are imported already, or in one of several processes.
    """
    if "transformers.generation.utils" in sys.modules or is_one_of_several() or not is_tested():
        yield
        return
    with _no_compiler():
        with paused_collection(), ExitStack() as stack:
            without = (_no_pytest, _no_datasets, _no_pandas, _no_optimize, _no_distributed_tensors, _one_scan)
            for placeholders in without:
                stack.enter_context(placeholders())
            for name in _IMPORTED:
                importlib.import_module(name)
        with _no_values_of_meta_tensors():
            yield


def is_tested() -> bool:
    """Whether the installed versions are among those with which lean imports were tested."""
    return all(version(name).startswith(beginning) for name, beginning in TESTED.items())


@contextmanager
def paused_collection() -> Generator[None]:
    """Do not search for garbage in the block, which makes many objects and almost no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _placed(modules: dict[str, ModuleType | None]) -> Generator[None]:
    """Let imports in the block find these modules; None stands for a package that is not installed."""
    absent = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in absent.items():
            if sys.modules.get(name) is module:
                sys.modules.pop(name, None)


class _Later(ModuleType):
    """A package that is imported when a name of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = find_spec(name)  # libraries ask for it to see whether the package is installed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _no_pytest() -> Any:
    """TransformerLens marks a function for pytest if that is installed."""
    return _placed({"pytest": None})


def _no_pandas() -> Any:
    """TransformerLens makes tables in functions."""
    return _placed({"pandas": _Later("pandas")})


def _no_optimize() -> Any:
    """transformers calls one function of it, in a loss."""
    if "scipy.optimize" in sys.modules:
        return _placed({})

    def linear_sum_assignment(*arguments: Any, **settings: Any) -> Any:
        return importlib.import_module("scipy.optimize").linear_sum_assignment(*arguments, **settings)

    module = ModuleType("scipy.optimize")
    module.__dict__.update(linear_sum_assignment=linear_sum_assignment, __spec__=find_spec("scipy.optimize"))
    return _placed({"scipy.optimize": module})


def _no_datasets() -> Any:
    """TransformerLens names the classes of ``datasets`` in annotations, and loads data sets in functions."""
    if "datasets" in sys.modules:
        return _placed({})

    def load_dataset(*arguments: Any, **settings: Any) -> Any:
        return importlib.import_module("datasets").load_dataset(*arguments, **settings)

    modules = {name: ModuleType(name) for name in _DATASETS}
    for module in modules.values():
        module.__dict__.update(
            Dataset=type("Dataset", (), {}), IterableDataset=type("IterableDataset", (), {}), load_dataset=load_dataset
        )
    modules["datasets"].__path__ = []
    modules["datasets"].__spec__ = find_spec("datasets")  # libraries ask for it to see whether datasets is installed
    return _placed({**modules})


@contextmanager
def _no_distributed_tensors() -> Generator[None]:
    """Let transformers see a torch that was built without ``torch.distributed``; it asks once, and remembers."""
    import torch

    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        ask: Callable[[], bool] = importlib.import_module(
            "transformers.utils.import_utils"
        ).is_torch_distributed_available
        ask()
    finally:
        torch.distributed.is_available = is_available
    yield


@contextmanager
def _one_scan() -> Generator[None]:
    """Let transformers read the files of its models once; it asks for their names by the folder, then by a file."""
    import_utils: Any = importlib.import_module("transformers.utils.import_utils")
    former = import_utils.create_import_structure_from_path
    models = Path(import_utils.__file__).parent.parent / "models"

    def names(place: str | Path) -> Any:
        return former(models if Path(place) == models / "__init__.py" else place)

    import_utils.create_import_structure_from_path = names
    try:
        yield
    finally:
        import_utils.create_import_structure_from_path = former


@contextmanager
def _no_values_of_meta_tensors() -> Generator[None]:
    """Do not initialise tensors of the meta device, which have no values: torch would import sympy and its compiler.

    transformers makes every model on the meta device before it reads the weights.
    """
    from torch.nn import init

    def only_real(fill: Callable[..., Any]) -> Callable[..., Any]:
        def filled(tensor: Any, *arguments: Any, **settings: Any) -> Any:
            return tensor if tensor.is_meta else fill(tensor, *arguments, **settings)

        return filled

    former = {name: fill for name, fill in vars(init).items() if name.endswith("_") and name[0] != "_"}
    for name, fill in former.items():
        setattr(init, name, only_real(fill))
    try:
        yield
    finally:
        for name, fill in former.items():
            setattr(init, name, fill)


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that returns the function itself, with or without settings."""
    return function if callable(function) else _unmarked


@contextmanager
def _no_compiler() -> Generator[None]:
    """Leave the functions as they are that transformers marks for the compiler.

    The module of ``torch._dynamo`` from which transformers takes a class is imported without its package.
    """
    spec = find_spec(_COMPILER)
    if _COMPILER in sys.modules or spec is None:
        yield
        return
    module = ModuleType(_COMPILER)
    module.__spec__, module.__path__ = spec, list(spec.submodule_search_locations or ())
    module.__dict__.update(disable=_unmarked, allow_in_graph=_unmarked, assume_constant_result=_unmarked)
    with _placed({_COMPILER: module}):
        yield
