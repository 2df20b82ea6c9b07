"""The data a transcoder is trained on: kept in memory if it fits, harvested while training goes on if not.

What does not fit is read in blocks, two of which fit the memory limit: one is trained on, its tokens mixed, while the
next is harvested. The order of tokens follows from the seed alone, and where training is in the data is four numbers
and a place (``DataState``): it can go on from there, and the language model need not read again what lies before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from threading import Event
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
from torch import Tensor

from open_clt.config import DataConfig
from open_clt.config.json import to_dict
from open_clt.data.contexts import Place
from open_clt.data.harvest import (
    ActivationBatch,
    ActivationStore,
    Block,
    MemoryStore,
    blocks,
    collect,
    input_norms,
    keep_rows,
    mixed,
    read_from,
    without_outliers,
)
from open_clt.data.prefetch import Ahead
from open_clt.errors import CheckpointError, ConfigError, TextError
from open_clt.training.parallel.strategy import batch_share
from open_clt.transcoders.standardisation import Statistics, StatisticsEstimator

logger = logging.getLogger(__name__)

_STATISTICS_TOKENS = 200_000
_SAMPLE_TOKENS = 4096
_CHUNK = 4096
_LENGTHS = ("steps", "max_steps", "epochs")
_LENGTH = (
    "a training cannot be made longer or shorter, since warm-up, decay and annealing are shares of its steps and the "
    "learning rate has already followed them: "
)


class Prepared(NamedTuple):
    """Training data after one look at it."""

    kept: ActivationBatch | None
    """All usable tokens, if they fit the memory limit."""
    tokens: int | None
    """Usable tokens of an epoch; an estimate if they are not kept, None if the store does not know how many it has."""
    block_size: int
    """Tokens to mix at a time."""
    largest_norm: Float[Tensor, "layer"] | None
    """Norms above this make a token an outlier."""
    inputs: Statistics
    targets: Statistics
    sample: ActivationBatch
    """A few thousand random tokens, to set encoder biases from."""


def prepare(store: ActivationStore, config: DataConfig, *, use_first_position: bool = False) -> Prepared:
    """Read a store once: find outliers, estimate statistics, and keep the tokens if all fit the memory limit.

    Of a store that does not fit, no more is read than the statistics need. First positions are left out unless
    ``use_first_position``.
    """
    limit, dtype = config.memory_limit * 1e9, _dtype(config)
    block, complete, capacity = collect(store, max_bytes=limit, enough=_STATISTICS_TOKENS, dtype=dtype)
    read = block.size
    norms = torch.cat([input_norms(block.take(slice(i, i + _CHUNK))) for i in range(0, read, _CHUNK)])
    keep = block.positions >= int(not use_first_position)
    if not bool(keep.any()):
        raise TextError("Every token is the first of its context; give longer texts, or use_first_position.")
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
        if block.size < config.batch_size:
            logger.warning("batch_size is %d, but a batch is all %d tokens there are.", config.batch_size, block.size)
        return Prepared(block, block.size, block.size, largest, inputs, targets, sample)
    tokens = None if store.n_tokens is None else int(store.n_tokens * block.size / read)
    half = max(1, capacity // 2 // config.batch_size) * config.batch_size
    return Prepared(None, tokens, min(half, tokens or half), largest, inputs, targets, sample)


def _dtype(config: DataConfig) -> torch.dtype:
    return torch.bfloat16 if config.storage_dtype == "bfloat16" else torch.float32


def _statistics(block: ActivationBatch, rows: Tensor) -> tuple[Statistics, Statistics]:
    n_layers, d_model = block.inputs.shape[1:]
    inputs, targets = StatisticsEstimator(n_layers, d_model), StatisticsEstimator(n_layers, d_model)
    for some in rows.split(_CHUNK):
        inputs.update(block.inputs[some])
        targets.update(block.targets[some])
    return inputs.statistics(), targets.statistics()


class DataState(NamedTuple):
    """Where training is in its data."""

    batches: int = 0
    """Batches handed out."""
    blocks: int = 0
    """Blocks begun before this one; it numbers their random orders."""
    given: int = 0
    """Batches of this block handed out."""
    place: Place = Place()
    """Where this block begins."""


class HarvestCost(NamedTuple):
    """What activations cost, in seconds."""

    before: float
    """For the first look at the data, before the first step."""
    meanwhile: float
    """While training went on, in a thread beside it."""
    waited: float
    """That training waited for that thread."""
    total: float
    """From the first batch on: training and waiting."""

    @property
    def share(self) -> float:
        """Share of the steps' time that is waiting for activations."""
        return self.waited / self.total if self.total else 0.0


