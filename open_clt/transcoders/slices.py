"""Whom a transcoder shares its work with: by default nobody.

A transcoder may hold a slice of every layer's features while other processes hold the rest, and see a slice of every
batch while others see the rest. What it computes from its slices is right as it stands, but for three things: features
compete to be selected, what they write adds up, and they are counted. In those places it asks its peers.
``open_clt/training/parallel/strategy.py`` has the peers of several processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_ROWS = 1024


class Part(NamedTuple):
    """Which features a transcoder has of a larger one: every ``shards``-th, from number ``shard`` on."""

    shard: int = 0
    shards: int = 1

    @torch.no_grad()
    def draw(self, rows: Float[Tensor, "feature *row"], bound: float, generator: torch.Generator) -> None:
        """Fill a table of features with U(+-bound): its part of what would be drawn for all features."""
        if self.shards == 1:
            rows.uniform_(-bound, bound, generator=generator)
            return
        for some in rows.split(_ROWS):
            every = some.new_empty(some.shape[0] * self.shards, *some.shape[1:])
            some.copy_(every.uniform_(-bound, bound, generator=generator)[self.shard :: self.shards])


WHOLE = Part()


class Peers(ABC):
    """The processes that hold the other features, or see the other tokens."""

    shards: int
    """Processes that the features of a layer are spread over."""
    shard: int
    """Which slice of the features this process holds, counted from 0."""
    replicas: int
    """Processes (or groups of them) that the tokens of a batch are spread over."""

    @abstractmethod
    def sum_features(self, partial: Tensor) -> Tensor:
        """Sum what all slices of the features contribute; the gradient of each process is that of its own part."""

    @abstractmethod
    def sum_batch(self, partial: Tensor) -> Tensor:
        """Sum over the slices of the batch; without gradients."""

    @abstractmethod
    def gather(self, part: Tensor) -> list[Tensor] | None:
        """The parts of all slices of the features, on the CPU of the process with the first; None on the others."""

    @abstractmethod
    def winners(self, values: Float[Tensor, "batch candidate"], k: int) -> Bool[Tensor, "batch candidate"]:
        """Which of this process's candidates, at most ``k``, are among the ``k`` largest of their token anywhere.

        Exactly ``k`` win in all, if there are as many; of equal ones, those of the first slice.
        """

    @abstractmethod
    def kth_largest(self, values: Float[Tensor, "some"], k: int) -> Float[Tensor, ""]:
        """The ``k``-th largest of all values, over all features and tokens, or the smallest if there are fewer.

        Negative values count as 0; it is 0 if there are none at all.
        """


@final
class Alone(Peers):
    """No peers: this process holds every feature and sees every token."""

    shards, shard, replicas = 1, 0, 1

    def sum_features(self, partial: Tensor) -> Tensor:
        return partial

    def sum_batch(self, partial: Tensor) -> Tensor:
        return partial

    def gather(self, part: Tensor) -> list[Tensor] | None:
        return [part.cpu()]

    def winners(self, values: Float[Tensor, "batch candidate"], k: int) -> Bool[Tensor, "batch candidate"]:
        places = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return places < k

    def kth_largest(self, values: Float[Tensor, "some"], k: int) -> Float[Tensor, ""]:
        k = min(k, values.shape[0])
        return values.topk(k, sorted=False).values.min().clamp(min=0) if k else values.new_zeros(())


ALONE = Alone()
