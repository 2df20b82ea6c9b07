"""Another process: activations that a language model computes there, handed over through shared memory.

Training on the fly uses it in place of its harvesting thread's own forward passes, which share Python's lock with the
training loop. The other process loads the language model by its name and computes one batch ahead. Batches and their
order are those of the harvest in this process, bit for bit. The process ends with its reader, and with this process.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, final

import torch
from torch import multiprocessing

from open_clt.config import InputHook, TextsConfig
from open_clt.data.contexts import ContextStream, Place
from open_clt.data.harvest import ActivationBatch, Harvest, Placed
from open_clt.data.texts import TextSource
from open_clt.errors import ConfigError, OpenCLTError, ResourceError, one_line
from open_clt.language.language_model import load_language_model

_WAIT = 0.2
"""Seconds between two looks at whether the other process still runs."""
_BLOCKED = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
"""Signals that terminals and schedulers send to all processes of a job; this process ends the other one."""


@final
@dataclass(frozen=True)
class _Recipe:
    """What the other process needs to compute the batches of a harvest."""

    model: str
    device: str
    dtype: str
    contexts: torch.Tensor | tuple[TextSource, int, TextsConfig]
    input_hook: InputHook
    target_hook: str
    layers: tuple[int, ...] | None
    batch_size: int
    threads: int

    def harvest(self) -> Harvest:
        """The same harvest, in the process that calls this method."""
        torch.set_num_threads(self.threads)
        model = load_language_model(self.model, device=self.device, dtype=self.dtype)
        contexts = self.contexts
        if not isinstance(contexts, torch.Tensor):
            texts, context_length, config = contexts
            contexts = ContextStream(texts, model, context_length, config)
        hooks: dict[str, Any] = {"input_hook": self.input_hook, "target_hook": self.target_hook}
        return Harvest(model, contexts, **hooks, layers=self.layers, batch_size=self.batch_size)


@final
class InAnotherProcess:
    """A store of the batches of a harvest, which another process computes; each reader has a process of its own."""

    def __init__(self, harvest: Harvest) -> None:
        """Raises ConfigError if the texts cannot be sent to another process."""
        model, contexts = harvest.model, harvest.contexts
        self.n_tokens = harvest.n_tokens
        self._recipe = _Recipe(
            model=model.name,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            contexts=contexts.cpu() if isinstance(contexts, torch.Tensor) else contexts.recipe,
            input_hook=harvest.input_hook,
            target_hook=harvest.target_hook,
            layers=harvest.layers,
            batch_size=harvest.batch_size,
            threads=torch.get_num_threads(),
        )
        try:
            ForkingPickler.dumps(self._recipe)
        except Exception as error:  # pickle raises errors of many types
            raise ConfigError(
                f"harvest_process is True, but the texts cannot be sent to another process ({one_line(str(error))}); "
                "give a list of texts or a file, or set harvest_process to False."
            ) from error

    def __iter__(self) -> Iterator[ActivationBatch]:
        return (batch for _, batch in self.read_from(Place()))

    def read_from(self, place: Place) -> Generator[Placed]:
        """Yield the batches from a place on; raises ResourceError if the other process ends without a message."""
        with _started(self._recipe, place) as (process, connection):
            while (answer := _received(process, connection)) is not None:
                connection.send(None)  # asks for the next batch
                yield Placed(answer[0], ActivationBatch(*answer[1]))


@contextmanager
def _started(recipe: _Recipe, place: Place) -> Generator[tuple[BaseProcess, Connection]]:
    """Start the other process, and end it after the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_compute, args=(recipe, place, theirs), daemon=True, name="harvest")
    if os.name == "posix":
        resource_tracker.ensure_running()  # the first process would start it, and that unblocks signals
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED) if hasattr(signal, "pthread_sigmask") else None
    try:
        process.start()  # a process inherits the blocked signals
    finally:
        if former is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _received(process: BaseProcess, connection: Connection) -> tuple[Place, tuple[torch.Tensor, ...]] | None:
    """The next batch of the other process, or None after the last one; raises the error that ended the process."""
    try:
        while not connection.poll(_WAIT):
            if not process.is_alive() and not connection.poll():
                raise EOFError
        answer = connection.recv()
    except (EOFError, OSError) as error:
        process.join(1)
        raise ResourceError(
            "The process that harvests activations has ended without a message "
            f"(exit status {process.exitcode}), as when the system kills it because memory is short; free memory, or "
            "set harvest_process to False, and resume from the last checkpoint."
        ) from error
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _compute(recipe: _Recipe, place: Place, connection: Connection) -> None:
    """Send batches, each when it is asked for; the first one is sent at once. This is what the other process runs."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for index, (found, batch) in enumerate(recipe.harvest().read_from(place)):
            if index > 0:
                connection.recv()
            connection.send((found, tuple(batch)))
        connection.recv()
        connection.send(None)
    except OpenCLTError as error:
        connection.send(error)
    except EOFError:
        return  # the reader has ended
    except Exception:  # noqa: BLE001  (the reader raises it)
        connection.send(RuntimeError(f"The process that harvests activations failed:\n{traceback.format_exc()}"))
    connection.poll(None)  # tensors that were sent are lost with the process, so the reader ends it


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
