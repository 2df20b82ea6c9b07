"""Adam that updates each parameter as soon as its gradient is known, and lets the gradient go.

A step needs memory for parameters, their two moments, and one gradient at a time: not for all gradients at once, which
for a transcoder are as large as its parameters and most of what a step needs beside them. The updates are Adam's.

What it cannot do is whatever needs all gradients of a step together: clip them by their norm, add those of several
batches, or average them over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch.nn import Parameter

from open_clt.errors import ConfigError


@final
class AdamInBackward(torch.optim.Adam):
    """An optimizer for where memory is short: ``--training.optimizer.class_path ...AdamInBackward``, without clipping.

    ``settings`` are those of ``torch.optim.Adam``. A backward pass is a step: ``step`` itself only runs its closure.
    """

    def __init__(self, parameters: Iterable[Parameter], **settings: Any) -> None:
        super().__init__(parameters, fused=True, **settings)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._update)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the forward and backward passes, if they are given; what was to be updated then is."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _update(self, parameter: Parameter) -> None:
        super().step()  # of all parameters only this one has a gradient
        parameter.grad = None


def check_alone(trainer: Trainer) -> None:
    """Raise ConfigError if a training asks for what ``AdamInBackward`` cannot do."""
    for asked, what in (
        (trainer.gradient_clip_val, "clip gradients; set trainer.gradient_clip_val to null"),
        (trainer.accumulate_grad_batches > 1, "accumulate gradients; set trainer.accumulate_grad_batches to 1"),
        (trainer.world_size > 1, "average gradients over processes; use one device"),
    ):
        if asked:
            raise ConfigError(f"AdamInBackward keeps no gradients, so it cannot {what}, or choose another optimizer.")
