"""Harvesting: activations of a language model, read from a store in blocks and mixed into batches.

    for block in blocks(read_from(Harvest(model, contexts, ...), place), size=..., usable=...):   # one in memory
        for batch in mixed(block.tokens, batch_size=..., generator=...):                # tokens of many documents

A store yields the same ``ActivationBatch``es in the same order each time it is iterated. A ``MemoryStore`` holds them
in memory. A ``Harvest`` runs the language model again, and can start at any ``Place``. The rows of a batch may come
from any contexts: a batch records the token and the position of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.config import InputHook
from open_clt.data.contexts import ContextStream, PackedContexts, Place
from open_clt.errors import NotFiniteError, TextError
from open_clt.finite import find_not_finite
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr

_BEGINNING = Place()


class ActivationBatch(NamedTuple):
    """Training data of a transcoder: inputs and targets of every layer, for a batch of tokens."""

    inputs: Float[Tensor, "batch layer d_model"]
    targets: Float[Tensor, "batch layer d_model"]
    tokens: Int[Tensor, "batch"]
    """Token id of each row."""
    positions: Int[Tensor, "batch"]
    """Position of each row in its context."""

    @property
    def size(self) -> int:
        """Number of tokens. (``len`` counts the fields of a NamedTuple.)"""
        return self.inputs.shape[0]

    def take(self, rows: Tensor | slice) -> ActivationBatch:
        """Return the rows that an index, a mask or a slice selects."""
        return ActivationBatch(*(field[rows] for field in self))

    __repr__ = short_repr


@runtime_checkable
class ActivationStore(Protocol):
    """A source of activations; each iteration yields the same tokens in the same order."""

    @property
    def n_tokens(self) -> int | None:
        """Number of tokens that one iteration yields, or None if the number is not known in advance."""
        ...

    def __iter__(self) -> Iterator[ActivationBatch]: ...


class Placed(NamedTuple):
    """A batch of a store, and the place where the batch begins."""

    place: Place
    batch: ActivationBatch

    __repr__ = short_repr


@runtime_checkable
class SeekableStore(ActivationStore, Protocol):
    """A store that can be read from any place on, without reading what lies before the place."""

    def read_from(self, place: Place) -> Iterator[Placed]:
        """Yield the batches from ``place`` on; ``place.used`` is ignored, and left to the caller."""
        ...


@runtime_checkable
class ExtensiveStore(ActivationStore, Protocol):
    """A store that may be larger than memory, and that says so before its activations are read."""

    def holds_more_than(self, tokens: int) -> bool:
        """Whether the store has more than this number of tokens."""
        ...


@runtime_checkable
class DivisibleStore(ActivationStore, Protocol):
    """A store that several processes can divide, so that each of them reads its own tokens only."""

    def share(self, part: int, parts: int, is_stopped: Callable[[], bool]) -> ActivationStore:
        """One of ``parts`` shares, which together hold every token once; their sizes differ by at most one token.

        Reading it ends soon after ``is_stopped`` returns True.
        """
        ...


class Pending(NamedTuple):
    """A batch of a store whose size is known before it is computed."""

    place: Place
    size: int
    compute: Callable[[], ActivationBatch]

    __repr__ = short_repr


def pending_from(store: ActivationStore, place: Place) -> Iterator[Pending]:
    """The batches of a store from a place on, such that those of a ``Harvest`` are computed when they are asked for."""
    if isinstance(store, Harvest):
        return store.pending_from(place)
    return (Pending(found, batch.size, lambda batch=batch: batch) for found, batch in read_from(store, place))


def read_from(store: ActivationStore, place: Place) -> Iterator[Placed]:
    """Read a store from a place on; what lies before it is read and discarded if the store cannot skip it."""
    if isinstance(store, SeekableStore):
        return store.read_from(place)
    indexed = islice(enumerate(store), place.item, None)
    return (Placed(Place(index), batch) for index, batch in indexed)


@final
class MemoryStore:
    """A store of activations that are already in memory."""

    def __init__(self, batches: Sequence[ActivationBatch]) -> None:
        self.batches = batches

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all batches."""
        return sum(batch.size for batch in self.batches)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return iter(self.batches)


