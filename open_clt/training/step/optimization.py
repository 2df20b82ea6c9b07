"""Optimization: the optimizer, the schedule of its learning rate, and the end of a step of several batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.nn import Parameter
from torch.optim import Optimizer

from open_clt.config import LearningConfig
from open_clt.errors import ConfigError
from open_clt.training.step.adam_in_backward import AdamInBackward, check_alone

OptimizerMaker: TypeAlias = Callable[[Iterable[Parameter]], Optimizer]
"""A function that makes an optimizer of parameters; its learning rate is the peak of the schedule."""


def scheduled_optimizer(
    parameters: Iterable[Parameter], config: LearningConfig, trainer: Trainer, make: OptimizerMaker | None = None
) -> OptimizerLRSchedulerConfig:
    """The optimizer that ``make`` returns (by default Adam), with a learning-rate schedule over the trainer's steps."""
    check_precision(trainer.precision)
    # With mixed precision, Lightning refuses to clip the gradients of a fused optimizer.
    fused = not isinstance(trainer.precision_plugin, MixedPrecision)
    optimizer = adam(parameters, config, fused=fused) if make is None else make(parameters)
    if isinstance(optimizer, AdamInBackward):
        check_alone(trainer)
    steps = trainer.max_steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, config))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_precision(precision: str | int | None) -> None:
    """Raise ConfigError if a trainer's ``precision`` stores the weights too coarsely for the steps of an optimizer.

    A weight of 8 (bf16) or 11 (fp16) significant bits stays the same if a step is smaller than about a 500th or a
    4,000th of it. Late in training, most of Adam's steps are smaller than that. The statistics of the data would be
    rounded in the same way.
    """
    if str(precision) in ("bf16-true", "16-true") or str(precision).startswith("transformer-engine"):
        raise ConfigError(
            f"trainer.precision is {precision!r}, which rounds the weights so coarsely that most training steps do not "
            "change them; use 'bf16-mixed', which computes in bf16 and keeps the weights in float32."
        )


def adam(parameters: Iterable[Parameter], config: LearningConfig, *, fused: bool = True) -> Optimizer:
    """Adam, or AdamW if ``weight_decay`` is above 0; ``fused`` updates all parameters in one kernel."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": tuple(config.betas), "fused": fused}
    if config.weight_decay:
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, **settings)
    return torch.optim.Adam(parameters, **settings)


def rate_factor(step: int, steps: int, config: LearningConfig) -> float:
    """The learning rate as a share of its peak: linear warm-up, times cosine or 1, times final linear decay."""
    factor = ramp(step + 1, steps, config.warmup_share)
    if config.schedule == "cosine":
        warmup_steps = config.warmup_share * steps
        factor *= (1 + math.cos(math.pi * max(0.0, step - warmup_steps) / (steps - warmup_steps))) / 2
    if config.decay_share:
        factor *= min(1.0, (steps - step) / (config.decay_share * steps))
    return factor


def ramp(step: int, steps: int, share: float) -> float:
    """A factor that rises linearly from 0 to 1 over the first ``share`` of all steps."""
    return min(1.0, step / (share * steps)) if share > 0 else 1.0


def step_is_complete(trainer: Trainer) -> bool:
    """Whether the current batch is the last one of an optimizer step, which may accumulate several batches."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
