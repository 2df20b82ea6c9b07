"""Harvest activations and mix them: stores, blocks, batches.

    for block in blocks(read_from(Harvest(model, contexts, ...), place), size=..., usable=...):   # one in memory
        for batch in mixed(block.tokens, batch_size=..., generator=...):                # tokens of many documents

A store yields its tokens as ``ActivationBatch``es whenever it is iterated, always the same: from memory
(``MemoryStore``), or by running the language model again (``Harvest``), from any ``Place`` on. A batch is tokens from
anywhere; which token and which position of its context each was is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.config import InputHook
from open_clt.data.contexts import ContextStream, PackedContexts, Place
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel

_BEGINNING = Place()


class ActivationBatch(NamedTuple):
    """What a transcoder learns from: inputs and targets of every layer, for a batch of tokens."""

    inputs: Float[Tensor, "batch layer d_model"]
    targets: Float[Tensor, "batch layer d_model"]
    tokens: Int[Tensor, "batch"]
    """Token id of each row."""
    positions: Int[Tensor, "batch"]
    """Position of each row in its context."""

    @property
    def size(self) -> int:
        """Number of tokens (``len`` of a NamedTuple counts its fields)."""
        return self.inputs.shape[0]

    def take(self, rows: Tensor | slice) -> ActivationBatch:
        """Some of the rows: by index, mask or slice."""
        return ActivationBatch(*(field[rows] for field in self))


@runtime_checkable
class ActivationStore(Protocol):
    """Where activations come from; each iteration gives the same tokens in the same order."""

    @property
    def n_tokens(self) -> int | None:
        """Number of tokens that one iteration yields; None if it is not known before the end."""
        ...

    def __iter__(self) -> Iterator[ActivationBatch]: ...


class Placed(NamedTuple):
    """A batch of a store, and the place where it begins."""

    place: Place
    batch: ActivationBatch


@runtime_checkable
class SeekableStore(ActivationStore, Protocol):
    """A store that need not be read from its beginning."""

    def read_from(self, place: Place) -> Iterator[Placed]:
        """The batches from ``place`` on; ``place.used`` is the reader's business."""
        ...


def read_from(store: ActivationStore, place: Place) -> Iterator[Placed]:
    """Read a store from a place on; what lies before it is read and thrown away where the store cannot do better."""
    if isinstance(store, SeekableStore):
        return store.read_from(place)
    numbered = islice(enumerate(store), place.item, None)
    return (Placed(Place(number), batch) for number, batch in numbered)


@final
class MemoryStore:
    """Activations that are in memory already."""

    def __init__(self, batches: Sequence[ActivationBatch]) -> None:
        self.batches = batches

    @property
    def n_tokens(self) -> int:
        """Tokens of all batches."""
        return sum(batch.size for batch in self.batches)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return iter(self.batches)


@final
class Harvest:
    """Activations of a language model on some contexts, computed anew whenever it is iterated."""

    def __init__(
        self,
        model: LanguageModel,
        contexts: Int[Tensor, "context position"] | ContextStream,
        *,
        input_hook: InputHook,
        target_hook: str,
        batch_size: int = 16,
    ) -> None:
        self.model = model
        self.contexts = contexts
        self.input_hook: InputHook = input_hook
        self.target_hook = target_hook
        self.batch_size = batch_size

    @property
    def n_tokens(self) -> int | None:
        """Tokens of all contexts, first positions included; None if they come from a stream."""
        return self.contexts.numel() if isinstance(self.contexts, Tensor) else None

    def holds_more_than(self, tokens: int) -> bool:
        """Whether ``n_tokens`` is larger; where nobody knows it, texts are read as far as needed, without the model."""
        if self.n_tokens is not None:
            return self.n_tokens > tokens
        read = accumulate(chunk.contexts.numel() for chunk in self._chunks(_BEGINNING))
        return any(count > tokens for count in read)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return (batch for _, batch in self.read_from(_BEGINNING))

    def read_from(self, place: Place) -> Iterator[Placed]:
        """The activations from a place on: the language model reads nothing that lies before it."""
        for chunk in self._chunks(place):
            rows = harvest(self.model, chunk.contexts, input_hook=self.input_hook, target_hook=self.target_hook)
            yield Placed(chunk.place, rows)

    def _chunks(self, place: Place) -> Iterator[PackedContexts]:
        if not isinstance(self.contexts, Tensor):
            return self.contexts.chunks(self.batch_size, place._replace(used=0))
        starts = range(place.item, self.contexts.shape[0], self.batch_size)
        return (PackedContexts(Place(i), self.contexts[i : i + self.batch_size]) for i in starts)


