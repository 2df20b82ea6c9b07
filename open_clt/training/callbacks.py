"""What accompanies a training: a progress bar, numbers for loggers, checkpoints to resume from, and when to stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from open_clt import files
from open_clt.errors import ConfigError
from open_clt.training.data import ActivationDataModule, refuse_other_settings
from open_clt.training.step.module import StepMetrics, TranscoderModule
from open_clt.training.step.optimization import step_is_complete
from open_clt.transcoders.make import own_architecture

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
class StepLog(Callback):
    """Gives the numbers of each step to the loggers, and with them the share of time spent waiting for activations."""

    _rate = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take down the learning rate: after the step it is that of the next."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the numbers on; Lightning decides how often they are written."""
        latest = cast(TranscoderModule, pl_module).latest
        if latest is None or not step_is_complete(trainer):
            return
        data = cast(ActivationDataModule, cast(Any, trainer).datamodule)
        pl_module.log_dict({**latest._asdict(), "learning_rate": self._rate, "harvest_share": data.cost.share})


@final
class StopAtL0(Callback):
    """Ends a training once as few features are active as wanted: the mean L0 a layer of ``window`` steps."""

    def __init__(self, l0: float | None = None, window: int = 100) -> None:
        """``l0`` None lets it go on to its end."""
        if window < 1 or (l0 is not None and l0 <= 0):
            raise ConfigError(f"l0 is {l0} and window {window}; l0 must be above 0 and window at least 1.")
        self.l0 = l0
        self._recent: deque[float] = deque(maxlen=window)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where a step is complete."""
        latest = cast(TranscoderModule, pl_module).latest
        if self.l0 is None or latest is None:
            return
        self._recent.append(latest.l0.item())
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) == self._recent.maxlen and mean <= self.l0 and step_is_complete(trainer):
            logger.info("L0 is %.1f, at most %g: training ends after %d steps.", mean, self.l0, trainer.global_step)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The L0 of the steps it looks at."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._recent.extend(state_dict["recent"])


@final
class Checkpoints(Checkpoint):
    """Saves the whole state of a training in a directory, to resume from: weights, optimizer, place in the data.

    ``last`` is written every so many steps and when training stops early, ``best`` whenever the held-out FVU is the
    lowest so far, and ``step-N`` too if all are to be kept. A training that ended has its ``last`` only if asked to.

    Lightning calls a ``Checkpoint`` after all other callbacks, so whatever stops a training (Ctrl-C, a time limit, a
    target L0, a callback of the user's own) has said so by then. Where a step of several batches is not complete, it
    has to wait for that: gradients of half a step cannot be resumed from.
    """

    def __init__(
        self, directory: Path, every: int, *, best: bool = False, keep_all: bool = False, at_end: bool = False
    ) -> None:
        self.last = directory / "last"
        self.every = every
        self.best = best
        self._noted = directory / "best" / "held_out_fvu"
        self.keep_all = keep_all
        self.at_end = at_end
        self.lowest = float("inf")
        self._saved = -1
        self._to_stop = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step is complete: weights, optimizer and data then agree."""
        self._stop_or_wait(trainer)
        step = trainer.global_step
        ended = step >= trainer.max_steps
        if step_is_complete(trainer) and (step % self.every == 0 or (self.at_end if ended else trainer.should_stop)):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best so far; and the last, if what was measured ends the training."""
        if trainer.sanity_checking:
            return
        fvu = trainer.callback_metrics.get("held_out_fvu")
        if self.best and fvu is not None and float(fvu) < self.lowest:
            self.lowest = float(fvu)
            trainer.save_checkpoint(self.last.with_name("best"))
            if trainer.is_global_zero:
                files.write_text(self._noted, repr(self.lowest))
        self._stop_or_wait(trainer)
        if trainer.should_stop and trainer.global_step < trainer.max_steps:
            self._save(trainer)

    def _stop_or_wait(self, trainer: Trainer) -> None:
        """Put off to the end of a step what stops the training in the middle of it."""
        self._to_stop |= trainer.should_stop
        trainer.should_stop = self._to_stop and step_is_complete(trainer)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved:
            return
        trainer.save_checkpoint(self.last)
        if self.keep_all:
            trainer.save_checkpoint(self.last.with_name(f"step-{step}"))
        self._saved = step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep which class of the user's own is trained, if it is one."""
        checkpoint["architecture"] = _architecture(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises CheckpointError if the training to resume was of another class, or of one made otherwise."""
        refuse_other_settings(
            {"architecture": checkpoint.get("architecture")}, {"architecture": _architecture(pl_module)}
        )

    def state_dict(self) -> dict[str, Any]:
        """The lowest FVU so far."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back; ``last`` of the step that became the best was written before that was known."""
        noted = _number(self._noted) if self._noted.is_file() else float("inf")
        self.lowest = min(state_dict["lowest"], noted)


def _number(path: Path) -> float:
    try:
        return float(files.read_text(path))
    except ValueError as error:
        raise files.unreadable(path, "number", error) from error


def _architecture(module: LightningModule) -> dict[str, Any] | None:
    own = own_architecture(cast(TranscoderModule, module).transcoder)
    return own and own._asdict()


@contextmanager
def stop_on_interrupt(trainer: Trainer) -> Generator[None]:
    """Let Ctrl-C end a training after the step it is in; a second Ctrl-C ends it at once.

    Lightning would end the process instead. Signals reach the main thread only: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    callbacks = cast(list[Callback], cast(Any, trainer).callbacks)
    later = _StopAfterStep()

    def stop(signum: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted: stopping after this step. Press Ctrl-C again to stop at once.")
        later.asked = True
        if trainer.world_size == 1 and step_is_complete(trainer):
            trainer.should_stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    callbacks.insert(0, later)
    try:
        yield
    finally:
        callbacks.remove(later)
        signal.signal(signal.SIGINT, before)


@final
class _StopAfterStep(Callback):
    """Stops where a step of several batches is complete: gradients of half a step cannot be resumed from.

    Of several processes each hears of Ctrl-C when it does: they stop after the same step, once any was asked to.
    """

    asked = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        peers = cast(TranscoderModule, pl_module).transcoder.peers
        asked = peers.sum_features(peers.sum_batch(torch.tensor(int(self.asked), device=pl_module.device)))
        if bool(asked) and step_is_complete(trainer):
            trainer.should_stop = True
