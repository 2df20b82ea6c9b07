"""Mixed precision with float16: its scaled gradients train every nonlinearity as float32 does; a CPU cannot have it.

Lightning allows float16 on GPUs only. Its plugin is given here, so that the path of scaled gradients runs on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from open_clt.config import BatchTopKConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig, TrainingConfig
from open_clt.errors import ConfigError
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations
from open_clt.training.step.adam_in_backward import AdamInBackward
from tests.refusals import refuses
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder


def float16() -> dict[str, Any]:
    """A Trainer's argument that scales gradients. The first scale is so large that the first steps overflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def train(
    trainer: dict[str, Any],
    nonlinearity: NonlinearityConfig,
    *,
    callbacks: list[Callback] | None = None,
    optimizer: Any = None,
    **arguments: Any,
) -> TrainingResult:
    return train_on_activations(
        relu_mlps(1500),
        small_transcoder(nonlinearity=nonlinearity),
        quick_training(epochs=3) if optimizer is None else TrainingConfig.of(batch_size=64),
        held_out=relu_mlps(300, seed=1),
        progress=False,
        own=OwnParts(trainer=trainer, callbacks=callbacks or [], optimizer=optimizer),
        **arguments,
    )


_SLOW = [pytest.param(config, marks=pytest.mark.slow) for config in (BatchTopKConfig(k=4), ReLUConfig())]


@pytest.mark.slow
@pytest.mark.parametrize("nonlinearity", [TopKConfig(k=4), JumpReLUConfig(), *_SLOW], ids=lambda one: one.kind)
def test_float16_trains_as_float32_does(nonlinearity: NonlinearityConfig) -> None:
    ours, expected = (train(trainer, nonlinearity).metrics for trainer in (float16(), {}))
    assert ours is not None
    assert expected is not None
    assert ours.fvu == pytest.approx(expected.fvu, abs=0.04)


@pytest.mark.slow
def test_the_scale_of_gradients_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any, **named: Any) -> None:
            if trainer.global_step == 40:
                raise RuntimeError("power cut")

    k = TopKConfig(k=4)
    with pytest.raises(RuntimeError):
        train({**float16(), "val_check_interval": 7}, k, callbacks=[Crash()], output_dir=tmp_path)
    resumed = train(float16(), k, output_dir=tmp_path, resume="best")
    expected = train(float16(), k)
    assert resumed.steps == expected.steps > 40
    assert torch.equal(resumed.transcoder.W_enc, expected.transcoder.W_enc)


@pytest.mark.parametrize("precision", ["16-mixed", 16, "16"])
def test_float16_is_refused_on_a_cpu(precision: Any) -> None:
    with refuses(ConfigError, "trainer.precision", "'32-true'", "'bf16-mixed'", "GPU"):
        train({"precision": precision}, TopKConfig(k=4))


def test_float16_is_refused_beside_adam_in_the_backward_pass() -> None:
    with refuses(ConfigError, "AdamInBackward", "trainer.precision", "'bf16-mixed'"):
        train({**float16(), "gradient_clip_val": None}, TopKConfig(k=4), optimizer=AdamInBackward)
