"""Settings of Lightning's Trainer: each has the effect that its name says, or is refused before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_clt.errors import ConfigError
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations
from tests.refusals import refuses
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder


def run(trainer: dict[str, Any]) -> TrainingResult:
    return train_on_activations(
        relu_mlps(600), small_transcoder(), quick_training(epochs=1), progress=False, own=OwnParts(trainer=trainer)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_train_batches", 1),
        ("limit_train_batches", 1.0),
        ("limit_train_batches", 0.5),
        ("limit_test_batches", 3),
        ("limit_predict_batches", 3),
        ("overfit_batches", 2),
        ("fast_dev_run", True),
        ("accumulate_grad_batches", 0),
        ("accumulate_grad_batches", 1.5),
        ("accumulate_grad_batches", "2"),
        ("gradient_clip_val", -1.0),
        ("gradient_clip_val", float("nan")),
        ("gradient_clip_val", "1"),
        ("log_every_n_steps", -3),
        ("val_check_interval", 0),
        ("val_check_interval", 0.5),
        ("check_val_every_n_epoch", 2),
        ("reload_dataloaders_every_n_epochs", 1),
        ("max_steps", 3),
        ("max_epochs", 2),
        ("max_time", "soon"),
        ("max_time", {"seconds": -5}),
        ("min_steps", -1),
        ("min_epochs", 3),
        ("no_such_setting", 1),
    ],
)
def test_a_setting_that_would_be_ignored_or_makes_no_sense_is_refused(name: str, value: Any) -> None:
    with refuses(ConfigError, name):
        run({name: value})


def test_settings_that_are_accepted_change_the_run() -> None:
    plain, accumulated, clipped = (
        run(trainer) for trainer in ({}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1e-3})
    )
    assert accumulated.steps == plain.steps // 2
    assert not torch.equal(clipped.transcoder.W_enc, plain.transcoder.W_enc)
    assert run({"max_time": {"seconds": 0}}).steps == 0
