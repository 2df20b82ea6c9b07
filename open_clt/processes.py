"""Processes: a job that torchrun starts several times shares its work, and the first process gathers the results.

torchrun --nproc-per-node 2 -m open_clt features --model gpt2 --transcoder DIRECTORY --text FILE
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from torch import Tensor

_PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: each works on its share of a text until it is done."""


@final
@dataclass(frozen=True)
class Processes:
    """This process, among those that share a job."""

    rank: int = 0
    """Number of this process."""
    count: int = 1
    """Number of processes."""
    local_rank: int = field(default=0, compare=False)
    """Number of this process among those of its machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process gathers and writes the results."""
        return self.rank == 0

    def work_on(self, number: int) -> bool:
        """Whether this process does the part of the work with this number."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Wait until all processes have come to this call; raises RuntimeError if one of them ends before."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def add_up(self, *tensors: Tensor) -> None:
        """Replace the numbers of each tensor by their sums over all processes, in all processes."""
        if self.count > 1:
            from torch import distributed

            for tensor in tensors:
                distributed.all_reduce(tensor)

    def gather(self, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """In the first process, yield the tensors of each other process; in the others, send them.

        The tensors of all processes have the same types and numbers of axes.
        """
        import torch
        from torch import distributed

        for other in range(1, self.count):
            if self.is_first:
                received: list[Tensor] = []
                for mine in tensors:
                    shape = torch.zeros(mine.ndim, dtype=torch.long)
                    distributed.recv(shape, other)
                    theirs = mine.new_empty(shape.tolist())
                    distributed.recv(theirs, other)
                    received.append(theirs)
                yield received
            elif self.rank == other:
                for mine in tensors:
                    distributed.send(torch.tensor(mine.shape, dtype=torch.long), 0)
                    distributed.send(mine.contiguous(), 0)


ALONE = Processes()
"""One process, which does all the work."""


@contextmanager
def joined_processes() -> Generator[Processes]:
    """Join the processes that torchrun started with this one; without torchrun, this process works alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), local_rank)
        distributed.barrier()  # a process that ends early would end the others
    finally:
        distributed.destroy_process_group()
