"""Preparation of training data: its outliers, its statistics, and its tokens if all of them fit in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.config import DataConfig
from open_clt.data.harvest import ActivationBatch, ActivationStore, check_activations, collect, input_norms, keep_rows
from open_clt.errors import ConfigError, TextError
from open_clt.short_repr import short_repr
from open_clt.transcoders.standardisation import Statistics, StatisticsEstimator

logger = logging.getLogger(__name__)

_STATISTICS_TOKENS = 200_000
_SAMPLE_TOKENS = 4096
_CHUNK = 4096


class DataStatistics(NamedTuple):
    """Statistics of inputs and targets, by which a transcoder standardises them."""

    inputs: Statistics
    targets: Statistics

    __repr__ = short_repr


class Prepared(NamedTuple):
    """Training data after the first reading: its statistics, and its tokens if they fit in memory."""

    kept: ActivationBatch | None
    """All usable tokens; None if they do not fit the memory limit."""
    tokens: int | None
    """Usable tokens per epoch: an estimate if they are not kept, None if the store does not know its size."""
    block_size: int
    """Tokens of a block, which are mixed together."""
    largest_norm: Float[Tensor, "layer"] | None
    """Largest input norm of each layer; a token with a larger one is left out. None leaves no token out."""
    inputs: Statistics
    targets: Statistics
    sample: ActivationBatch
    """A few thousand random tokens, from which encoder biases are set."""

    __repr__ = short_repr


def prepare(
    store: ActivationStore,
    config: DataConfig,
    *,
    use_first_position: bool = False,
    layers: Sequence[int] | None = None,
    statistics: DataStatistics | None = None,
) -> Prepared:
    """Read a store once: find outliers, estimate statistics, and keep the tokens if all of them fit the memory limit.

    If they do not fit, reading stops as soon as there are enough tokens for the statistics. First positions are left
    out unless ``use_first_position`` is set. ``statistics`` take the place of the estimates. Raises TextError if no
    token is left, and NotFiniteError if an activation is not finite.
    """
    limit, dtype = config.memory_limit * 1e9, storage_type(config)
    block, complete, capacity = collect(store, max_bytes=limit, enough=_STATISTICS_TOKENS, dtype=dtype)
    tokens_read = block.size
    norms = torch.cat([input_norms(block.take(slice(i, i + _CHUNK))) for i in range(0, tokens_read, _CHUNK)])
    keep = block.positions >= int(not use_first_position)
    if not bool(keep.any()):
        if not complete:
            raise ConfigError(
                f"memory_limit is {config.memory_limit} GB, which holds {tokens_read} tokens, all at first positions; "
                "raise it."
            )
        raise TextError(
            "Every token is at the first position of its context, which is left out; give longer texts, or set "
            "use_first_position."
        )
    for rows in keep.nonzero().flatten().split(_CHUNK):
        check_activations(block.take(rows), layers)
    largest_norm = None
    if config.max_norm_ratio is not None:
        largest_norm = config.max_norm_ratio * norms[keep].median(dim=0).values
        keep &= (norms <= largest_norm).all(1)
    block = keep_rows(block, keep)
    order = torch.randperm(block.size, generator=torch.Generator().manual_seed(config.seed))
    inputs, targets = statistics or _statistics(block, order[:_STATISTICS_TOKENS])
    sample = block.take(order[:_SAMPLE_TOKENS])
    logger.info(
        "%d of %d tokens are usable; %s.",
        block.size,
        tokens_read,
        "all data is in memory" if complete else "the data does not fit memory_limit and is read during training",
    )
    if complete:
        if block.size < config.batch_size:
            logger.warning(
                "batch_size is %d, but the data has only %d tokens; each batch holds all %d tokens.",
                config.batch_size,
                block.size,
                block.size,
            )
        return Prepared(block, block.size, block.size, largest_norm, inputs, targets, sample)
    tokens = None if store.n_tokens is None else int(store.n_tokens * block.size / tokens_read)
    half = max(1, capacity // 2 // config.batch_size) * config.batch_size
    return Prepared(None, tokens, min(half, tokens or half), largest_norm, inputs, targets, sample)


def storage_type(config: DataConfig) -> torch.dtype:
    """The type of activations in memory."""
    return torch.bfloat16 if config.storage_dtype == "bfloat16" else torch.float32


def _statistics(block: ActivationBatch, rows: Tensor) -> DataStatistics:
    n_layers, d_model = block.inputs.shape[1:]
    inputs, targets = StatisticsEstimator(n_layers, d_model), StatisticsEstimator(n_layers, d_model)
    for chunk in rows.split(_CHUNK):
        inputs.update(block.inputs[chunk])
        targets.update(block.targets[chunk])
    return DataStatistics(inputs.statistics(), targets.statistics())