@final
class ActivationDataModule(LightningDataModule):
    """Mixed batches from a store of activations, without norm outliers, and without first positions unless used.

    All epochs together are one long iteration for Lightning, of ``accumulation`` batches for each of ``steps`` steps.
    """

    def __init__(
        self,
        train: ActivationStore,
        config: DataConfig,
        *,
        held_out: ActivationStore | None = None,
        use_first_position: bool = False,
        accumulation: int = 1,
        source: dict[str, Any] | None = None,
    ) -> None:
        """``use_first_position`` is what the transcoder's config says.

        ``source`` says in plain values where the activations come from; a resumed training run must share it.
        """
        super().__init__()
        self.config = config
        self.train = train
        self.held_out = held_out or MemoryStore([])
        self.use_first_position = use_first_position
        self.accumulation = accumulation
        self._settings = {**to_dict(config), **(source or {})}
        self._prepared: Prepared | None = None
        self._ahead: Ahead[Block] | None = None
        self._began: float | None = None
        self._spent_before = self._worked = self._waited = 0.0

    @property
    def prepared(self) -> Prepared:
        """The data after its first reading, which happens when this is first asked for."""
        if self._prepared is None:
            started = time.perf_counter()
            self._prepared = prepare(self.train, self.config, use_first_position=self.use_first_position)
            self._spent_before = time.perf_counter() - started
        return self._prepared

    @property
    def steps(self) -> int:
        """Steps of the whole training; raises ConfigError if that is ``epochs`` times nobody knows how many."""
        if self.config.max_steps is not None:
            return self.config.max_steps
        if self.prepared.tokens is None:
            raise ConfigError(
                "The texts do not fit memory_limit, so nobody knows how many steps an epoch has; set max_steps."
            )
        batches = self.config.epochs * max(1, self.prepared.tokens // self.config.batch_size)
        return max(1, batches // self.accumulation)

    @property
    def batch_size(self) -> int:
        """Tokens of each batch: as many as were asked for, or all there are."""
        return min(self.config.batch_size, self.prepared.block_size)

    @property
    def cost(self) -> HarvestCost:
        """What activations have cost so far."""
        total = 0.0 if self._began is None else time.perf_counter() - self._began
        ahead = self._ahead
        worked, waited = (ahead.worked, ahead.waited) if ahead else (0.0, 0.0)
        return HarvestCost(self._spent_before, self._worked + worked, self._waited + waited, total)

    def train_dataloader(self) -> TrainingBatches:
        """All batches of the training; Lightning saves and restores how far it got."""
        return TrainingBatches(self)

    def val_dataloader(self) -> HeldOutBatches:
        """The held-out tokens, at most ``batch_size`` at a time."""
        return HeldOutBatches(self)

    def held_out_batches(self) -> Iterator[ActivationBatch]:
        """The held-out tokens, in order, filtered as those that were trained on."""
        for batch in map(self._usable, self.held_out):
            yield from (batch.take(rows) for rows in torch.arange(batch.size).split(self.config.batch_size))

    def batches(self, state: DataState | None = None) -> Generator[tuple[DataState, ActivationBatch]]:
        """Training batches from some state on, without end, each with the state after it."""
        state = state or DataState()
        size = self.batch_size
        with self._blocks(state.place) as read:
            for number, (place, tokens) in enumerate(read, start=state.blocks):
                # The same tokens in the same order for the same number, whoever asks, and whenever.
                generator = torch.Generator().manual_seed((self.config.seed << 20) + number + 1)
                full = islice(mixed(tokens, batch_size=size, generator=generator), tokens.size // size)
                given = state.given if number == state.blocks else 0
                for batch in islice(full, given, None):
                    given += 1
                    state = DataState(state.batches + 1, number, given, place)
                    yield state, batch

    def close(self) -> None:
        """Stop harvesting."""
        if self._ahead is not None:
            self._ahead.close()
            self._worked += self._ahead.worked
            self._waited += self._ahead.waited
            self._ahead = None

    def state_dict(self) -> dict[str, Any]:
        """The settings that a resumed training must share."""
        return {"settings": self._settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises CheckpointError if the settings differ from those of the training to resume."""
        refuse_other_settings(state_dict["settings"], self._settings)

    @contextmanager
    def _blocks(self, start: Place) -> Generator[Iterator[Block]]:
        """Blocks of all epochs from a place on: what is in memory, again and again, or harvested one ahead."""
        self._began = self._began or time.perf_counter()
        if self.prepared.kept is not None:
            kept = Block(Place(), self.prepared.kept)
            yield iter(lambda: kept, None)
            return
        self.close()
        self._ahead = Ahead(lambda stopped: self._harvested(start, stopped))
        try:
            yield self._ahead
        finally:
            self.close()

    def _harvested(self, start: Place, stopped: Event) -> Iterator[Block]:
        """Blocks of one epoch after another, until ``stopped``."""
        size = self.prepared.block_size
        while not stopped.is_set():
            read = takewhile(lambda _: not stopped.is_set(), read_from(self.train, start))
            tokens = 0
            for block in blocks(read, size=size, usable=self._usable, used=start.used, dtype=_dtype(self.config)):
                tokens += block.tokens.size
                yield block
            if start == Place() and tokens < self.batch_size:
                raise TextError(f"The data holds {tokens} tokens, less than a batch; give more, or lower batch_size.")
            start = Place()

    def _usable(self, batch: ActivationBatch) -> ActivationBatch:
        largest = self.prepared.largest_norm
        return without_outliers(batch, first_position=int(not self.use_first_position), largest_norm=largest)


@final
class TrainingBatches:
    """The batches of a training, from a state that Lightning can store and set."""

    def __init__(self, data: ActivationDataModule) -> None:
        self._data = data
        self._state = DataState()

    def __len__(self) -> int:
        return self._data.steps * self._data.accumulation

    def __iter__(self) -> Iterator[ActivationBatch]:
        left = len(self) - self._state.batches
        batches = self._data.batches(self._state)
        share = batch_share(self._data.trainer)
        try:
            for state, batch in islice(batches, left):
                self._state = state
                yield share.of(batch)
        finally:
            batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the batches that were handed out ended."""
        return {**self._state._asdict(), "place": list(self._state.place)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that were handed out before."""
        numbers = {name: value for name, value in state_dict.items() if name != "place"}
        self._state = DataState(**numbers, place=Place(*state_dict["place"]))


@final
class HeldOutBatches:
    """The held-out tokens, as a loader of batches."""

    def __init__(self, data: ActivationDataModule) -> None:
        self._data = data

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self._data.held_out_batches()


def refuse_other_settings(stored: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise CheckpointError if a training run to resume had other settings, or an older version's."""
    for name, value in ours.items():
        if name not in stored:
            raise CheckpointError(
                f"The training run to resume was begun by an older OpenCLT, which had no setting {name}; start anew."
            )
        if stored[name] != value:
            raise CheckpointError(
                f"The training to resume had {name} = {stored[name]!r}, now it is {value!r}; "
                f"{_LENGTH if name in _LENGTHS else ''}resume with the same settings, or start anew."
            )
