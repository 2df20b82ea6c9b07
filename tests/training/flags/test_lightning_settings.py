"""Settings of Lightning's Trainer take effect: gradients are clipped, and loggers get the numbers of every step."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from open_clt.training.flags.command_line import CommandResult, train_command
from open_clt.training.run import fit
from tests.training.step.test_optimization import Watch

STEPS = 4


def train(output: Path, *flags: str) -> CommandResult:
    """Train a few steps on random activations, without a language model."""
    settings = {
        "data.class_path": "tests.training.own.OwnStore",
        "data.batch_size": "64",
        "transcoder.n_features": "24",
        "transcoder.nonlinearity.k": "4",
        "trainer.max_steps": str(STEPS),
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": "1",
        "output": str(output),
    }
    setting_flags = itertools.chain.from_iterable((f"--{name}", value) for name, value in settings.items())
    return train_command([*setting_flags, *flags])


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A callback that is added to every training run of the test."""
    watch = Watch()

    def fit_and_watch(module: Any, data: Any, trainer: Any, **settings: Any) -> Any:
        trainer.callbacks.append(watch)
        return fit(module, data, trainer, **settings)

    monkeypatch.setattr("open_clt.training.run.fit", fit_and_watch)
    return watch


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("limit", "norm"), [(["--trainer.gradient_clip_val", "0.25"], 0.25), ([], 1.0)])
def test_gradients_are_clipped(watch: Watch, tmp_path: Path, limit: list[str], norm: float, precision: str) -> None:
    train(tmp_path / "out", *limit, "--trainer.precision", precision)
    assert watch.norms == pytest.approx([norm] * STEPS, rel=1e-4)


def test_gradients_are_not_clipped_if_the_limit_is_null(watch: Watch, tmp_path: Path) -> None:
    train(tmp_path / "out", "--trainer.gradient_clip_val", "null")
    assert min(watch.norms) > 1.5


def test_decay_rates_and_weight_decay_are_those_of_the_flags(watch: Watch, tmp_path: Path) -> None:
    train(tmp_path / "out", "--training.betas", "[0.5, 0.7]", "--training.weight_decay", "0.25")
    (group,) = watch.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.5, 0.7), 0.25)


def test_tensorboard_shows_every_step(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tmp_path / "out", "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(tmp_path))
    (file,) = tmp_path.glob("**/events.out.tfevents.*")
    accumulator = events.EventAccumulator(str(file.parent))
    accumulator.Reload()
    assert [event.value for event in accumulator.Scalars("loss")] == pytest.approx(run.training.curves.loss)
    assert {"fvu", "l0", "dead_share", "learning_rate", "harvest_share"} <= set(accumulator.Tags()["scalars"])


@pytest.mark.slow
def test_weights_and_biases_gets_every_number_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"ERROR_REPORTING": "false", "CONSOLE": "off", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    try:
        train(tmp_path / "out", *logger, "--trainer.logger.save_dir", str(tmp_path))
    finally:
        wandb.teardown()  # waits until the process that writes the file has ended
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in ("loss", "fvu", "l0", "dead_share", "learning_rate", "harvest_share"):
        assert content.count(name.encode()) >= STEPS, name
