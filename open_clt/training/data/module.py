"""Training data: batches of activations, kept in memory if they fit, harvested during training if not.

Data that does not fit is read in blocks of half the memory limit: while training uses the tokens of one block in random
order, a thread harvests the next block. The order of the tokens depends on the seed only. The position in the data is
a ``DataState``; a resumed run starts there, and the language model does not read the earlier texts again.

Several processes that split batches take every n-th token of each batch. If the data is a dataset that does not fit in
memory, each process reads a share of its own instead, and mixes the tokens of that share; then a checkpoint holds the
state of every process.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from threading import Event
from typing import Any, NamedTuple, final

import torch
from lightning.pytorch import LightningDataModule

from open_clt.config import DataConfig
from open_clt.config.json import to_dict
from open_clt.data.another_process import InAnotherProcess
from open_clt.data.contexts import Place
from open_clt.data.harvest import (
    ActivationBatch,
    ActivationStore,
    Block,
    DivisibleStore,
    Harvest,
    MemoryStore,
    blocks,
    mixed,
    read_from,
    without_outliers,
)
from open_clt.data.prefetch import Ahead
from open_clt.errors import CheckpointError, ConfigError, TextError
from open_clt.training.data.preparation import DataStatistics, Prepared, prepare, storage_type
from open_clt.training.parallel.strategy import WHOLE, BatchShare, batch_share, gathered

_LENGTH_SETTINGS = ("steps", "max_steps", "epochs")
_FIXED_LENGTH = (
    "the length of a run is fixed, because warm-up, decay and annealing are shares of its steps and the learning rate "
    "has already followed them; "
)


class DataState(NamedTuple):
    """A position in the training data, from which a resumed run continues."""

    batches: int = 0
    """Batches used so far."""
    blocks: int = 0
    """Blocks before the current one; this index, with the seed, decides the random order of the current block."""
    given: int = 0
    """Batches of the current block used so far."""
    place: Place = Place()
    """Place in the store where the current block begins."""


class HarvestCost(NamedTuple):
    """Seconds that harvesting the activations took."""

    before: float
    """Seconds of the first reading of the data, before the first step."""
    meanwhile: float
    """Seconds that the harvesting thread worked during training."""
    waited: float
    """Seconds that training waited for the harvesting thread."""
    total: float
    """Seconds since the first batch was requested, for training and waiting together."""

    @property
    def share(self) -> float:
        """Share of the training time that was spent waiting for activations."""
        return self.waited / self.total if self.total else 0.0


@final
class ActivationDataModule(LightningDataModule):
    """Random batches from a store of activations, without norm outliers and, unless they are used, first positions.

    For Lightning, all epochs together are one iteration over ``steps * accumulation`` batches.
    """

    def __init__(
        self,
        train: ActivationStore,
        config: DataConfig,
        *,
        held_out: ActivationStore | None = None,
        use_first_position: bool = False,
        layers: tuple[int, ...] | None = None,
        accumulation: int = 1,
        source: dict[str, Any] | None = None,
        statistics: DataStatistics | None = None,
    ) -> None:
        """``use_first_position`` and ``layers`` are the settings of the transcoder's config.

        ``accumulation`` is the number of batches per step. ``statistics`` take the place of estimates. ``source``
        describes the origin of the activations in plain values; a resumed training run must have the same ``source``.
        """
        super().__init__()
        self.config = config
        self.train: ActivationStore = train
        self.held_out: ActivationStore = held_out or MemoryStore([])
        self.use_first_position = use_first_position
        self._layers = layers
        self.accumulation = accumulation
        self._settings = {**to_dict(config), **(source or {})}
        del self._settings["harvest_process"]  # the batches are the same
        self._harvest: ActivationStore = train
        if config.harvest_process and isinstance(train, Harvest):
            self._harvest = InAnotherProcess(train)
        self._statistics = statistics
        self._prepared: Prepared | None = None
        self._ahead: Ahead[Block] | None = None
        self._started: float | None = None
        self._preparation_seconds = self._worked = self._waited = 0.0

    @property
    def prepared(self) -> Prepared:
        """The data after its first reading, which happens at the first access to this property."""
        if self._prepared is None:
            started = time.perf_counter()
            self._prepared = prepare(
                self.train,
                self.config,
                use_first_position=self.use_first_position,
                layers=self._layers,
                statistics=self._statistics,
            )
            self._preparation_seconds = time.perf_counter() - started
        return self._prepared

    @property
    def steps(self) -> int:
        """Steps of the whole run; raises ConfigError if neither ``max_steps`` nor the size of an epoch is known."""
        if self.config.max_steps is not None:
            return self.config.max_steps
        if self.prepared.tokens is None:
            raise ConfigError(
                f"memory_limit is {self.config.memory_limit} GB, which the texts exceed, so the number of steps per "
                "epoch is unknown; set max_steps."
            )
        batches = self.config.epochs * max(1, self.prepared.tokens // self.config.batch_size)
        return max(1, batches // self.accumulation)

    @property
    def batch_size(self) -> int:
        """Tokens of each batch: ``batch_size`` of the config, or all tokens of a block if it has fewer."""
        return min(self.config.batch_size, self.prepared.block_size)

    @property
    def cost(self) -> HarvestCost:
        """The cost of harvesting so far."""
        total = 0.0 if self._started is None else time.perf_counter() - self._started
        ahead = self._ahead
        worked, waited = (ahead.worked, ahead.waited) if ahead else (0.0, 0.0)
        return HarvestCost(self._preparation_seconds, self._worked + worked, self._waited + waited, total)

    def train_dataloader(self) -> TrainingBatches:
        """All batches of the training run; Lightning saves and restores the position in them."""
        return TrainingBatches(self)

    def val_dataloader(self) -> HeldOutBatches:
        """The held-out tokens in batches of at most ``batch_size`` tokens."""
        return HeldOutBatches(self)

    def held_out_batches(self) -> Iterator[ActivationBatch]:
        """The held-out tokens in order, filtered in the same way as the training tokens."""
        for batch in map(self._usable, self.held_out):
            yield from (batch.take(rows) for rows in torch.arange(batch.size).split(self.config.batch_size))

    def divides(self, share: BatchShare) -> bool:
        """Whether each process reads tokens of its own, in place of its share of every batch."""
        return share.parts > 1 and self.prepared.kept is None and isinstance(self.train, DivisibleStore)

    def batches(
        self, state: DataState | None = None, share: BatchShare = WHOLE
    ) -> Generator[tuple[DataState, ActivationBatch]]:
        """Endless training batches, or a process's share of them, from a state on, each with the state after it."""
        state = state or DataState()
        share, own = (WHOLE, share) if self.divides(share) else (share, WHOLE)
        size = own.size_of(self.batch_size)
        with self._blocks(state.place, own) as blocks_read:
            for block_index, (place, tokens) in enumerate(blocks_read, start=state.blocks):
                # The order within a block depends on the seed and on the block's index only.
                generator = torch.Generator().manual_seed((self.config.seed << 20) + block_index + 1)
                full_batches = islice(mixed(tokens, batch_size=size, generator=generator), tokens.size // size)
                given = state.given if block_index == state.blocks else 0
                for batch in islice(full_batches, given, None):
                    given += 1
                    state = DataState(state.batches + 1, block_index, given, place)
                    yield state, share.of(batch)

    def close(self) -> None:
        """Stop the harvesting thread, if there is one."""
        if self._ahead is not None:
            self._ahead.close()
            self._worked += self._ahead.worked
            self._waited += self._ahead.waited
            self._ahead = None

    def release(self) -> None:
        """Give up the activations at the end of a run.

        A Trainer and this module refer to each other, so without this call the activations would stay in memory until
        Python's garbage collector runs.
        """
        self.close()
        self.train = self.held_out = self._harvest = MemoryStore([])
        self._prepared = None

    def state_dict(self) -> dict[str, Any]:
        """The settings that a resumed run must have, for a checkpoint."""
        return {"settings": self._settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise CheckpointError if the settings differ from those of the run to resume."""
        refuse_other_settings(state_dict["settings"], self._settings)

    @contextmanager
    def _blocks(self, start: Place, own: BatchShare) -> Generator[Iterator[Block]]:
        """Endless blocks from a place on: the data in memory, repeated, or blocks that are harvested one ahead."""
        self._started = self._started or time.perf_counter()
        if self.prepared.kept is not None:
            block = Block(Place(), self.prepared.kept)
            yield iter(lambda: block, None)
            return
        self.close()
        self._ahead = Ahead(lambda stopped: self._harvested(start, own, stopped))
        try:
            yield self._ahead
        finally:
            self.close()

    def _harvested(self, start: Place, own: BatchShare, stopped: Event) -> Iterator[Block]:
        """Blocks of one epoch after another, or of a process's own share of each, until ``stopped`` is set."""
        store = self._harvest
        if isinstance(store, DivisibleStore):
            store = store.share(own.part, own.parts, stopped.is_set)
        size, least = max(1, self.prepared.block_size // own.parts), own.size_of(self.batch_size)
        while not stopped.is_set():
            placed = takewhile(lambda _: not stopped.is_set(), read_from(store, start))
            tokens = 0
            for block in blocks(
                placed, size=size, usable=self._usable, used=start.used, dtype=storage_type(self.config)
            ):
                tokens += block.tokens.size
                yield block
            if start == Place() and tokens < least:
                raise TextError(
                    f"The data has {tokens} usable tokens, fewer than a batch of {least}; give more text, or lower "
                    "batch_size."
                )
            start = Place()

    def _usable(self, batch: ActivationBatch) -> ActivationBatch:
        """The tokens of a batch that are neither norm outliers nor, unless they are used, at first positions."""
        first_position = int(not self.use_first_position)
        largest_norm = self.prepared.largest_norm
        return without_outliers(batch, first_position=first_position, largest_norm=largest_norm, layers=self._layers)


@final
class TrainingBatches:
    """The batches of a training run, from a state that Lightning can save and restore."""

    def __init__(self, data: ActivationDataModule) -> None:
        self._data = data
        self._state = DataState()

    def __len__(self) -> int:
        return self._data.steps * self._data.accumulation

    def __iter__(self) -> Generator[ActivationBatch]:
        remaining = len(self) - self._state.batches
        batches = self._data.batches(self._state, batch_share(self._data.trainer))
        try:
            for state, batch in islice(batches, remaining):
                self._state = state
                yield batch
        finally:
            batches.close()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch, for a checkpoint; all processes must call this method."""
        state = {**self._state._asdict(), "place": list(self._state.place)}
        share = batch_share(self._data.trainer)
        return {**state, "shares": gathered(state, share)} if self._data.divides(share) else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position that ``state_dict`` returned.

        Raises CheckpointError if other numbers of processes divided the data.
        """
        share = batch_share(self._data.trainer)
        shares: list[dict[str, Any]] | None = state_dict.get("shares")
        if shares is not None or self._data.divides(share):
            shares = shares or [state_dict]
            if len(shares) != share.parts or not self._data.divides(share):
                raise CheckpointError(
                    f"The training run to resume divided its dataset over {len(shares)} processes, but now "
                    f"{share.parts} split its batches; resume with as many processes and the same memory_limit."
                )
            state_dict = shares[share.part]
        counts = {name: value for name, value in state_dict.items() if name != "place"}
        self._state = DataState(**counts, place=Place(*state_dict["place"]))


@final
class HeldOutBatches:
    """A data loader of the held-out tokens."""

    def __init__(self, data: ActivationDataModule) -> None:
        self._data = data

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self._data.held_out_batches()


def refuse_other_settings(stored: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise CheckpointError if the run to resume had other settings, or lacks a setting because it is older."""
    for name, value in ours.items():
        if name not in stored:
            raise CheckpointError(
                f"The training run to resume has no setting {name}, because an older OpenCLT began it; start a new run."
            )
        if stored[name] != value:
            raise CheckpointError(
                f"The training run to resume had {name} = {stored[name]!r}, but now it is {value!r}; "
                f"{_FIXED_LENGTH if name in _LENGTH_SETTINGS else ''}resume with the same settings, or start a new run."
            )
