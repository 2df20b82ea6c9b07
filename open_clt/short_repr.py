"""Short representations: records print the shapes of their tensors and arrays, never the numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

_MOST_ITEMS = 5
"""Largest number of items of a sequence or mapping that are printed."""
_LONGEST = 100
"""Largest number of characters of a text."""
_LONGEST_RECORD = 360
"""Largest number of characters of all fields of a record."""


def short_repr(self: Any) -> str:
    """The name of a record and its fields; a class of records uses it as ``__repr__ = short_repr``."""
    names = [field.name for field in fields(self) if field.repr] if is_dataclass(self) else self._fields
    values = [f"{name}={_short(getattr(self, name))}" for name in names]
    return f"{type(self).__name__}({', '.join(_fitting(values))})"


def _fitting(values: list[str]) -> list[str]:
    """Cut the longest values, all to one length, so that the values of a record fit into its line."""
    longest = _LONGEST_RECORD - 2 * len(values)
    while sum(min(len(value), longest) for value in values) + 2 * len(values) > _LONGEST_RECORD:
        longest -= 1
    return [value if len(value) <= longest else f"{value[: longest - 3]}..." for value in values]


def _short(value: Any) -> str:
    torch: Any = sys.modules.get("torch")  # a program that has not imported torch has no tensors
    match value:
        case _ if torch is not None and isinstance(value, torch.Tensor):
            return f"<tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}>"
        case str() | bytes():
            text = repr(value)
            return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
        case _ if torch is not None and isinstance(value, torch.nn.Module):
            return f"<{type(value).__name__}>"
        case tuple() | list() if not hasattr(cast(Any, value), "_fields"):
            items = cast(Sequence[Any], value)
            return _listed(
                [_short(item) for item in items[:_MOST_ITEMS]], len(items), "()" if type(value) is tuple else "[]"
            )
        case Mapping():
            pairs = list(cast(Mapping[Any, Any], value).items())
            return _listed([f"{_short(key)}: {_short(item)}" for key, item in pairs[:_MOST_ITEMS]], len(pairs), "{}")
        case _ if getattr(value, "shape", ()):
            kind = f"{value.dtype}>" if hasattr(value, "dtype") else f"of {type(value).__name__}>"
            return f"<array {tuple(value.shape)} {kind}"
        case _:
            return repr(value)


def _listed(items: list[str], total: int, brackets: str) -> str:
    rest = [f"... {total} in total"] if total > len(items) else []
    comma = "," if brackets == "()" and total == 1 else ""
    return f"{brackets[0]}{', '.join(items + rest)}{comma}{brackets[1]}"
