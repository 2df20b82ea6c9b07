"""Callbacks of a training run: the progress bar, the log of steps, checkpoints, and early ends."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.progress import TextColumn

from open_clt.errors import ConfigError
from open_clt.progress import progress_bar
from open_clt.training.checkpoint_io import holds_checkpoint, read_values
from open_clt.training.data.module import ActivationDataModule, refuse_other_settings
from open_clt.training.step.module import StepMetrics, TranscoderModule
from open_clt.training.step.optimization import step_is_complete
from open_clt.transcoders.make import own_architecture

logger = logging.getLogger(__name__)

_WINDOW = 100
"""Number of batches over which the mean L0 is taken that can end a run."""


@final
class ProgressBar(Callback):
    """A progress bar in one line: steps, time, loss, FVU, L0, and the share of dead features."""

    def __init__(self) -> None:
        self._progress = progress_bar("training", TextColumn("{task.fields[metrics]}"))
        self._every = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar; in a resumed run it starts at the step of the checkpoint."""
        self._every = max(1, trainer.max_steps // 1000)
        self._progress.disable |= not trainer.is_global_zero
        task = self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, metrics="")
        self._task = task
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar; the numbers are copied from the device only when they are shown."""
        latest = None if self._progress.disable else cast(TranscoderModule, pl_module).latest
        if latest is not None and (trainer.global_step % self._every == 0 or trainer.global_step == trainer.max_steps):
            self._progress.update(self._task, completed=trainer.global_step, metrics=_metrics_line(latest))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the terminal."""
        self._progress.stop()


def _metrics_line(metrics: StepMetrics) -> str:
    loss, fvu, l0, dead_share = (value.item() for value in metrics)
    return f"loss {loss:.3g}  FVU {fvu:.3f}  L0 {l0:.1f}  dead {dead_share:.1%}"


@final
class FirstStep(Callback):
    """Calls a function once, at the end of the first batch: by then, the run has shown that it can train.

    The function may replace the files of a former run, which a run that fails in its first step leaves alone. Several
    processes wait for each other.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._called = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call the function, before Lightning writes metrics and checkpoints of this batch."""
        if not self._called:
            self._called = True
            cast(TranscoderModule, pl_module).check_step()
            self._function()
            trainer.strategy.barrier()


@final
class StepLog(Callback):
    """Logs the numbers of each step, and the share of time that training spends waiting for activations."""

    _learning_rate = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the learning rate of this step: at the end of the batch it is already that of the next step."""
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the numbers; Lightning decides how often they are written (``log_every_n_steps``)."""
        latest = cast(TranscoderModule, pl_module).latest
        if latest is None or not step_is_complete(trainer):
            return
        data = cast(ActivationDataModule, cast(Any, trainer).datamodule)
        pl_module.log_dict({**latest._asdict(), "learning_rate": self._learning_rate, "harvest_share": data.cost.share})


@final
class StopAtL0(Callback):
    """Ends a training run once the mean L0 per layer of the last ``window`` batches is at most ``l0``."""

    def __init__(self, l0: float | None = None, window: int = _WINDOW) -> None:
        """With ``l0`` None, the callback never ends the run."""
        if window < 1 or (l0 is not None and l0 <= 0):
            raise ConfigError(f"l0 is {l0} and window is {window}; l0 must be above 0 and window at least 1.")
        if l0 is None and window != _WINDOW:
            raise ConfigError(f"window is {window}, but l0 is missing, so no L0 ends the run; set l0, too.")
        self.l0 = l0
        self._recent: deque[float] = deque(maxlen=window)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the L0 of the batch, and stop the run at the end of a step if the mean is low enough."""
        latest = cast(TranscoderModule, pl_module).latest
        if self.l0 is None or latest is None:
            return
        self._recent.append(latest.l0.item())
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) == self._recent.maxlen and mean <= self.l0 and step_is_complete(trainer):
            logger.info(
                "The mean L0 is %.1f, and early_stop.l0 is %g: training ends after %d steps.",
                mean,
                self.l0,
                trainer.global_step,
            )
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The L0 of the recent batches, for a checkpoint."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the L0 of the recent batches from a checkpoint."""
        self._recent.extend(state_dict["recent"])


