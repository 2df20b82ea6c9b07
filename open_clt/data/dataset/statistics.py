"""Statistics of a dataset: mean and variance of every layer and dimension, which are updated as shards are written.

Means and sums of squared deviations of two sets of tokens are merged in float64 by the formulas of Chan, Golub and
LeVeque (1979), "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances". Sums of squares would lose
all digits where the mean is much larger than the deviation.

The first positions of contexts have massive activations, and are counted apart, because most transcoders leave them
out. ``norm_stats.json`` describes the numbers as the shards hold them, which are rounded to the type of the shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt import files
from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError
from open_clt.short_repr import short_repr

STATISTICS = "norm_stats.json"
_FORMAT = files.FileFormat("open-clt-norm-stats", newest=1)
_CHUNK = 1024
"""Number of tokens that are turned into float64 at once."""
GROUPS = ("first_positions", "other_positions")
"""The groups of tokens that are counted apart: those at position 0 of a context, and all others."""
_KINDS = ("inputs", "targets")
_LARGEST = 1e100
"""Largest legal number of a file: above the square of the largest number of float32 times the number of tokens."""


class Moments(NamedTuple):
    """Mean and sum of squared deviations of a number of tokens, in float64."""

    tokens: int
    mean: Float[Tensor, "layer d_model"]
    deviations: Float[Tensor, "layer d_model"]
    """Sum over the tokens of the squared deviation from the mean."""

    @property
    def variance(self) -> Float[Tensor, "layer d_model"]:
        """Mean squared deviation; zero without tokens."""
        return self.deviations / max(1, self.tokens)

    __repr__ = short_repr


def no_tokens(n_layers: int, d_model: int) -> Moments:
    """The moments of no tokens."""
    zeros = torch.zeros(n_layers, d_model, dtype=torch.float64)
    return Moments(0, zeros, zeros)


def moments_of(activations: Float[Tensor, "batch layer d_model"]) -> Moments:
    """The moments of a batch, from two passes over it; a large batch is cut, so that its copy in float64 is small."""
    moments = no_tokens(*activations.shape[1:])
    for chunk in activations.split(_CHUNK):
        numbers = chunk.double()
        mean = numbers.mean(0) if len(numbers) else moments.mean
        moments = merged(moments, Moments(len(numbers), mean, (numbers - mean).square_().sum(0)))
    return moments


def merged(first: Moments, second: Moments) -> Moments:
    """The moments of two sets of tokens together."""
    tokens = first.tokens + second.tokens
    if tokens == 0:
        return first
    difference, share = second.mean - first.mean, second.tokens / tokens
    mean = first.mean + difference * share
    return Moments(tokens, mean, first.deviations + second.deviations + difference.square() * (first.tokens * share))


@final
class DatasetStatistics(NamedTuple):
    """Moments of inputs and targets, for first positions of contexts and for all other positions."""

    first_inputs: Moments
    first_targets: Moments
    other_inputs: Moments
    other_targets: Moments

    def inputs(self, *, use_first_position: bool = False) -> Moments:
        """Moments of the inputs of every layer, by default without the first positions of contexts."""
        return merged(self.first_inputs, self.other_inputs) if use_first_position else self.other_inputs

    def targets(self, *, use_first_position: bool = False) -> Moments:
        """Moments of the targets of every layer, by default without the first positions of contexts."""
        return merged(self.first_targets, self.other_targets) if use_first_position else self.other_targets

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.first_inputs.tokens + self.other_inputs.tokens

    __repr__ = short_repr


def no_statistics(n_layers: int, d_model: int) -> DatasetStatistics:
    """The statistics of no tokens."""
    return DatasetStatistics(*[no_tokens(n_layers, d_model)] * 4)


def updated(statistics: DatasetStatistics, batch: ActivationBatch) -> DatasetStatistics:
    """The statistics of a dataset after a batch was added."""
    is_first = batch.positions == 0
    parts = [(batch.take(rows).inputs, batch.take(rows).targets) for rows in (is_first, ~is_first)]
    added = [moments_of(activations) for part in parts for activations in part]
    return DatasetStatistics(*map(merged, statistics, added))


def write_statistics(path: Path, statistics: DatasetStatistics) -> None:
    """Write ``norm_stats.json``: for each group of tokens, mean and variance of every layer and dimension."""
    moments = iter(statistics)
    content: dict[str, Any] = {}
    for group in GROUPS:
        pair = [next(moments) for _ in _KINDS]
        numbers = [{"mean": one.mean.tolist(), "variance": one.variance.tolist()} for one in pair]
        content[group] = {"tokens": pair[0].tokens, **dict(zip(_KINDS, numbers, strict=True))}
    files.write_json(path, {**_FORMAT.header(), **content}, finite=True, indent=None)


def read_statistics(path: Path, n_layers: int, d_model: int) -> DatasetStatistics:
    """Read ``norm_stats.json``; raises CheckpointError if it is missing, damaged, or of another shape."""
    content = _FORMAT.read(path, finite=True)
    moments: list[Moments] = []
    for group in GROUPS:
        match content.get(group):
            case {"tokens": int(tokens), "inputs": dict(inputs), "targets": dict(targets)} if 0 <= tokens < 2**48:
                for kind, numbers in zip(_KINDS, cast(list[dict[str, Any]], [inputs, targets]), strict=True):
                    name = f"{group}.{kind}"
                    mean = numbers_of(numbers.get("mean"), f"{name}.mean", path, (n_layers, d_model))
                    variance = numbers_of(numbers.get("variance"), f"{name}.variance", path, (n_layers, d_model))
                    if bool((variance < 0).any()):
                        raise CheckpointError(f"{path} has a negative number in {name}.variance; it is damaged.")
                    moments.append(Moments(tokens, mean, variance * tokens))
            case _:
                raise CheckpointError(f"{path} does not describe the tokens of {group!r}; it is damaged.")
    return DatasetStatistics(*moments)


def copy_statistics(source: Path, copy: Path) -> None:
    """Copy ``norm_stats.json`` byte for byte, so that its SHA-256 stays the same."""
    files.write_bytes(copy, files.read_bytes(source))


def numbers_of(content: object, name: str, path: Path, shape: tuple[int, int]) -> Float[Tensor, "layer d_model"]:
    """Turn nested lists of a JSON file into float64; raises CheckpointError unless they have this shape."""
    rows = cast(list[Any], content) if isinstance(content, list) else []
    try:
        numbers = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} does not hold numbers in {name}; it is damaged.") from error
    if tuple(numbers.shape) != shape or not bool((numbers.abs() <= _LARGEST).all()):
        raise CheckpointError(
            f"{path} does not hold {shape[0]} layers of {shape[1]} numbers up to {_LARGEST:g} in {name}; it is damaged."
        )
    return numbers