@final
class Harvest:
    """A store that computes the activations of a language model on contexts each time it is iterated."""

    def __init__(
        self,
        model: LanguageModel,
        contexts: Int[Tensor, "context position"] | ContextStream,
        *,
        input_hook: InputHook,
        target_hook: str,
        layers: tuple[int, ...] | None = None,
        batch_size: int = 16,
    ) -> None:
        """``layers`` are the layers whose activations are computed, in rising order; None is all of them."""
        self.model = model
        self.contexts = contexts
        self.input_hook: InputHook = input_hook
        self.target_hook = target_hook
        self.layers = layers
        self.batch_size = batch_size

    @property
    def n_tokens(self) -> int | None:
        """Number of tokens of all contexts, first positions included, or None if the contexts come from a stream."""
        return self.contexts.numel() if isinstance(self.contexts, Tensor) else None

    def holds_more_than(self, tokens: int) -> bool:
        """Whether there are more than ``tokens`` tokens; a stream is read until this is known, without the model."""
        if self.n_tokens is not None:
            return self.n_tokens > tokens
        counts = accumulate(chunk.contexts.numel() for chunk in self._chunks(_BEGINNING))
        return any(count > tokens for count in counts)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return (batch for _, batch in self.read_from(_BEGINNING))

    def read_from(self, place: Place) -> Iterator[Placed]:
        """Yield the activations from a place on; the language model does not run on what lies before the place."""
        return (Placed(found, compute()) for found, _, compute in self.pending_from(place))

    def pending_from(self, place: Place) -> Iterator[Pending]:
        """Yield the batches from a place on, on which the language model runs when they are computed."""
        hooks = {"input_hook": self.input_hook, "target_hook": self.target_hook}
        run = partial(harvest, self.model, **hooks, layers=self.layers)
        for chunk in self._chunks(place):
            yield Pending(chunk.place, chunk.contexts.numel(), partial(run, chunk.contexts))

    def _chunks(self, place: Place) -> Iterator[PackedContexts]:
        if not isinstance(self.contexts, Tensor):
            return self.contexts.chunks(self.batch_size, place._replace(used=0))
        starts = range(place.item, self.contexts.shape[0], self.batch_size)
        return (PackedContexts(Place(start), self.contexts[start : start + self.batch_size]) for start in starts)


@torch.no_grad()
def harvest(
    model: LanguageModel,
    contexts: Int[Tensor, "context position"],
    *,
    input_hook: InputHook,
    target_hook: str,
    layers: Sequence[int] | None = None,
) -> ActivationBatch:
    """Run the language model on contexts, and return its activations on the CPU; ``layers`` chooses some layers."""
    captured = model.capture(contexts, input_hook, target_hook, layers=layers)
    positions = torch.arange(contexts.shape[1]).expand(contexts.shape)
    return ActivationBatch(
        captured.inputs.flatten(0, 1).cpu(),
        captured.targets.flatten(0, 1).cpu(),
        contexts.flatten().cpu(),
        positions.flatten(),
    )


def check_activations(batch: ActivationBatch, layers: Sequence[int] | None = None) -> None:
    """Raise NotFiniteError, which names layer, token and position, if inputs or targets hold NaN or infinity.

    ``layers`` are the language model's layers along the axis ``layer``, if they are not all layers.
    """
    for name, activations in (("inputs", batch.inputs), ("targets", batch.targets)):
        if (wrong := find_not_finite(activations)) is not None:
            row, place, _ = wrong.place
            layer = place if layers is None else layers[place]
            raise NotFiniteError(
                f"The activations of the language model ({name} of layer {layer}) are {wrong.value} for token "
                f"{int(batch.tokens[row])} at position {int(batch.positions[row])} of its context; load the model in "
                "float32, or leave out the texts that hold this token."
            )


def without_outliers(
    batch: ActivationBatch,
    *,
    first_position: int,
    largest_norm: Float[Tensor, "layer"] | None = None,
    layers: Sequence[int] | None = None,
) -> ActivationBatch:
    """Leave out tokens with massive activations.

    These are the tokens at positions before ``first_position``, and the tokens whose inputs have, in any layer, a norm
    above ``largest_norm`` of that layer. Raises NotFiniteError if an activation from ``first_position`` on is not
    finite; the error names the language model's layer, which ``layers`` has for each layer of the batch.
    """
    keep = batch.positions >= first_position
    check_activations(batch if bool(keep.all()) else batch.take(keep), layers)
    if largest_norm is not None:
        keep &= (input_norms(batch) <= largest_norm).all(1)
    return batch if bool(keep.all()) else batch.take(keep)