@final
class Checkpoints(Checkpoint):
    """Saves checkpoints, from which a run can resume: the weights, the optimizer, and the position in the data.

    The callback writes ``last`` after every ``every`` steps, and when training stops early. It writes ``best`` whenever
    the held-out FVU is the lowest so far, and with ``keep_all`` it also writes each ``last`` as ``step-N``. After the
    final step it writes ``last`` only if ``at_end`` is set or the step is one of every ``every``.

    Of one step, ``last`` is written after the held-out measurement, ``best`` and ``step-N``. A run that is killed among
    them resumes before that step and writes them again, so it keeps the same files as a run that is not killed.

    Lightning calls a ``Checkpoint`` after all other callbacks, so any callback that stops the training (Ctrl-C, a time
    limit, a target L0, a user's own) has set ``trainer.should_stop`` by then. If the current step accumulates several
    batches and is not complete, the stop waits until it is, because a run cannot resume in the middle of a step.
    """

    def __init__(
        self, directory: Path, every: int, *, best: bool = False, keep_all: bool = False, at_end: bool = False
    ) -> None:
        self.last = directory / "last"
        self.every = every
        self.best = best
        self.keep_all = keep_all
        self.at_end = at_end
        self.lowest = float("inf")
        self._saved_step = -1
        self._stop_requested = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the end of a step, where weights, optimizer and position in the data agree."""
        self._delay_stop(trainer)
        if not _is_measured_next(trainer):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``best`` if the held-out FVU is the lowest so far, and then ``last`` if it is due."""
        if trainer.sanity_checking:
            return
        fvu = trainer.callback_metrics.get("held_out_fvu")
        if self.best and fvu is not None and float(fvu) < self.lowest:
            self.lowest = float(fvu)
            trainer.save_checkpoint(self.last.with_name("best"))
        self._delay_stop(trainer)
        self._save_if_due(trainer)

    def _delay_stop(self, trainer: Trainer) -> None:
        """If the training is to stop in the middle of a step, delay the stop to the end of the step."""
        self._stop_requested |= trainer.should_stop
        trainer.should_stop = self._stop_requested and step_is_complete(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        """Save ``last``, unless the current step is incomplete, is saved already, or is not one to save."""
        step = trainer.global_step
        ended = step >= trainer.max_steps
        is_due = step % self.every == 0 or (self.at_end if ended else trainer.should_stop)
        if not is_due or step == self._saved_step or not step_is_complete(trainer):
            return
        if self.keep_all:
            trainer.save_checkpoint(self.last.with_name(f"step-{step}"))
        trainer.save_checkpoint(self.last)
        self._saved_step = step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the user's own class of transcoder and its arguments to the checkpoint; None for a built-in class."""
        checkpoint["architecture"] = _architecture(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise CheckpointError if the run to resume trained another class, or the same class with other arguments."""
        refuse_other_settings(
            {"architecture": checkpoint.get("architecture")}, {"architecture": _architecture(pl_module)}
        )

    def state_dict(self) -> dict[str, Any]:
        """The lowest held-out FVU so far, for a checkpoint."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the lowest held-out FVU so far.

        ``best`` may hold a lower one: if the run was killed, ``best`` may be of a later step than ``last``.
        """
        best = self.last.with_name("best")
        states = read_values(best).get("callbacks", {}) if holds_checkpoint(best) else {}
        self.lowest = min(state_dict["lowest"], states.get(self.state_key, {}).get("lowest", float("inf")))


def _is_measured_next(trainer: Trainer) -> bool:
    """Whether Lightning makes a held-out measurement after the current batch, even if nothing stops the run."""
    batches, every = trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch
    return trainer.enable_validation and every is not None and batches % every == 0


def _architecture(module: LightningModule) -> dict[str, Any] | None:
    """The user's own class of transcoder and its arguments; None for a built-in class."""
    own = own_architecture(cast(TranscoderModule, module).transcoder)
    return own and own.as_dict()
