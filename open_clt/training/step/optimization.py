"""Steps of a training: when one is complete, the optimizer that makes it, how its learning rate rises and falls."""

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
"""Makes an optimizer of some parameters; its learning rate is the highest that the schedule reaches."""


def scheduled_optimizer(
    parameters: Iterable[Parameter], config: LearningConfig, trainer: Trainer, make: OptimizerMaker | None = None
) -> OptimizerLRSchedulerConfig:
    """The optimizer that ``make`` makes (by default ``adam``), with the schedule of a trainer's steps."""
    check_precision(trainer.precision)
    # With mixed precision Lightning clips no gradients for a fused optimizer, which might scale them itself.
    fused = not isinstance(trainer.precision_plugin, MixedPrecision)
    optimizer = adam(parameters, config, fused=fused) if make is None else make(parameters)
    if isinstance(optimizer, AdamInBackward):
        check_alone(trainer)
    steps = trainer.max_steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, config))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_precision(precision: str | int | None) -> None:
    """Raise ConfigError if a trainer's ``precision`` leaves weights no room for the steps of an optimizer.

    Weights of 8 or 11 significant bits keep nothing of a change below a 500th or a 4,000th of what they are, which
    late in a training is most of what Adam changes, and statistics of the data are rounded as much.
    """
    if str(precision) in ("bf16-true", "16-true") or str(precision).startswith("transformer-engine"):
        raise ConfigError(
            f"trainer.precision is {precision!r}, which rounds weights until most steps of their training are lost; "
            "take 'bf16-mixed', which computes in bf16 and keeps weights in float32."
        )


def adam(parameters: Iterable[Parameter], config: LearningConfig, *, fused: bool = True) -> Optimizer:
    """Adam, or AdamW where weights are to decay; ``fused`` is in one kernel."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": tuple(config.betas), "fused": fused}
    if config.weight_decay:
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, **settings)
    return torch.optim.Adam(parameters, **settings)


def rate_factor(step: int, steps: int, config: LearningConfig) -> float:
    """Share of the highest learning rate at a step: linear warm-up, times cosine or one, times final linear decay."""
    factor = ramp(step + 1, steps, config.warmup_share)
    if config.schedule == "cosine":
        warm = config.warmup_share * steps
        factor *= (1 + math.cos(math.pi * max(0.0, step - warm) / (steps - warm))) / 2
    if config.decay_share:
        factor *= min(1.0, (steps - step) / (config.decay_share * steps))
    return factor


def ramp(step: int, steps: int, share: float) -> float:
    """Rise linearly from 0 to 1 over the first ``share`` of all steps."""
    return min(1.0, step / (share * steps)) if share > 0 else 1.0


def step_is_complete(trainer: Trainer) -> bool:
    """Whether the batch that training is at is the last one of an optimizer step."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
