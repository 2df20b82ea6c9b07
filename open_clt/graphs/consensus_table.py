"""The table of a consensus graph: how often each node and edge occurs in several graphs, and how much it varies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from open_clt.errors import AttributionError
from open_clt.short_repr import short_repr

CORE = 0.8
"""Least share of the graphs that have a node or edge of the core."""
_EDGES = "edge_"
"""Beginning of the names of columns for edges."""
_FACTS = ("prompts", "answers", "stability")
"""Fields that are not columns."""


@final
@dataclass(frozen=True, eq=False)
class ConsensusTable:
    """What a consensus graph knows beside its averages; columns have one entry per node or per edge of the graph.

    The influence of a node in one graph is its share in the graph's outputs, and 0 in a graph that lacks the node. The
    interval of a mean holds 95 of 100 means of graphs that are drawn from the graphs with replacement (bootstrap).
    """

    prompts: tuple[str, ...]
    """Prompt of each graph."""
    answers: tuple[str, ...]
    """Name of the first output of each graph."""
    stability: tuple[float, ...]
    """Stability score of each graph, in [0, 1]: how much its influence overlaps with the mean of the other graphs."""
    frequency: Float[Tensor, "node"]
    """Share of the graphs that have the node."""
    influence: Float[Tensor, "node"]
    """Mean influence."""
    deviation: Float[Tensor, "node"]
    """Standard deviation of the influence between graphs."""
    low: Float[Tensor, "node"]
    """Lower end of the interval of the mean influence."""
    high: Float[Tensor, "node"]
    """Upper end of the interval of the mean influence."""
    effect: Float[Tensor, "node"]
    """Mean change of the first output that ablating the node causes in the graphs that have it, as the graphs predict.

    The change is in logits, or in units of the target."""
    edge_frequency: Float[Tensor, "edge"]
    """Share of the graphs that have the edge."""
    edge_deviation: Float[Tensor, "edge"]
    """Standard deviation of the edge's weight between the graphs that have its target."""
    edge_low: Float[Tensor, "edge"]
    """Lower end of the interval of the edge's mean weight."""
    edge_high: Float[Tensor, "edge"]
    """Upper end of the interval of the edge's mean weight."""

    def part(self, nodes: Bool[Tensor, "node"], edges: Bool[Tensor, "edge"]) -> ConsensusTable:
        """Return the columns of some nodes and edges."""
        return replace(self, **{name: c[edges if is_of_edges(name) else nodes] for name, c in self.columns().items()})

    def columns(self) -> dict[str, Tensor]:
        """Return the columns by their names."""
        return {name: getattr(self, name) for name in column_names()}

    def summary(self) -> str:
        """Return a sentence on what the averages are."""
        return (
            f"Consensus of {len(self.prompts)} graphs, with a mean stability of {fmean(self.stability):.2f}: positions "
            "are roles, and a weight is the mean share in its target's inputs."
        )

    def facts(self) -> dict[str, Any]:
        """Return everything but the columns, as plain values."""
        return {name: list(getattr(self, name)) for name in _FACTS}

    @staticmethod
    def of_stored(facts: Mapping[str, Any], columns: Mapping[str, Tensor]) -> ConsensusTable:
        """Read what ``facts`` and ``columns`` returned; raises LookupError, TypeError or AttributionError otherwise."""
        *texts, scores = (facts[name] for name in _FACTS)
        if not all(isinstance(each, list) for each in (*texts, scores)) or not scores:
            raise AttributionError("the prompts, answers or scores of the consensus are not lists")
        if not all(isinstance(text, str) for each in texts for text in each):
            raise AttributionError("the prompts or answers of the consensus are not texts")
        if not all(isinstance(score, int | float) and 0 <= score <= 1 for score in scores):
            raise AttributionError("a stability score is not a number between 0 and 1")
        if len({len(each) for each in (*texts, scores)}) != 1:
            raise AttributionError("the consensus does not have one answer and one score for each prompt")
        own = {name: columns[name] for name in column_names()}
        return ConsensusTable(tuple(texts[0]), tuple(texts[1]), tuple(map(float, scores)), **own)

    __repr__ = short_repr


def column_names() -> list[str]:
    """Return the names of all columns."""
    return [f.name for f in fields(ConsensusTable) if f.name not in _FACTS]


def is_of_edges(column: str) -> bool:
    """Whether a column has one entry per edge."""
    return column.startswith(_EDGES)


def problem(table: ConsensusTable | None, n_nodes: int, n_edges: int) -> str | None:
    """What is wrong with the table of a graph, as the end of a sentence; None if it fits the graph."""
    for name, column in table.columns().items() if table else ():
        length = n_edges if is_of_edges(name) else n_nodes
        if column.dtype != torch.float32 or tuple(column.shape) != (length,):
            return f"consensus.{name} has {column.dtype} and the shape {tuple(column.shape)}, not {(length,)}"
        if not bool(column.isfinite().all()):
            return f"consensus.{name} is not finite"
        if "frequency" in name and not bool(((column > 0) & (column <= 1)).all()):
            return f"consensus.{name} is not above 0 and at most 1"
    return None
