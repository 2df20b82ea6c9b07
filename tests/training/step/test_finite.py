"""A training run stops at the first step whose loss is not finite, and what was saved before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.autograd.function import Function

from open_clt.data.harvest import ActivationBatch, MemoryStore
from open_clt.errors import NotFiniteError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations
from open_clt.training.step.module import Loss, Step
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder

STEPS = 8


class WithGradient(Function):
    """The identity, with a gradient of ``value``."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: float) -> Tensor:
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.value, None


def reconstruction(step: Step) -> Tensor:
    return step.errors[-1].square().sum((1, 2)).mean()


def loss_that_is(value: float, after: int) -> Loss:
    return lambda step: reconstruction(step) * (value if round(step.progress * STEPS) >= after else 1.0)


def gradient_that_is(value: float, after: int) -> Loss:
    def loss(step: Step) -> Tensor:
        return WithGradient.apply(reconstruction(step), value if round(step.progress * STEPS) >= after else 1.0)

    return loss


class StopAfter(Callback):
    """Stops a run at the end of a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def run(
    folder: Path | None,
    loss: Loss | None,
    train: MemoryStore | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    resume: str | None = None,
    **settings: Any,
) -> TrainingResult:
    return train_on_activations(
        train or relu_mlps(1000),
        small_transcoder(),
        quick_training(**{"max_steps": STEPS, **({"every": 2} if folder else {}), **settings}),
        output_dir=folder,
        resume=resume,
        progress=False,
        own=OwnParts(loss=loss, callbacks=callbacks),
    )


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, all of whose weights must be finite."""
    state = SafetensorsCheckpointIO().load_checkpoint(checkpoint)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    return state["global_step"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(value: float, tmp_path: Path) -> None:
    with refuses(NotFiniteError, 6, value):
        run(tmp_path, loss_that_is(value, after=5))
    assert step_of(tmp_path / "checkpoints" / "last") == 4
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("gradient_clip", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_the_run_at_its_step(gradient_clip: float | None, tmp_path: Path) -> None:
    with refuses(NotFiniteError, 6, "nan"):  # the next checkpoint is that of step 10
        run(tmp_path, gradient_that_is(torch.nan, after=5), every=5, gradient_clip=gradient_clip)
    assert step_of(tmp_path / "checkpoints" / "last") == 5


def test_the_last_step_is_checked_too() -> None:
    with refuses(NotFiniteError, STEPS, "nan"):
        run(None, gradient_that_is(torch.nan, after=STEPS - 1))


def test_a_resumed_run_that_fails_keeps_the_transcoder_and_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, reconstruction, callbacks=[StopAfter(4)])
    before = load_transcoder(tmp_path).state_dict()
    with refuses(NotFiniteError, 6, "nan"):
        run(tmp_path, loss_that_is(torch.nan, after=5), resume="last")
    assert step_of(tmp_path / "checkpoints" / "last") == 4
    after = load_transcoder(tmp_path).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_optimizer_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    class BreakMoment(Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 4:
                next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"].fill_(torch.inf)

    with refuses(NotFiniteError, 4, "exp_avg_sq", "inf"):
        run(tmp_path, None, callbacks=[BreakMoment()])
    assert step_of(tmp_path / "checkpoints" / "last") == 2


@pytest.mark.parametrize("part", ["inputs", "targets"])
@pytest.mark.parametrize("memory_limit", [1.0, 2e-5], ids=["in memory", "harvested during training"])
def test_activations_that_are_not_finite_are_refused(part: str, memory_limit: float) -> None:
    batches = list(relu_mlps(1000))
    broken = getattr(batches[-1], part).clone()
    broken[45, 1, 3] = -torch.inf
    last = batches[-1]._replace(**{part: broken})
    token, position = int(last.tokens[45]), int(last.positions[45])
    with refuses(NotFiniteError, part, "layer 1", token, position, "-inf"):
        store = MemoryStore([*batches[:-1], last])
        run(None, None, store, memory_limit=memory_limit, max_norm_ratio=10.0, max_steps=20)


def test_activations_at_a_first_position_that_is_left_out_may_be_infinite() -> None:
    batch = ActivationBatch(*(field.clone() for field in next(iter(relu_mlps(1000, batches=1)))))
    batch.inputs[batch.positions == 0] = torch.inf
    assert run(None, None, MemoryStore([batch])).finished
