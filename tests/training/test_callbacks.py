"""The best checkpoint is the one with the lowest held-out FVU, also after a run is resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from open_clt.training.callbacks import Checkpoints
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.data.module import ActivationDataModule
from open_clt.training.result import TrainingResult
from open_clt.training.run import fit, quiet_lightning, set_from_data
from open_clt.training.step.module import Step, TranscoderModule
from open_clt.transcoders.make import make_transcoder
from tests.faults.interrupted import Faults, Killed, faults_until_success
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder

STEPS = 24


def contents(folder: Path) -> dict[str, bytes]:
    """The files of checkpoints, by their names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class HeldOut(Callback):
    """Records the held-out FVU of each measurement, by step."""

    def __init__(self) -> None:
        self.fvu: dict[int, float] = {}

    def on_validation_end(self, trainer: Trainer, *rest: Any, **named: Any) -> None:
        self.fvu[trainer.global_step] = float(trainer.callback_metrics["held_out_fvu"])


def better_then_worse(step: Step) -> torch.Tensor:
    """A loss that improves reconstructions in the first third of the run, and worsens them afterwards."""
    return step.errors[-1].square().sum((1, 2)).mean() * (1 if step.progress < 0.35 else -1)


def train(
    folder: Path, *, resume: Path | None = None, steps: int = STEPS, every: int = 16, keep_all: bool = False
) -> tuple[TrainingResult, dict[int, float]]:
    """Train, measure at every second step, and keep the best checkpoint; returns the measurements, too."""
    config = quick_training(max_steps=steps, learning_rate=1e-2, decay_share=0.0)
    data = ActivationDataModule(relu_mlps(1000), config.data, held_out=relu_mlps(200, seed=1))
    module = TranscoderModule(
        set_from_data(make_transcoder(small_transcoder()), data, None), config.learning, loss=better_then_worse
    )
    watch = HeldOut()
    with quiet_lightning():
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            plugins=[SafetensorsCheckpointIO()],
            callbacks=[watch, Checkpoints(folder, every, best=True, keep_all=keep_all)],
            val_check_interval=2,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return fit(module, data, trainer, resume=resume), watch.fvu


def test_the_best_checkpoint_is_that_of_the_lowest_held_out_fvu(tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    _, fvu = train(tmp_path)
    assert list(fvu) == list(range(2, STEPS + 1, 2))
    best = min(fvu, key=lambda step: fvu[step])
    assert 2 < best < 16, "neither the first nor the last"
    assert io.load_checkpoint(tmp_path / "best")["global_step"] == best
    assert io.load_checkpoint(tmp_path / "best")["callbacks"]["Checkpoints"]["lowest"] == fvu[best]

    _, after = train(tmp_path, resume=tmp_path / "last")
    assert list(after) == list(range(18, STEPS + 1, 2))
    assert min(after.values()) > fvu[best]
    after_resuming = io.load_checkpoint(tmp_path / "best")
    assert after_resuming["global_step"] == best, "measurements before the interruption count"


def test_the_lowest_fvu_comes_from_the_best_checkpoint_if_last_is_older(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 16, best=True)
    checkpoints.load_state_dict({"lowest": 0.75})
    assert checkpoints.lowest == 0.75
    state = {"callbacks": {"Checkpoints": {"lowest": 0.25}}, "weights": torch.zeros(2)}
    SafetensorsCheckpointIO().save_checkpoint(state, tmp_path / "best")
    checkpoints.load_state_dict({"lowest": 0.5})
    assert checkpoints.lowest == 0.25
    checkpoints.load_state_dict({"lowest": 0.125})
    assert checkpoints.lowest == 0.125


def test_a_first_best_checkpoint_whose_save_was_killed_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"callbacks": {"Checkpoints": {"lowest": 0.25}}, "weights": torch.zeros(2)}
    faults = Faults(monkeypatch, ("replace", "unlink"))

    def save_once(failing_call: int) -> bool:
        faults.arm(failing_call, Killed(), only_once=False)
        try:
            SafetensorsCheckpointIO().save_checkpoint(state, tmp_path / str(failing_call) / "best")
        except Killed:
            faults.disarm()
            checkpoints = Checkpoints(tmp_path / str(failing_call), 16, best=True)
            checkpoints.load_state_dict({"lowest": 0.5})
            assert checkpoints.lowest in (0.5, 0.25)
            return False
        faults.disarm()
        return True

    assert faults_until_success(save_once) > 2


def test_a_run_that_is_killed_while_it_saves_checkpoints_keeps_the_same_ones_after_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # flushing takes time and changes nothing here
    left = 0
    settings: dict[str, Any] = {"steps": 4, "every": 2, "keep_all": True}
    train(tmp_path / "whole", **settings)
    whole = contents(tmp_path / "whole")
    assert {path.split("/")[0] for path in whole} == {"best", "last", "step-2", "step-4"}
    assert SafetensorsCheckpointIO().load_checkpoint(tmp_path / "whole" / "best")["global_step"] == 4
    save = SafetensorsCheckpointIO.save_checkpoint
    for killed_save in (4, 5, 6):  # those of step 4: its best checkpoint, step-4, and last
        folder, left = tmp_path / str(killed_save), killed_save

        def save_or_stop(*arguments: Any, **options: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            save(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(SafetensorsCheckpointIO, "save_checkpoint", save_or_stop)
            with pytest.raises(Killed):
                train(folder, **settings)
        train(folder, resume=folder / "last", **settings)
        assert contents(folder) == whole, f"killed at save {killed_save}"
