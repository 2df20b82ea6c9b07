"""Keys: the random order of a dataset's tokens, which is that of a hash of the seed and of each token's number.

The hash is splitmix64 (Steele, Lea and Flood (2014), "Fast Splittable Pseudorandom Number Generators"), a permutation
of the 64-bit integers, so no two tokens have the same key. Keys are computed when they are needed and never kept:
memory holds the keys of a few tokens at a time, and a histogram of their upper bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

_AT_ONCE = 1 << 20
"""Number of keys that are computed at once."""
_BUCKET_BITS = 16
_STEP = 0x9E3779B97F4A7C15
_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""The steps of the hash: the number of bits by which a number is shifted, and the factor after that."""


def keys(seed: int, begin: int, end: int) -> Int[Tensor, "token"]:
    """The keys of the tokens with numbers from ``begin`` to ``end``."""
    start = _mixed(torch.tensor([_signed(seed * _STEP + _STEP)]))
    return _mixed((torch.arange(begin, end) + 1) * _signed(_STEP) + start)


def _mixed(numbers: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
    for bits, factor in _FACTORS:
        shifted = (numbers >> bits) & ((1 << (64 - bits)) - 1)  # as unsigned numbers are shifted
        numbers = (numbers ^ shifted) * _signed(factor)
    return numbers


def _signed(number: int) -> int:
    """The signed number with the same lower 64 bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@final
class KeyOrder:
    """The tokens of a dataset in the order of their keys; a place is an index in this order."""

    def __init__(self, seed: int, tokens: int) -> None:
        self._seed, self._tokens = seed, tokens

    def numbers(self, begin: int, end: int) -> Int[Tensor, "place"]:
        """The numbers of the tokens at the places from ``begin`` to ``end``, found in one pass over all keys."""
        first, last = (int(torch.searchsorted(self._ends, place, right=True)) for place in (begin, end - 1))
        before = int(self._ends[first - 1]) if first > 0 else 0
        found: list[Tensor] = []
        found_keys: list[Tensor] = []
        for start, chunk in self._chunks(0, self._tokens):
            buckets = _buckets(chunk)
            chosen = ((buckets >= first) & (buckets <= last)).nonzero().flatten()
            found.append(chosen + start)
            found_keys.append(chunk[chosen])
        order = torch.cat(found_keys).argsort()
        return torch.cat(found)[order[begin - before : end - before]]

    def counts_before(self, place: int, run_tokens: int) -> list[int]:
        """For each run of consecutive tokens, the number of its tokens that stand before a place."""
        number = int(self.numbers(place, place + 1))
        key = keys(self._seed, number, number + 1)
        return [
            sum(int((chunk < key).sum()) for _, chunk in self._chunks(run, min(run + run_tokens, self._tokens)))
            for run in range(0, self._tokens, run_tokens)
        ]

    @cached_property
    def _ends(self) -> Int[Tensor, "bucket"]:
        """For each bucket of keys with the same upper bits, the place after its last token."""
        counts = torch.zeros(1 << _BUCKET_BITS, dtype=torch.long)
        for _, chunk in self._chunks(0, self._tokens):
            counts += torch.bincount(_buckets(chunk), minlength=len(counts))
        return counts.cumsum(0)

    def _chunks(self, begin: int, end: int) -> Iterator[tuple[int, Int[Tensor, "token"]]]:
        for start in range(begin, end, _AT_ONCE):
            yield start, keys(self._seed, start, min(start + _AT_ONCE, end))


def _buckets(some: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
    return (some >> (64 - _BUCKET_BITS)) + (1 << (_BUCKET_BITS - 1))
