"""Forecast of a training run: its size, memory, steps and time, from a few steps that are not kept.

The size of the transcoder and the number of steps are those of the run. The time is measured: the run reads its data as
it would, takes a few steps, and gives up the weights. Where the data does not fit in memory, a step cannot be faster
than its tokens are read or harvested, which is measured too. Nothing is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from lightning.pytorch import Callback, Trainer

from open_clt.memory import largest_memory, memory_errors
from open_clt.short_repr import short_repr
from open_clt.training.memory import MEMORY_WAYS
from open_clt.training.run import TrainingRun
from open_clt.training.step.optimization import step_is_complete
from open_clt.transcoders.formats.info import readable

_WARM_UP, _MEASURED = 2, 10
"""Number of steps before the measurement, and of steps that are measured at most."""
_LONGEST = 30.0
"""Seconds after which no further step is taken."""
_NUMBERS_PER_PARAMETER = 4
"""The parameter, its gradient, and the two moments of Adam."""


@final
@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The size of a training run, and the time that it will take."""

    kind: str
    n_layers: int
    n_features: int
    d_model: int
    parameters: int
    """Number of learned parameters."""
    epoch_tokens: int | None
    """Usable tokens of an epoch; None if the texts do not say it."""
    in_memory: bool
    """Whether the activations of all these tokens are kept in memory."""
    data_bytes: int
    """Bytes of activations in memory: of all tokens, or of the two blocks that are kept at a time."""
    steps: int
    """Steps of the run."""
    step_tokens: int
    """Tokens of a step."""
    reading_seconds: float
    """Seconds that passed before the first step, while data was read; measured."""
    step_seconds: float
    """Seconds of a step; measured."""
    measured_steps: int
    """Number of steps that were measured."""
    peak_bytes: int | None
    """Largest number of bytes that the process has held so far, on its GPU if it has one; None if it is not known."""

    __repr__ = short_repr

    @property
    def seconds(self) -> float:
        """Seconds of the run, without measurements on held-out tokens and evaluation."""
        return self.reading_seconds + self.steps * self.step_seconds

    def __str__(self) -> str:
        shape = f"{self.n_layers} layers of {self.n_features:,} features, d_model {self.d_model}"
        where = "all in memory" if self.in_memory else "which do not fit in memory_limit and are read during training"
        epoch = "an unknown number of" if self.epoch_tokens is None else f"{self.epoch_tokens:,}"
        file_bytes = self.parameters * torch.float32.itemsize
        optimizer_bytes = file_bytes * _NUMBERS_PER_PARAMETER
        peak = "" if self.peak_bytes is None else f"; {readable(self.peak_bytes)} at most so far (measured)"
        return "\n".join(
            (
                f"transcoder  {self.kind}, {shape}: {self.parameters:,} parameters",
                f"files       {readable(file_bytes)} for the transcoder, {readable(3 * file_bytes)} for a checkpoint",
                f"memory      {readable(optimizer_bytes)} for weights, gradients and Adam's moments, "
                f"{readable(self.data_bytes)} for activations{peak}",
                f"data        {epoch} usable tokens per epoch, {where}",
                f"steps       {self.steps:,} of {self.step_tokens:,} tokens: {self.steps * self.step_tokens:,} tokens",
                f"time        about {_duration(self.seconds)}: {self.reading_seconds:.1f} s until the first step and "
                f"{self.step_seconds:.3g} s a step, measured on {self.measured_steps} steps; measurements on held-out "
                "tokens and the evaluation come on top",
            )
        )


def forecast(run: TrainingRun) -> Forecast:
    """Take a few steps of a run, and say what the whole run will take.

    The run has no output directory, and cannot be used afterwards. Raises what its first steps would raise.
    """
    data, prepared, meter = run.data, run.data.prepared, StepMeter()
    cast(list[Callback], cast(Any, run.trainer).callbacks).append(meter)
    try:
        with memory_errors("The training run", MEMORY_WAYS):
            run.trainer.fit(run.module, datamodule=data)
    finally:
        data.close()
    config = run.module.transcoder.config
    step_tokens = data.accumulation * data.batch_size
    per_token = 2 * prepared.sample.inputs[0].numel() * prepared.sample.inputs.dtype.itemsize
    tokens_in_memory = prepared.block_size if prepared.kept is not None else 2 * prepared.block_size
    step_seconds = meter.seconds
    reading = data.cost.before
    if prepared.kept is None:  # the first block is waited for, and further blocks are made while steps are taken
        step_seconds = max(step_seconds, meter.waited / prepared.block_size * step_tokens)
        reading += meter.waited
    result = Forecast(
        kind=config.kind,
        n_layers=config.n_layers,
        n_features=config.n_features,
        d_model=config.d_model,
        parameters=sum(parameter.numel() for parameter in run.module.transcoder.parameters()),
        epoch_tokens=prepared.tokens,
        in_memory=prepared.kept is not None,
        data_bytes=per_token * tokens_in_memory,
        steps=data.steps,
        step_tokens=step_tokens,
        reading_seconds=reading,
        step_seconds=step_seconds,
        measured_steps=meter.steps,
        peak_bytes=largest_memory(run.trainer.strategy.root_device),
    )
    data.release()
    return result


@final
class StepMeter(Callback):
    """Measures the time of a few steps, and then ends the run."""

    def __init__(self) -> None:
        self.steps = 0
        """Number of steps that were measured; after a run of at most two steps, the last one counts."""
        self.seconds = 0.0
        """Mean number of seconds of these steps."""
        self.waited = 0.0
        """Seconds that the first step waited for its tokens."""
        self._ends: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note when the first batch is there, and how long it was waited for."""
        if batch_idx == 0:
            self.waited = cast(Any, trainer).datamodule.cost.waited
            self._ends = [time.perf_counter()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the end of a step, and end the run after enough steps."""
        pl_module.check_step()  # which also waits for a GPU
        if not step_is_complete(trainer):
            return
        self._ends.append(time.perf_counter())
        taken = len(self._ends) - 1
        skipped = min(_WARM_UP, taken - 1)
        self.steps = taken - skipped
        self.seconds = (self._ends[-1] - self._ends[skipped]) / self.steps
        if self.steps >= _MEASURED or self._ends[-1] - self._ends[0] > _LONGEST:
            trainer.should_stop = True


def _duration(seconds: float) -> str:
    """A duration in the largest units that fit."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
