"""What accompanies a training: a progress bar, and checkpoints to resume from."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast, final

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from open_clt.training.module import StepMetrics, TranscoderModule

logger = logging.getLogger(__name__)


@final
class ProgressBar(Callback):
    """One line: steps, time, loss, FVU, L0, and the share of dead features."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self._every = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar; a resumed training starts where it was."""
        self._every = max(1, trainer.max_steps // 1000)
        task = self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, metrics="")
        self._task = task
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; numbers are read from the device only when they are shown."""
        latest = cast(TranscoderModule, pl_module).latest
        if latest is not None and (trainer.global_step % self._every == 0 or trainer.global_step == trainer.max_steps):
            self._progress.update(self._task, completed=trainer.global_step, metrics=_described(latest))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._progress.stop()


def _described(metrics: StepMetrics) -> str:
    loss, fvu, l0, dead_share = (value.item() for value in metrics)
    return f"loss {loss:.3g}  FVU {fvu:.3f}  L0 {l0:.1f}  dead {dead_share:.1%}"


@final
class ResumeCheckpoint(Callback):
    """Saves the whole state of a training every so many steps, and when it is stopped early."""

    def __init__(self, directory: Path, every: int) -> None:
        self.directory = directory
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step is complete: weights, optimizer and data then agree."""
        stopped = trainer.should_stop and trainer.global_step < trainer.max_steps
        if stopped or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.directory)


@contextmanager
def stop_on_interrupt(trainer: Trainer) -> Generator[None]:
    """Let Ctrl-C end a training after the step it is in; a second Ctrl-C ends it at once.

    Lightning would end the process instead. Signals reach the main thread only: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted: stopping after this step. Press Ctrl-C again to stop at once.")
        trainer.should_stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
