"""Every public function names the argument that has a wrong type, and takes arguments of the types that it states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import open_clt
from open_clt import visualization_utils
from open_clt.config.arguments import Count, checked_arguments
from open_clt.errors import ConfigError
from tests.refusals import refuses

TENSORS_ONLY = {"written", "decoder_norms", "decoders", "decoder_rows", "target_rows", "vectors", "nested", "errors"}
"""Methods of a transcoder that compute with tensors in every training step, and leave their checks to PyTorch."""
CHECKED_BY_FIELDS = {"CrossLayerConfig", "MoltConfig", "TrainingConfig", "Intervention"}
"""Classes whose fields ``CheckedConfig`` checks."""


IMPORTED_FOR_TYPE_CHECKERS = {"OwnParts | None"}
"""Types that a module does not import when it runs; the function that the argument is passed on to checks it."""


class Odd:
    """A value that no argument allows."""


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    modules = (open_clt, visualization_utils)
    for name, item in ((name, getattr(module, name)) for module in modules for name in module.__all__):
        if inspect.isfunction(item):
            yield name, item
        elif inspect.isclass(item) and name not in CHECKED_BY_FIELDS:
            for method, function in vars(item).items():
                function = getattr(function, "__func__", function)
                is_public = not method.startswith("_") and method not in TENSORS_ONLY
                if inspect.isfunction(function) and is_public:
                    yield f"{name}.{method}", function


def parameters() -> list[Any]:
    return [
        pytest.param(function, parameter.name, id=f"{name}-{parameter.name}")
        for name, function in dict(public_functions()).items()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "cls")
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.annotation not in IMPORTED_FOR_TYPE_CHECKERS
    ]


@pytest.mark.parametrize(("function", "name"), parameters())
def test_a_wrong_type_is_refused_by_name(function: Callable[..., Any], name: str) -> None:
    with refuses(ConfigError, name, "Odd"):
        function(**{name: Odd()})


class Settings(TypedDict, total=False):
    width: Count | None


@checked_arguments
def example(
    place: str | Path = "a",
    count: int | None = None,
    share: float = 0.5,
    *names: Sequence[str],
    mode: Literal["one", "two"] = "one",
    tokens: Int[Tensor, "batch position"] | None = None,
    lengths: Sequence[int] | str = (),
    states: Mapping[int, Float[Tensor, "position"]] | None = None,
    **settings: Unpack[Settings],
) -> str:
    return f"{place} {count} {share} {names} {mode} {tokens} {lengths} {states} {settings}"


@pytest.mark.parametrize(
    "legal",
    [
        {"place": Path("b")},
        {"place": "."},
        {"count": 2**63 - 1},
        {"count": np.int64(3)},
        {"share": 1},
        {"share": np.float32(0.1)},
        {"mode": "two"},
        {"tokens": torch.zeros(2, 3, dtype=torch.long)},
        {"lengths": range(3)},
        {"lengths": "abc"},
        {"states": {0: torch.zeros(2)}},
        {"states": {}},
        {"width": 4},
    ],
)
def test_legal_arguments_are_passed_on_unchanged(legal: dict[str, Any]) -> None:
    assert str(next(iter(legal.values()))) in example(**legal)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("place", 3, 3),
        ("place", None, None),
        ("place", "", "''"),
        ("place", "a\0b", "a"),
        ("count", "3", "'3'"),
        ("count", True, True),
        ("count", 2**70, 2**70),
        pytest.param("count", 10**5000, "count", id="an integer that Python does not print"),
        ("share", float("nan"), "nan"),
        ("share", float("inf"), "inf"),
        ("mode", "three", "three"),
        ("tokens", torch.zeros(0), (0,)),
        ("tokens", torch.zeros(1, 2, dtype=torch.long, device="meta"), (1, 2)),
        ("tokens", torch.zeros(1, 2, dtype=torch.long).to_sparse(), (1, 2)),
        ("states", {"0": torch.zeros(2)}, "dict"),
        ("states", {0: torch.zeros(2), 1: torch.zeros(2, 3)}, "dict"),
        ("lengths", [1, 2.5], "lengths"),
        ("width", "wide", "wide"),
        ("width", 0, 0),
    ],
)
def test_an_illegal_argument_is_named_with_its_value(name: str, value: Any, shown: object) -> None:
    with refuses(ConfigError, name, "example", shown):
        example(**{name: value})


def test_pythons_own_errors_name_parameters_that_are_missing_or_unknown() -> None:
    with refuses(TypeError, "source"):
        open_clt.load_transcoder()
    with refuses(TypeError, "colour"):
        open_clt.load_transcoder("a", colour=3)
