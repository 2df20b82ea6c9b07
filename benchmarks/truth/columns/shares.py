"""Shares: means over prompts, with the interval of a bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch

DRAWS = 2_000
"""Number of bootstrap draws."""

Numbers: TypeAlias = Mapping[str, float | None]
"""The numbers of one prompt by the name of their column; None if the prompt does not have one."""


class Share(NamedTuple):
    """The mean of one number over prompts, with its bootstrap interval."""

    mean: float
    low: float
    high: float
    prompts: int

    @classmethod
    def of(cls, values: Sequence[float], generator: torch.Generator) -> Share | None:
        """The mean of the values, or None without any."""
        if not values:
            return None
        numbers = torch.tensor(values, dtype=torch.double)
        drawn = torch.randint(len(values), (DRAWS, len(values)), generator=generator)
        low, high = interval(numbers[drawn].mean(1).tolist())
        return cls(float(numbers.mean()), low, high, len(values))

    def rounded(self) -> dict[str, float]:
        """The values for JSON."""
        return {name: round(value, 4) for name, value in self._asdict().items()}


def interval(draws: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the middle 95 % of some draws."""
    low, high = torch.tensor(draws, dtype=torch.double).quantile(torch.tensor([0.025, 0.975], dtype=torch.double))
    return float(low), float(high)


def shares(rows: Iterable[Numbers], generator: torch.Generator) -> dict[str, dict[str, float] | None]:
    """The share of each column over the prompts that have it."""
    rows = list(rows)
    columns = {name: [value for row in rows if (value := row.get(name)) is not None] for row in rows for name in row}
    found = {name: Share.of(values, generator) for name, values in columns.items()}
    return {name: None if share is None else share.rounded() for name, share in found.items()}
