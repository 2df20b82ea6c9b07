"""Adam in the backward pass: each parameter is updated as soon as its gradient is known, and the gradient is freed.

A step then needs memory for the parameters, their two moments, and a single gradient, in place of the gradients of all
parameters. The updates are the same as Adam's.

This optimizer cannot be used where all gradients of a step are needed together: for gradient clipping by norm, for
accumulation over several batches, for averages over processes, and for gradients that are scaled (16-mixed).
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
    """Adam with less memory: ``--training.optimizer.class_path ...AdamInBackward --trainer.gradient_clip_val null``.

    ``settings`` are those of ``torch.optim.Adam``. The backward pass updates the parameters; ``step`` only runs its
    closure.
    """

    def __init__(self, parameters: Iterable[Parameter], **settings: Any) -> None:
        super().__init__(parameters, fused=True, **settings)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._update)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, if there is one; its backward pass updates the parameters."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _update(self, parameter: Parameter) -> None:
        super().step()  # updates this parameter only, since no other has a gradient now
        parameter.grad = None


def check_alone(trainer: Trainer) -> None:
    """Raise ConfigError if the trainer's settings need all gradients of a step together."""
    for is_set, limitation in (
        (trainer.gradient_clip_val, "clip gradients; set trainer.gradient_clip_val to null"),
        (trainer.accumulate_grad_batches > 1, "accumulate gradients; set trainer.accumulate_grad_batches to 1"),
        (trainer.world_size > 1, "average gradients over processes; use one device"),
        (
            getattr(trainer.precision_plugin, "scaler", None) is not None,
            "leave out steps whose scaled gradients are infinite; set trainer.precision to 'bf16-mixed' or '32-true'",
        ),
    ):
        if is_set:
            raise ConfigError(f"AdamInBackward keeps no gradients and cannot {limitation}, or use another optimizer.")
