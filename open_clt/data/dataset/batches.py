"""Batches of a dataset: its tokens in random order or in sequence, read one batch ahead in a thread.

    for batch in read("activations", 4096, epochs=3, seed=1):
        step(batch.inputs, batch.targets)

An epoch is a sequence of all tokens: the shards one after another, and the tokens of each. In random order, the order
of the shards and that of the tokens in each shard are functions of the seed and of the epoch. Processes divide the
sequence: it is cut into steps of ``world_size * batch_tokens`` tokens, and each process reads its part of each step. So
several processes together read in a step what one process with larger batches reads.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, groupby
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Int
from torch import Tensor

from open_clt.config.arguments import Count, NotNegative, Seed, checked_arguments
from open_clt.data.contexts import Place
from open_clt.data.dataset.manifest import Shard
from open_clt.data.dataset.reader import ActivationDataset, Tensors
from open_clt.data.dataset.shards import Rows, batch_of
from open_clt.data.harvest import ActivationBatch, Placed
from open_clt.data.prefetch import Ahead
from open_clt.errors import CheckpointError, ConfigError

Order: TypeAlias = Literal["random", "sequence"]
"""Order of the tokens: shards and their tokens at random, or as they are stored."""


@checked_arguments
def read(
    source: str | Path,
    batch_tokens: Count,
    *,
    epochs: Count = 1,
    order: Order = "random",
    seed: Seed = 0,
    rank: NotNegative = 0,
    world_size: Count = 1,
) -> DatasetBatches:
    """Read a dataset in a directory, or at an address such as ``http://127.0.0.1:8000/NAME/``, in batches.

    A batch has ``batch_tokens`` tokens; the last one of an epoch may be smaller. Inputs and targets have the type of
    the shards; int8 becomes float32. In each epoch, the processes ``rank`` of ``world_size`` together read every token
    once. They get equal numbers of batches, and the sizes of the last batches differ by at most one token. The number
    of batches differs, by one, only if an epoch has fewer tokens than there are processes, or if ``batch_tokens`` is 1.

    The shards of a server are fetched one ahead, and kept in a cache (``remote.folder``). Raises CheckpointError, which
    names the file, if the dataset is missing, unfinished or damaged, ServiceError if its server does not answer, and
    ConfigError if ``rank`` is not below ``world_size``.
    """
    if rank >= world_size:
        raise ConfigError(f"rank is {rank}; it must be below world_size, which is {world_size}.")
    dataset = ActivationDataset(source)
    return DatasetBatches(dataset, Reading(batch_tokens, epochs, order, seed, rank, world_size))


class Reading(NamedTuple):
    """Settings of one process that reads a dataset."""

    batch_tokens: int
    epochs: int
    order: Order
    seed: int
    rank: int
    world_size: int


@final
class DatasetBatches:
    """The batches of one process, which are a store of activations; ``len`` counts the batches of all epochs.

    Each iteration begins with the first batch, except for the first iteration after ``load_state_dict``.
    """

    def __init__(self, dataset: ActivationDataset, reading: Reading) -> None:
        self.dataset = dataset
        self.reading = reading
        self._start = self._given = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dataset!r}, {self.reading})"

    def __len__(self) -> int:
        return self.reading.epochs * self._per_epoch

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all batches."""
        return self.reading.epochs * sum(len(self._span(index)) for index in range(self._per_epoch))

    def __iter__(self) -> Iterator[ActivationBatch]:
        start, self._start = self._start, 0
        for place, batch in self.read_from(Place(start)):
            self._given = place.item + 1
            yield batch

    def read_from(self, place: Place) -> Generator[Placed]:
        """Yield the batches from a place on, whose ``item`` is the number of batches before it in all epochs."""
        ahead = Ahead(lambda stopped: self._read(place.item, stopped))
        try:
            yield from ahead
        finally:
            ahead.close()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded, and the settings with which reading can go on there."""
        return {"batches": self._given, "settings": self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration begin at a position that ``state_dict`` returned.

        Raises CheckpointError if the dataset or a setting that decides the batches is another one.
        """
        stored = state_dict["settings"]
        for name, value in self._settings().items():
            if stored[name] != value:
                raise CheckpointError(
                    f"Reading of {self.dataset.source} cannot go on, because {name} was {stored[name]!r} and is now "
                    f"{value!r}; give the same settings and the same dataset, or begin again."
                )
        self._start = self._given = int(state_dict["batches"])

    def _settings(self) -> dict[str, Any]:
        """What decides the order of the tokens, and how they are cut into batches."""
        contents = repr([(shard.tokens, shard.sha256) for shard in self.dataset.manifest.shards])
        digest = hashlib.sha256(contents.encode()).hexdigest()
        decisive = ("batch_tokens", "order", "seed", "world_size")
        return {**{name: getattr(self.reading, name) for name in decisive}, "dataset": digest}

    @property
    def _per_epoch(self) -> int:
        """Number of batches of this process in an epoch; its part of the last one may be empty."""
        steps = -(-len(self.dataset) // self._at_once)
        return steps - (steps > 0 and not self._span(steps - 1))

    @property
    def _at_once(self) -> int:
        """Number of tokens that all processes read in a step."""
        return self.reading.batch_tokens * self.reading.world_size

    def _span(self, step: int) -> range:
        """The places in the sequence of an epoch's tokens that this process reads in a step."""
        begin, end = self._begin(step), self._begin(step + 1)
        rank, size = self.reading.rank, end - begin
        first, last = (begin + size * part // self.reading.world_size for part in (rank, rank + 1))
        return range(first, last)

    def _begin(self, step: int) -> int:
        """The place where a step begins; the last one has a token for each process, if the one before can lend some."""
        tokens, processes = len(self.dataset), self.reading.world_size
        begin = min(step * self._at_once, tokens)
        is_last = begin < tokens <= begin + self._at_once
        return min(begin, tokens - processes) if is_last and step > 0 and self.reading.batch_tokens > 1 else begin

    def _read(self, first: int, stopped: Event) -> Iterator[Placed]:
        """Read batches, from a number of batches on, until ``stopped`` is set."""
        shards = self.dataset.manifest.shards
        opened = self.dataset.opened((shards[index] for index in self._shards(first)), stopped.is_set)
        tensors: Tensors = {}
        current = None
        with closing(opened):
            for number, sequence, parts in self._plan(first):
                if stopped.is_set():
                    return
                rows: list[Rows] = []
                for part in parts:
                    if part.shard != current:
                        tensors, current = next(opened), part.shard
                    rows.append(Rows(tensors, sequence.rows(part), part.size))
                yield Placed(Place(number), batch_of(rows))

    def _plan(self, first: int) -> Iterator[tuple[int, _Sequence, list[_Part]]]:
        """The number of each batch from a number on, the sequence of its epoch, and the parts of shards in it."""
        epoch, sequence = -1, None
        for number in range(first, len(self)):
            if sequence is None or number // self._per_epoch != epoch:
                epoch = number // self._per_epoch
                sequence = _Sequence(self.dataset.manifest.shards, self.reading, epoch)
            yield number, sequence, sequence.parts(self._span(number % self._per_epoch))

    def _shards(self, first: int) -> Iterator[int]:
        """The shards that are opened one after another for the batches from a number on."""
        parts = (part.shard for _, _, parts in self._plan(first) for part in parts)
        return (shard for shard, _ in groupby(parts))


class _Part(NamedTuple):
    """Tokens of one shard that are read for a batch."""

    shard: int
    begin: int
    """Place of the first of them in the order of the shard's tokens."""
    size: int


@final
class _Sequence:
    """The sequence of an epoch's tokens: the order of the shards, and that of the tokens in each shard."""

    def __init__(self, shards: Sequence[Shard], reading: Reading, epoch: int) -> None:
        self._sizes = [shard.tokens for shard in shards]
        self._order, self._seeds = list(range(len(shards))), None
        if reading.order == "random":
            generator = torch.Generator().manual_seed((reading.seed << 20) + epoch + 1)
            self._order = torch.randperm(len(shards), generator=generator).tolist()
            self._seeds = torch.randint(2**62, (len(shards),), generator=generator).tolist()
        self._begins = list(accumulate((self._sizes[shard] for shard in self._order), initial=0))
        self._rows: tuple[int, Tensor] | None = None

    def parts(self, span: range) -> list[_Part]:
        """The shards and the rows at some places of the sequence."""
        parts: list[_Part] = []
        place = span.start
        while place < span.stop:
            index = bisect_right(self._begins, place) - 1
            end = min(span.stop, self._begins[index + 1])
            parts.append(_Part(self._order[index], place - self._begins[index], end - place))
            place = end
        return parts

    def rows(self, part: _Part) -> Int[Tensor, "chosen"] | slice:
        """The rows of a shard that a part holds."""
        chosen = slice(part.begin, part.begin + part.size)
        return chosen if self._seeds is None else self._shuffled(part.shard, self._seeds[part.shard])[chosen]

    def _shuffled(self, shard: int, seed: int) -> Int[Tensor, "token"]:
        """The rows of a shard in random order; that of the last shard is kept."""
        if self._rows is None or self._rows[0] != shard:
            order = torch.randperm(self._sizes[shard], generator=torch.Generator().manual_seed(seed))
            self._rows = shard, order
        return self._rows[1]
