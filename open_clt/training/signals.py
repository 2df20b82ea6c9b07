"""Signals during training: Ctrl-C, SIGTERM and SIGHUP stop a run after a complete step, so that it can be resumed."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from open_clt.training.step.module import TranscoderModule
from open_clt.training.step.optimization import step_is_complete

logger = logging.getLogger(__name__)

_REQUESTS: dict[int, int] = {signal.SIGINT: 1, signal.SIGTERM: 2**16}
"""What a process that received a signal adds to the sum over all processes; the sum tells the signals apart."""
if hasattr(signal, "SIGHUP"):  # Windows does not have it
    _REQUESTS[signal.SIGHUP] = 2**32


@contextmanager
def stop_on_signals(trainer: Trainer) -> Generator[StopAfterStep]:
    """Make Ctrl-C, SIGTERM and SIGHUP stop the training after the current step; the next one has its former effect.

    The block yields a callback that says whether a signal stopped the training. After SIGTERM or SIGHUP, the end of the
    block sends the signal again, to the handler that the process had before; the checkpoint is written by then. Only
    the main thread receives signals, so in other threads nothing changes.
    """
    stop = StopAfterStep(trainer)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    callbacks = cast(list[Callback], cast(Any, trainer).callbacks)
    callbacks.insert(0, stop)
    stop.handle()
    try:
        yield stop
    except SIGTERMException:  # Lightning's own end, if SIGTERM came before the first step
        stop.terminated_by = signal.SIGTERM
    finally:
        callbacks.remove(stop)
        stop.restore()
    if stop.terminated_by is not None:
        signal.raise_signal(stop.terminated_by)


@final
class StopAfterStep(Callback):
    """Stops the training at the end of a step, because a run cannot resume in the middle of a step.

    Several processes may receive a signal at different steps, or only one of them receives it. They all stop after the
    same step: the first complete step at whose end any of them has received it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._requests = 0
        self._former: dict[int, Any] = {}
        self.stopped = False
        """Whether a signal has stopped the training, in this process or in another one."""
        self.terminated_by: int | None = None
        """SIGTERM or SIGHUP, if a process has received it."""

    def handle(self) -> None:
        """Handle the signals from now on."""
        former = {number: signal.getsignal(number) for number in _REQUESTS}
        ignored = {number for number, handler in former.items() if handler is signal.SIG_IGN} - {signal.SIGINT}
        self._former = {number: handler for number, handler in former.items() if number not in ignored}
        for number in self._former:
            signal.signal(number, self._request)

    def restore(self) -> None:
        """Restore the handlers that the process had before."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if sys.stderr.isatty():
            logger.warning("Stopping after this step. Press Ctrl-C again to stop at once.")
        self._requests = _REQUESTS[number]
        if self._trainer.world_size == 1:
            self._note(self._requests)
            self._trainer.should_stop |= step_is_complete(self._trainer)
        self.restore()
        if self._former[signal.SIGINT] is signal.SIG_IGN:  # a background job, which received SIGINT all the same
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, requests: int) -> None:
        self.stopped |= requests > 0
        for number, request in _REQUESTS.items():
            if number != signal.SIGINT and requests >= request:
                self.terminated_by = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler of SIGTERM, which would stop the training in the middle of a step."""
        if signal.SIGTERM in self._former and not self._requests:
            signal.signal(signal.SIGTERM, self._request)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask all processes for signals, and stop at the end of a step if any of them has received one."""
        peers = cast(TranscoderModule, pl_module).transcoder.peers
        requests = peers.sum_features(peers.sum_batch(torch.tensor(self._requests, device=pl_module.device)))
        self._note(int(requests))
        if self.stopped and step_is_complete(trainer):
            trainer.should_stop = True
