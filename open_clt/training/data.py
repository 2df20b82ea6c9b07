"""The data a transcoder is trained on: kept in memory if it fits, harvested anew each epoch if not.

The order of tokens follows from the seed and the epoch alone, so that training can go on from any step: batch ``n`` is
the same whoever asks for it, and whenever.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
from torch import Tensor

from open_clt.activations.buffer import (
    ActivationBatch,
    ActivationStore,
    MemoryStore,
    collect,
    input_norms,
    keep_rows,
    shuffle,
    without_outliers,
)
from open_clt.config import TrainingConfig
from open_clt.errors import TextError
from open_clt.models.standardisation import Statistics, StatisticsEstimator

logger = logging.getLogger(__name__)

_STATISTICS_TOKENS = 200_000
_SAMPLE_TOKENS = 4096
_CHUNK = 4096


class Prepared(NamedTuple):
    """Training data after one look at it."""

    store: ActivationStore
    """Where each epoch reads from: memory, or the original store once more."""
    tokens: int
    """Usable tokens of an epoch; an estimate if they are not in memory."""
    capacity: int
    """Tokens to mix at a time."""
    largest_norm: Float[Tensor, "layer"] | None
    """Norms above this make a token an outlier."""
    inputs: Statistics
    targets: Statistics
    sample: ActivationBatch
    """A few thousand random tokens, to set encoder biases from."""


def prepare(store: ActivationStore, config: TrainingConfig) -> Prepared:
    """Read a store once: find outliers, estimate statistics, and keep the tokens if all fit the memory limit."""
    dtype = torch.bfloat16 if config.storage_dtype == "bfloat16" else torch.float32
    block, complete = collect(store, max_bytes=config.memory_limit * 1e9, dtype=dtype)
    read = block.size
    norms = torch.cat([input_norms(block.take(slice(i, i + _CHUNK))) for i in range(0, read, _CHUNK)])
    keep = block.positions > 0 if config.skip_first_position else torch.ones(read, dtype=torch.bool)
    if not bool(keep.any()):
        raise TextError("Every token is the first of its context; give longer texts, or keep first positions.")
    largest = None
    if config.max_norm_ratio is not None:
        largest = config.max_norm_ratio * norms[keep].median(dim=0).values
        keep &= (norms <= largest).all(1)
    block = keep_rows(block, keep)
    order = torch.randperm(block.size, generator=torch.Generator().manual_seed(config.seed))
    inputs, targets = _statistics(block, order[:_STATISTICS_TOKENS])
    sample = block.take(order[:_SAMPLE_TOKENS])
    logger.info("%d of %d tokens are used; in memory: %s.", block.size, read, complete)
    if complete:
        return Prepared(MemoryStore([block]), block.size, block.size + 1, largest, inputs, targets, sample)
    tokens = int(store.n_tokens * block.size / read)
    return Prepared(store, tokens, read, largest, inputs, targets, sample)


def _statistics(block: ActivationBatch, rows: Tensor) -> tuple[Statistics, Statistics]:
    n_layers, d_model = block.inputs.shape[1:]
    inputs, targets = StatisticsEstimator(n_layers, d_model), StatisticsEstimator(n_layers, d_model)
    for some in rows.split(_CHUNK):
        inputs.update(block.inputs[some])
        targets.update(block.targets[some])
    return inputs.statistics(), targets.statistics()


@final
class ActivationDataModule(LightningDataModule):
    """Shuffled batches from a store of activations, without first positions and norm outliers.

    All epochs together are one long iteration for Lightning, ``steps`` batches of it.
    """

    def __init__(
        self, train: ActivationStore, config: TrainingConfig, *, held_out: ActivationStore | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.train = train
        self.held_out = held_out or MemoryStore([])
        self._prepared: Prepared | None = None

    @property
    def prepared(self) -> Prepared:
        """The data after its first reading, which happens when this is first asked for."""
        if self._prepared is None:
            self._prepared = prepare(self.train, self.config)
        return self._prepared

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.max_steps or self.config.epochs * self._steps_per_epoch

    def train_dataloader(self) -> TrainingBatches:
        """All batches of the training; Lightning saves and restores how far it got."""
        return TrainingBatches(self)

    def held_out_batches(self) -> Iterator[ActivationBatch]:
        """The held-out tokens, in order, filtered as those that were trained on."""
        return self._usable(self.held_out)

    def batches(self, start: int = 0) -> Iterator[ActivationBatch]:
        """Training batches from step ``start`` on, without end."""
        epoch, skipped = divmod(start, self._steps_per_epoch)
        while True:
            yield from islice(self._epoch(epoch), skipped, self._steps_per_epoch)
            epoch, skipped = epoch + 1, 0

    @property
    def _steps_per_epoch(self) -> int:
        return max(1, self.prepared.tokens // self.config.batch_size)

    def _epoch(self, epoch: int) -> Iterator[ActivationBatch]:
        """Full batches of one epoch; it starts over if the estimate of its length was too high."""
        size = min(self.config.batch_size, self.prepared.tokens)
        generator = torch.Generator().manual_seed((self.config.seed << 20) + epoch + 1)
        while True:
            usable = self._usable(self.prepared.store)
            batches = shuffle(usable, capacity=self.prepared.capacity, batch_size=size, generator=generator)
            yield from (batch for batch in batches if batch.size == size)

    def _usable(self, store: ActivationStore) -> Iterator[ActivationBatch]:
        return without_outliers(
            store,
            skip_first_position=self.config.skip_first_position,
            largest_norm=self.prepared.largest_norm,
        )


@final
class TrainingBatches:
    """The batches of a training, from a position that Lightning can store and set."""

    def __init__(self, data: ActivationDataModule) -> None:
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return self._data.steps

    def __iter__(self) -> Iterator[ActivationBatch]:
        for batch in islice(self._data.batches(self._position), len(self) - self._position):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches were handed out."""
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that were handed out before."""
        self._position = state_dict["position"]
