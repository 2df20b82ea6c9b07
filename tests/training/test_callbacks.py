"""The best checkpoint is that of the lowest held-out FVU, also where a training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from open_clt.training.callbacks import Checkpoints
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.data import ActivationDataModule
from open_clt.training.result import TrainingResult
from open_clt.training.run import fit, quiet_lightning, set_from_data
from open_clt.training.step.module import Step, TranscoderModule
from open_clt.transcoders.make import make_transcoder
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder

STEPS = 24


class HeldOut(Callback):
    """Takes down the held-out FVU after each measurement."""

    def __init__(self) -> None:
        self.fvu: dict[int, float] = {}

    def on_validation_end(self, trainer: Trainer, *rest: Any) -> None:
        self.fvu[trainer.global_step] = float(trainer.callback_metrics["held_out_fvu"])


def better_then_worse(step: Step) -> torch.Tensor:
    """Reconstructions are to improve in the first third of the training, and to get worse after it."""
    return step.errors[-1].square().sum((1, 2)).mean() * (1 if step.progress < 0.35 else -1)


def train(folder: Path, *, resume: Path | None = None) -> tuple[TrainingResult, dict[int, float]]:
    """Measure every second step, and keep the best."""
    config = quick_training(max_steps=STEPS, learning_rate=1e-2, decay_share=0.0)
    data = ActivationDataModule(relu_mlps(1000), config.data, held_out=relu_mlps(200, seed=1))
    module = TranscoderModule(
        set_from_data(make_transcoder(small_transcoder()), data, None), config.learning, loss=better_then_worse
    )
    watch = HeldOut()
    with quiet_lightning():
        trainer = Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            plugins=[SafetensorsCheckpointIO()],
            callbacks=[watch, Checkpoints(folder, 16, best=True)],
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
    kept = io.load_checkpoint(tmp_path / "best")
    assert kept["global_step"] == best
    assert float((tmp_path / "best" / "held_out_fvu").read_text()) == fvu[best]

    _, after = train(tmp_path, resume=tmp_path / "last")
    assert list(after) == list(range(18, STEPS + 1, 2))
    assert min(after.values()) > fvu[best]
    again = io.load_checkpoint(tmp_path / "best")
    assert again["global_step"] == best, "what came before the interruption counts"


def test_a_last_that_was_written_before_its_step_became_the_best_knows_it_anyway(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 16, best=True)
    checkpoints.load_state_dict({"lowest": 0.75})
    assert checkpoints.lowest == 0.75
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "held_out_fvu").write_text("0.25")
    checkpoints.load_state_dict({"lowest": 0.5})
    assert checkpoints.lowest == 0.25
    checkpoints.load_state_dict({"lowest": 0.125})
    assert checkpoints.lowest == 0.125