def input_norms(batch: ActivationBatch) -> Float[Tensor, "batch layer"]:
    """Return the norm of the inputs of each token and layer."""
    return torch.linalg.vector_norm(batch.inputs, dim=2, dtype=torch.float32)


class Block(NamedTuple):
    """Consecutive tokens of a store, to be mixed with one another, and the place from which to read them again."""

    place: Place
    tokens: ActivationBatch

    __repr__ = short_repr


def blocks(
    read: Iterable[Placed],
    *,
    size: int,
    usable: Callable[[ActivationBatch], ActivationBatch],
    used: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Block]:
    """Cut the usable tokens of the batches that are read into blocks of ``size`` tokens; the last block may be smaller.

    ``usable`` returns the part of a batch to use. The first ``used`` usable tokens of the first batch are left out.
    Memory holds one block and one batch of the store, besides the blocks that the caller keeps.
    """
    room: ActivationBatch | None = None
    begin, held = _BEGINNING, 0
    for place, batch in read:
        tokens = usable(batch)
        while used < tokens.size:
            if room is None:
                room, held, begin = _room_for(tokens, size, dtype), 0, place._replace(used=place.used + used)
            taken = min(tokens.size - used, size - held)
            for stored, new in zip(room, tokens, strict=True):
                stored[held : held + taken] = new[used : used + taken]
            held, used = held + taken, used + taken
            if held == size:
                yield Block(begin, room)
                room = None
        used = 0
    if room is not None:
        yield Block(begin, room.take(slice(held)))


def mixed(block: ActivationBatch, *, batch_size: int, generator: torch.Generator) -> Iterator[ActivationBatch]:
    """Yield the tokens of a block in batches, in random order, without a copy of the block; the last may be smaller."""
    order = torch.randperm(block.size, generator=generator)
    return (block.take(rows) for rows in order.split(batch_size))


def concatenate(batches: Sequence[ActivationBatch]) -> ActivationBatch:
    """Join batches into one; a single batch is returned as it is, not copied."""
    if len(batches) == 1:
        return batches[0]
    return ActivationBatch(*(torch.cat(field) for field in zip(*batches, strict=True)))


class Collected(NamedTuple):
    """Tokens of a store in one block of memory, and whether they are all tokens of the store."""

    block: ActivationBatch
    complete: bool
    capacity: int
    """Number of tokens that fit in memory."""

    __repr__ = short_repr


def collect(
    store: ActivationStore, *, max_bytes: float, enough: int | None = None, dtype: torch.dtype = torch.float32
) -> Collected:
    """Read tokens of a store into one block of at most ``max_bytes``; inputs and targets are stored as ``dtype``.

    If the tokens of an ``ExtensiveStore`` do not all fit, at most ``enough`` of them are read. Raises TextError if the
    store has no tokens.
    """
    block: ActivationBatch | None = None
    held = capacity = room = 0
    complete = True
    for batch in store:
        if block is None:
            per_token = 2 * batch.inputs[0].numel() * dtype.itemsize
            capacity = max(1, int(max_bytes // per_token))
            room = capacity if store.n_tokens is None else min(capacity, store.n_tokens)
            if enough is not None and isinstance(store, ExtensiveStore) and store.holds_more_than(capacity):
                room = min(room, enough)
            block = _room_for(batch, room, dtype)
        taken = min(batch.size, room - held)
        for stored, new in zip(block, batch, strict=True):
            stored[held : held + taken] = new[:taken]
        held += taken
        complete = taken == batch.size
        if not complete:
            break
    if block is None or held == 0:
        raise TextError("There are no tokens to train on; give more text, or leave fewer tokens out.")
    return Collected(block.take(slice(held)), complete, capacity)


def _room_for(batch: ActivationBatch, capacity: int, dtype: torch.dtype) -> ActivationBatch:
    """Return an unwritten batch of ``capacity`` tokens; the system commits only the memory that is written."""
    shape = (capacity, *batch.inputs.shape[1:])
    tokens, positions = (torch.empty(capacity, dtype=torch.long) for _ in range(2))
    return ActivationBatch(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), tokens, positions)


def keep_rows(block: ActivationBatch, keep: Bool[Tensor, "batch"]) -> ActivationBatch:
    """Return the rows where ``keep`` holds, moved together in place, because a second block would double the memory."""
    held = 0
    for rows in keep.nonzero().flatten().split(4096):
        for field in block:
            field[held : held + rows.shape[0]] = field[rows]
        held += rows.shape[0]
    return block.take(slice(held))
