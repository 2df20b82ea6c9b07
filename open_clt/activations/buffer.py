"""Harvest activations and shuffle them: two generators, composed.

    shuffle(without_outliers(harvest(model, contexts, ...), ...), capacity=..., batch_size=..., generator=...)

A store of activations knows how many tokens it has, and yields them as ``ActivationBatch``es whenever it is iterated:
from memory (``MemoryStore``), or by running the language model again (``Harvest``). A batch is tokens from anywhere;
which token and which position of its context each was is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from open_clt.activations.language_model import LanguageModel
from open_clt.config import InputHook
from open_clt.errors import TextError


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
    def n_tokens(self) -> int:
        """Number of tokens that one iteration yields."""
        ...

    def __iter__(self) -> Iterator[ActivationBatch]: ...


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
        contexts: Int[Tensor, "context position"],
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
    def n_tokens(self) -> int:
        """Tokens of all contexts, first positions included."""
        return self.contexts.numel()

    def __iter__(self) -> Iterator[ActivationBatch]:
        return harvest(
            self.model,
            self.contexts,
            input_hook=self.input_hook,
            target_hook=self.target_hook,
            batch_size=self.batch_size,
        )


@torch.no_grad()
def harvest(
    model: LanguageModel,
    contexts: Int[Tensor, "context position"],
    *,
    input_hook: InputHook,
    target_hook: str,
    batch_size: int = 16,
) -> Iterator[ActivationBatch]:
    """Run the language model over contexts, ``batch_size`` at a time, and yield its activations, on the CPU."""
    for rows in contexts.split(batch_size):
        captured = model.capture(rows, input_hook, target_hook, with_logits=False)
        positions = torch.arange(rows.shape[1]).expand(rows.shape)
        yield ActivationBatch(
            captured.inputs.flatten(0, 1).cpu(),
            captured.targets.flatten(0, 1).cpu(),
            rows.flatten().cpu(),
            positions.flatten(),
        )


def without_outliers(
    batches: Iterable[ActivationBatch],
    *,
    skip_first_position: bool,
    largest_norm: Float[Tensor, "layer"] | None = None,
) -> Iterator[ActivationBatch]:
    """Leave out position 0, and tokens whose input norm exceeds ``largest_norm`` in any layer: massive activations."""
    for batch in batches:
        keep = torch.ones(batch.size, dtype=torch.bool)
        if skip_first_position:
            keep &= batch.positions > 0
        if largest_norm is not None:
            keep &= (input_norms(batch) <= largest_norm).all(1)
        yield batch if bool(keep.all()) else batch.take(keep)


def input_norms(batch: ActivationBatch) -> Float[Tensor, "batch layer"]:
    """Norm of the inputs of each token and layer."""
    return torch.linalg.vector_norm(batch.inputs, dim=2, dtype=torch.float32)


def shuffle(
    batches: Iterable[ActivationBatch], *, capacity: int, batch_size: int, generator: torch.Generator
) -> Iterator[ActivationBatch]:
    """Mix tokens across contexts: fill a pool of ``capacity`` tokens, hand out a random half of it, refill.

    Memory stays near ``capacity`` tokens (half as much again while refilling). Batches hold ``batch_size`` tokens, the
    last one what is left. If everything fits the pool, the order is a uniform permutation.
    """
    pool: list[ActivationBatch] = []
    held = 0
    for batch in batches:
        pool.append(batch)
        held += batch.size
        if held >= max(capacity, 2 * batch_size):
            mixed = concatenate(pool)
            order = torch.randperm(held, generator=generator)
            given = held // 2 // batch_size * batch_size
            yield from (mixed.take(rows) for rows in order[:given].split(batch_size))
            pool = [mixed.take(order[given:])]
            held -= given
    if held:
        mixed = concatenate(pool)
        order = torch.randperm(held, generator=generator)
        yield from (mixed.take(rows) for rows in order.split(batch_size))


def concatenate(batches: Sequence[ActivationBatch]) -> ActivationBatch:
    """One batch of all tokens; a single batch is returned as it is, not copied."""
    if len(batches) == 1:
        return batches[0]
    return ActivationBatch(*(torch.cat(field) for field in zip(*batches, strict=True)))


class Collected(NamedTuple):
    """Tokens in one block of memory, and whether they are all there were."""

    block: ActivationBatch
    complete: bool


def collect(store: ActivationStore, *, max_bytes: float, dtype: torch.dtype = torch.float32) -> Collected:
    """Read tokens into one block of memory, up to ``max_bytes``; inputs and targets are stored as ``dtype``.

    Raises TextError if there is no token at all.
    """
    block: ActivationBatch | None = None
    held = capacity = 0
    complete = True
    for batch in store:
        if block is None:
            per_token = 2 * batch.inputs[0].numel() * dtype.itemsize
            capacity = min(store.n_tokens, max(1, int(max_bytes // per_token)))
            block = _room_for(batch, capacity, dtype)
        taken = min(batch.size, capacity - held)
        for stored, new in zip(block, batch, strict=True):
            stored[held : held + taken] = new[:taken]
        held += taken
        complete = taken == batch.size
        if not complete:
            break
    if block is None or held == 0:
        raise TextError("There is no token to train on; give more text, or leave fewer tokens out.")
    return Collected(block.take(slice(held)), complete)


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
