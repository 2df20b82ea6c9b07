"""Resumed runs of ``open-clt train``: checkpoints, early ends, and the same transcoder as without an interruption."""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.flags.command_line import train_command
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.make import make_transcoder
from tests.refusals import refuses
from tests.training.flags.small_run import OWN, Settings, assert_same_weights, train, use_language_model, weights
from tests.training.own import Muffled


class NineBatches(Callback):
    """Stops a training run in the middle of its fifth step of two batches."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop |= trainer.fit_loop.batch_idx + 1 >= 9


def metrics(output: Path) -> list[list[str]]:
    """The rows of ``metrics.csv``, without the columns that measure time."""
    columns = ("step", "loss", "fvu", "l0", "learning_rate")
    with (output / "metrics.csv").open() as file:
        return [[row[column] for column in columns] for row in csv.DictReader(file)]


@pytest.mark.parametrize("memory_limit", [1.0, 5e-5], ids=["in memory", "harvested during training"])
def test_a_resumed_run_ends_where_an_uninterrupted_run_does(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: float
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("pickle was used")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    settings["data"]["memory_limit"] = memory_limit
    settings["trainer"]["accumulate_grad_batches"] = 2
    whole = train({**settings, "output": str(tmp_path / "whole")})
    interrupt = {"class_path": "tests.training.own.PressCtrlC", "init_args": {"batches": 9}}
    half = train({**settings, "trainer": {**settings["trainer"], "callbacks": [interrupt]}})
    assert (half.training.steps, half.training.finished) == (5, False), "the current step is completed"
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
    with refuses(ConfigError, tmp_path / "out"):
        train(settings)
    resumed = train(settings, "--ckpt-path", "last")
    assert resumed.training.finished
    assert_same_weights(resumed, whole)
    assert resumed.training.curves == whole.training.curves
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")
    assert len(metrics(tmp_path / "out")) == 8


@pytest.mark.slow
def test_with_a_max_time_of_zero_the_transcoder_of_a_checkpoint_is_saved_and_can_be_trained_further(
    settings: Settings, tmp_path: Path
) -> None:
    finished = train({**settings, "checkpoints": {"every": 3, "keep_all": True}}, "--checkpoints.best", "false")
    checkpoint = str(tmp_path / "out" / "checkpoints" / "step-3")
    for file in ("transcoder.safetensors", "config.json"):
        (tmp_path / "out" / file).unlink()
    saved = train(settings, "--ckpt-path", checkpoint, "--trainer.max_time", "00:00:00:00")
    assert (saved.training.steps, saved.training.finished) == (3, False)
    state = SafetensorsCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    expected = make_transcoder(saved.training.transcoder.config)
    expected.load_state_dict({name.removeprefix("transcoder."): state[name] for name in state if "transcoder." in name})
    for name, tensor in weights(saved).items():
        assert torch.equal(tensor, expected.folded().state_dict()[name])
    stored = load_transcoder(tmp_path / "out")
    for name, tensor in weights(saved).items():
        assert torch.equal(stored.state_dict()[name], tensor)
    config = str(tmp_path / "out" / "config.yaml")
    resumed = train_command(["--config", config, "--output", settings["output"], "--ckpt-path", checkpoint])
    assert resumed.training.finished
    assert_same_weights(resumed, finished)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["max_time", "callback", "validation in a step", "validation after a step"])
def test_a_run_that_is_stopped_within_a_step_completes_the_step_and_can_be_resumed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    settings["trainer"] |= {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    settings["checkpoints"] = {"every": 100, "best": False}
    whole = train({**settings, "output": str(tmp_path / "whole")})
    flags: list[str] = []
    if stop == "max_time":  # a fixed batch in place of the clock, which depends on the load of the machine
        monkeypatch.setattr(Timer, "on_train_batch_end", NineBatches.on_train_batch_end)
        flags = ["--trainer.max_time", "00:01:00:00"]
    elif stop == "callback":
        flags = ["--trainer.callbacks", f"{__name__}.NineBatches"]
    else:
        stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "held_out_fvu", "stopping_threshold": 99.0}}
        settings["trainer"] |= {"callbacks": [stopping], "val_check_interval": 9 if stop.endswith("in a step") else 10}
        del settings["trainer"]["limit_val_batches"]
    half = train(settings, *flags)
    assert (half.training.steps, half.training.finished) == (5, False)
    monkeypatch.undo()
    settings["trainer"].pop("callbacks", None)
    assert half.language_model is not None
    use_language_model(half.language_model, monkeypatch)
    resumed = train(settings, "--ckpt-path", "last")
    assert resumed.training.finished
    assert_same_weights(resumed, whole)
    assert resumed.training.curves == whole.training.curves


def test_max_time_counts_all_parts_of_a_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_, **__: 60.0)
    settings["trainer"]["accumulate_grad_batches"] = 2
    train(settings, "--trainer.callbacks", f"{__name__}.NineBatches")
    with refuses(ConfigError, "trainer.max_time", "00:00:00:59"):
        train(settings, "--ckpt-path", "last", "--trainer.max_time", "00:00:00:59")


@pytest.mark.slow
def test_the_settings_of_a_refused_run_are_not_saved(settings: Settings, tmp_path: Path) -> None:
    train(settings)
    config = (tmp_path / "out" / "config.yaml").read_text()
    with refuses(CheckpointError, "steps", 8, 20):
        train(settings, "--ckpt-path", "last", "--trainer.max_steps", "20")
    assert (tmp_path / "out" / "config.yaml").read_text() == config


@pytest.mark.slow
def test_resuming_with_other_settings_is_refused(settings: Settings) -> None:
    train(settings)
    changed = {"learning_rate": "--training.learning_rate=1", "batch_size": "--data.batch_size=16"}
    for name, flag in {**changed, "texts": "--data.texts.column=other", "steps": "--trainer.max_steps=9"}.items():
        with refuses(CheckpointError, name):
            train(settings, "--ckpt-path", "last", flag)
    with refuses(CheckpointError, "nowhere"):
        train(settings, "--ckpt-path", "nowhere")


@pytest.mark.slow
def test_the_last_the_best_and_every_checkpoint_are_kept(settings: Settings, tmp_path: Path) -> None:
    settings["checkpoints"] = {"every": 3, "keep_all": True}
    train(settings, "--trainer.val_check_interval", "2")
    checkpoints = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert checkpoints == ["best", "last", "step-3", "step-6", "step-8"]
    train(settings, "--ckpt-path", str(tmp_path / "out" / "checkpoints" / "step-3"))


@pytest.mark.slow
def test_a_users_own_class_is_what_its_checkpoints_hold(settings: Settings, tmp_path: Path) -> None:
    settings["transcoder"] |= {"class_path": OWN, "init_args": {"share": 0.25}}
    run = train(settings)
    stored, inputs = load_transcoder(tmp_path / "out", own_class=Muffled), torch.randn(9, 3, 32)
    assert isinstance(stored, Muffled)
    assert torch.equal(stored(inputs).reconstruction, run.training.transcoder(inputs).reconstruction)
    built_in = {name: settings["transcoder"][name] for name in ("n_features", "nonlinearity")}
    for changed in ({}, {"class_path": OWN}, {"class_path": OWN, "init_args": {"share": 0.3}}):
        with refuses(CheckpointError, "architecture", OWN):
            train({**settings, "transcoder": built_in | changed}, "--ckpt-path", "last")
    assert isinstance(train(settings, "--ckpt-path", "last").training.transcoder, Muffled)