@torch.no_grad()
def harvest(
    model: LanguageModel, contexts: Int[Tensor, "context position"], *, input_hook: InputHook, target_hook: str
) -> ActivationBatch:
    """Run the language model over some contexts; its activations, on the CPU."""
    captured = model.capture(contexts, input_hook, target_hook, with_logits=False)
    positions = torch.arange(contexts.shape[1]).expand(contexts.shape)
    return ActivationBatch(
        captured.inputs.flatten(0, 1).cpu(),
        captured.targets.flatten(0, 1).cpu(),
        contexts.flatten().cpu(),
        positions.flatten(),
    )


def without_outliers(
    batch: ActivationBatch, *, first_position: int, largest_norm: Float[Tensor, "layer"] | None = None
) -> ActivationBatch:
    """Leave out massive activations: positions before ``first_position``, and norms above a layer's ``largest_norm``.

    A token is left out if the norm of its inputs is too large in any layer.
    """
    keep = batch.positions >= first_position
    if largest_norm is not None:
        keep &= (input_norms(batch) <= largest_norm).all(1)
    return batch if bool(keep.all()) else batch.take(keep)


def input_norms(batch: ActivationBatch) -> Float[Tensor, "batch layer"]:
    """Norm of the inputs of each token and layer."""
    return torch.linalg.vector_norm(batch.inputs, dim=2, dtype=torch.float32)


class Block(NamedTuple):
    """Consecutive tokens of a store, to be mixed with one another, and where to begin to read them again."""

    place: Place
    tokens: ActivationBatch


def blocks(
    read: Iterable[Placed],
    *,
    size: int,
    usable: Callable[[ActivationBatch], ActivationBatch],
    used: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Block]:
    """Cut what is ``usable`` of the tokens that are read into blocks of ``size``, the last one what is left.

    ``used`` usable tokens at the beginning are left out. Memory holds one block (beside those that were handed out and
    are still held) and one batch of the store.
    """
    room: ActivationBatch | None = None
    begin, held = _BEGINNING, 0
    for place, batch in read:
        kept = usable(batch)
        while used < kept.size:
            if room is None:
                room, held, begin = _room_for(kept, size, dtype), 0, place._replace(used=used)
            taken = min(kept.size - used, size - held)
            for stored, new in zip(room, kept, strict=True):
                stored[held : held + taken] = new[used : used + taken]
            held, used = held + taken, used + taken
            if held == size:
                yield Block(begin, room)
                room = None
        used = 0
    if room is not None:
        yield Block(begin, room.take(slice(held)))


def mixed(block: ActivationBatch, *, batch_size: int, generator: torch.Generator) -> Iterator[ActivationBatch]:
    """Batches of a block in random order, without a copy of it; the last one is what is left."""
    order = torch.randperm(block.size, generator=generator)
    return (block.take(rows) for rows in order.split(batch_size))


def concatenate(batches: Sequence[ActivationBatch]) -> ActivationBatch:
    """One batch of all tokens; a single batch is returned as it is, not copied."""
    if len(batches) == 1:
        return batches[0]
    return ActivationBatch(*(torch.cat(field) for field in zip(*batches, strict=True)))


class Collected(NamedTuple):
    """Tokens in one block of memory, and whether they are all there were."""

    block: ActivationBatch
    complete: bool
    capacity: int
    """Tokens that would have fitted."""


def collect(
    store: ActivationStore, *, max_bytes: float, enough: int | None = None, dtype: torch.dtype = torch.float32
) -> Collected:
    """Read tokens into one block of memory, up to ``max_bytes``; inputs and targets are stored as ``dtype``.

    Not more than ``enough`` are read of a store whose tokens do not all fit, if that can be known beforehand. Raises
    TextError if there is no token at all.
    """
    block: ActivationBatch | None = None
    held = capacity = room = 0
    complete = True
    for batch in store:
        if block is None:
            per_token = 2 * batch.inputs[0].numel() * dtype.itemsize
            capacity = max(1, int(max_bytes // per_token))
            room = capacity if store.n_tokens is None else min(capacity, store.n_tokens)
            if enough is not None and isinstance(store, Harvest) and store.holds_more_than(capacity):
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
        raise TextError("There is no token to train on; give more text, or leave fewer tokens out.")
    return Collected(block.take(slice(held)), complete, capacity)


def _room_for(batch: ActivationBatch, capacity: int, dtype: torch.dtype) -> ActivationBatch:
    """Empty memory for ``capacity`` tokens like these; what is never written is never committed by the system."""
    shape = (capacity, *batch.inputs.shape[1:])
    tokens, positions = (torch.empty(capacity, dtype=torch.long) for _ in range(2))
    return ActivationBatch(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), tokens, positions)


def keep_rows(block: ActivationBatch, keep: Bool[Tensor, "batch"]) -> ActivationBatch:
    """The rows where ``keep`` holds, moved together in place: a second block would double the memory."""
    held = 0
    for rows in keep.nonzero().flatten().split(4096):
        for field in block:
            field[held : held + rows.shape[0]] = field[rows]
        held += rows.shape[0]
    return block.take(slice(held))
