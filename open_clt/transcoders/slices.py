"""Slices of a transcoder: parts of its features (shards) and of a batch's tokens (replicas), one part per process.

A process may hold a slice of every layer's features and see a slice of every batch, while its peers, the other
processes, hold and see the rest. Three results need all slices: which of the competing features are selected, the sum
of what all features write, and the counts of active features. For these, a transcoder asks its ``Peers``: by
default ``ALONE``, for a single process, and in training on several processes those of
``open_clt/training/parallel/strategy.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_ROWS = 1024
"""Rows that are drawn at a time, which bounds the memory for the rows of other slices."""


class Part(NamedTuple):
    """The slice of a transcoder that a process holds: features ``shard``, ``shard + shards``, ... of each layer."""

    shard: int = 0
    shards: int = 1

    @torch.no_grad()
    def draw(self, rows: Float[Tensor, "feature *row"], bound: float, generator: torch.Generator) -> None:
        """Draw a table from U(+-bound), in place; a slice gets the rows that its features have in the whole table."""
        if self.shards == 1:
            rows.uniform_(-bound, bound, generator=generator)
            return
        for chunk in rows.split(_ROWS):
            of_all_slices = chunk.new_empty(chunk.shape[0] * self.shards, *chunk.shape[1:])
            chunk.copy_(of_all_slices.uniform_(-bound, bound, generator=generator)[self.shard :: self.shards])


WHOLE = Part()
"""The slice that holds all features."""


class Peers(ABC):
    """The processes that hold the other features, or see the other tokens."""

    shards: int
    """Number of slices (shards) into which the features of a layer are split, one per process."""
    shard: int
    """Index of the slice (shard) of the features that this process holds, counted from 0."""
    replicas: int
    """Number of processes, or of groups of them, over which the tokens of a batch are spread."""

    @abstractmethod
    def sum_features(self, partial: Tensor) -> Tensor:
        """Sum the partial results of all slices of the features; each process gets the gradient of its own result."""

    @abstractmethod
    def sum_batch(self, partial: Tensor) -> Tensor:
        """Sum the partial results of all slices of the batch, without gradients."""

    @abstractmethod
    def gather(self, part: Tensor) -> list[Tensor] | None:
        """The tensors of all slices of the features, on the CPU, for the process of slice 0; None for the others."""

    @abstractmethod
    def winners(self, values: Float[Tensor, "batch candidate"], k: int) -> Bool[Tensor, "batch candidate"]:
        """A mask of this process's candidates that are among their token's ``k`` largest over all processes.

        A process may have at most ``k`` candidates per token. Exactly ``k`` candidates win over all processes, or all
        of them if there are fewer. Of equal candidates, that of the lower slice wins.
        """

    @abstractmethod
    def kth_largest(self, values: Float[Tensor, "candidate"], k: int) -> Float[Tensor, ""]:
        """The ``k``-th largest value over all features and tokens, or the smallest if there are fewer than ``k``.

        Negative values count as 0. Without values, the result is 0.
        """


@final
class Alone(Peers):
    """The only process: it holds every feature and sees every token."""

    shards, shard, replicas = 1, 0, 1

    def sum_features(self, partial: Tensor) -> Tensor:
        return partial

    def sum_batch(self, partial: Tensor) -> Tensor:
        return partial

    def gather(self, part: Tensor) -> list[Tensor] | None:
        return [part.cpu()]

    def winners(self, values: Float[Tensor, "batch candidate"], k: int) -> Bool[Tensor, "batch candidate"]:
        ranks = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return ranks < k

    def kth_largest(self, values: Float[Tensor, "candidate"], k: int) -> Float[Tensor, ""]:
        k = min(k, values.shape[0])
        return values.topk(k, sorted=False).values.min().clamp(min=0) if k else values.new_zeros(())


ALONE = Alone()
"""The peers of a transcoder that is not sliced."""
