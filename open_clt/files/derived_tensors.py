"""Derived tensors: stored tensors that are scaled, or joined, when their rows are read.

A layout may scale each dimension of what a transcoder writes, or each feature, or split a tensor over several files. A
derived tensor has the methods of a stored tensor, so functions that use tensors treat both alike; slicing it reads
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.errors import CheckpointError
from open_clt.files.stored_tensors import Key, StoredTensor
from open_clt.finite import check_finite


@runtime_checkable
class Table(Protocol):
    """A tensor in files, of which rows of the first axis are read: a stored tensor, or one derived from others."""

    @property
    def name(self) -> str:
        """The name of the tensor, for messages."""
        ...

    @property
    def place(self) -> object:
        """The file of the tensor, for messages."""
        ...

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored numbers."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a part of the tensor is in a remote file."""
        ...

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors whose rows are read for this one; factors are not among them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Table:
        """The part of the tensor that an index of slices selects; nothing is read."""
        ...

    def rows(self, index: Int[Tensor, "chosen"]) -> Tensor:
        """Read some rows of the first axis; raises CheckpointError if a number is not finite."""
        ...

    def read(self) -> Tensor:
        """Read the whole tensor; whether its numbers are finite is not checked."""
        ...


@final
class ScaledTensor:
    """A tensor that is multiplied by factors in float32 when it is read, along its last axis or along its rows.

    ``factors`` reads them: one for each entry of the last axis or, with ``of_rows``, one for each row of a tensor whose
    rows from ``begin`` on are ``table``.
    """

    def __init__(
        self,
        table: Table,
        factors: Callable[[], Float[Tensor, "entry"]],
        *,
        of_rows: bool = False,
        begin: int = 0,
    ) -> None:
        self._table, self._factors, self._of_rows, self._begin = table, factors, of_rows, begin
        self.name, self.place = table.name, table.place

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self._table.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored numbers; those that are read are of type float32."""
        return self._table.dtype

    @property
    def is_remote(self) -> bool:
        """Whether the tensor is in a remote file."""
        return self._table.is_remote

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors whose rows are scaled."""
        return self._table.parts

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, key: Key) -> ScaledTensor:
        """The part of the tensor that slices of all axes but the last select; nothing is read."""
        part, first = self._table[key], key[0] if isinstance(key, tuple) else key
        assert part.shape[-1:] == self.shape[-1:], "the last axis of a scaled tensor is not sliced"
        assert isinstance(first, slice), "a scaled tensor is indexed by a slice"
        begin, _, step = first.indices(len(self))
        assert step == 1, "the slice of a scaled tensor has no steps"
        return ScaledTensor(part, self._factors, of_rows=self._of_rows, begin=self._begin + begin)

    def rows(self, index: Int[Tensor, "chosen"]) -> Tensor:
        """Read and scale some rows of the first axis; raises CheckpointError if a number is not finite."""
        rows = self._scaled(self._table.rows(index), index.cpu())
        check_finite(rows, f"The tensor {self.name!r} of {self.place}, scaled,", error=CheckpointError)
        return rows

    def read(self) -> Tensor:
        """Read and scale the whole tensor; whether its numbers are finite is not checked."""
        return self._scaled(self._table.read(), torch.arange(len(self)))

    def _scaled(self, rows: Tensor, index: Int[Tensor, "chosen"]) -> Tensor:
        factors = self._factors()
        if self._of_rows:
            factors = factors[self._begin + index].view(-1, *[1] * (rows.ndim - 1))
        return rows.float() * factors


@final
class JoinedTensor:
    """Tensors that are joined along their first axis, such as the shards of a larger one."""

    def __init__(self, parts: Sequence[Table]) -> None:
        assert len({part.shape[1:] for part in parts}) == 1, "joined tensors differ along their first axis only"
        self._parts = tuple(parts)
        self.name = parts[0].name

    @property
    def place(self) -> object:
        """The file of the first part, and the number of other files."""
        others = len(self._parts) - 1
        return f"{self._parts[0].place} and {others} more" if others else self._parts[0].place

    @property
    def shape(self) -> torch.Size:
        """The shape of the joined tensor."""
        return torch.Size((sum(len(part) for part in self._parts), *self._parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stored numbers, or one that holds those of all parts if their types differ."""
        return reduce(torch.promote_types, [part.dtype for part in self._parts])

    @property
    def is_remote(self) -> bool:
        """Whether a part is in a remote file."""
        return any(part.is_remote for part in self._parts)

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors of all joined ones."""
        return tuple(stored for part in self._parts for stored in part.parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Key) -> JoinedTensor:
        """The part of the tensor that slices select; nothing is read."""
        first, *others = key if isinstance(key, tuple) else (key,)
        assert isinstance(first, slice), "a joined tensor is indexed by a slice"
        begin, end, step = first.indices(len(self))
        assert step == 1, "the slice of a joined tensor has no steps"
        chosen: list[Table] = []
        for part in self._parts:
            inside = slice(min(max(0, begin), len(part)), min(max(0, end), len(part)))
            chosen.append(part[(inside, *others)])
            begin, end = begin - len(part), end - len(part)
        return JoinedTensor([part for part in chosen if len(part)] or chosen[:1])

    def rows(self, index: Int[Tensor, "chosen"]) -> Tensor:
        """Read some rows of the first axis; raises CheckpointError if a number is not finite."""
        index = index.cpu()
        rows = torch.empty(len(index), *self.shape[1:], dtype=self.dtype)
        begin = 0
        for part in self._parts:
            inside = (index >= begin) & (index < begin + len(part))
            if bool(inside.any()):
                rows[inside] = part.rows(index[inside] - begin).to(rows.dtype)
            begin += len(part)
        return rows

    def read(self) -> Tensor:
        """Read the whole tensor; whether its numbers are finite is not checked."""
        return torch.cat([part.read() for part in self._parts])
