"""Training as a whole: it finds what was planted, repeats itself, stops and goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from open_clt.activations.language_model import LanguageModel
from open_clt.config import CrossLayerConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig
from open_clt.errors import CheckpointError, ConfigError, TextError
from open_clt.models.checkpoint import load_transcoder, read_record
from open_clt.training.train import TrainingRecord, train_on_activations, train_transcoder
from tests.tiny_models import TEXTS
from tests.training.synthetic import FEATURES, quick_training, relu_mlps, small_transcoder


class PressCtrlC(Callback):
    """Sends the signal that Ctrl-C sends, after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def run(**settings: Any) -> TrainingRecord:
    passed = {name: settings.pop(name) for name in ("output_dir", "resume", "callbacks") if name in settings}
    return train_on_activations(
        relu_mlps(1500),
        small_transcoder(),
        quick_training(**{"epochs": 2, **settings}),
        held_out=relu_mlps(300, seed=1),
        progress=False,
        **passed,
    )


def assert_identical(one: TrainingRecord, other: TrainingRecord) -> None:
    for name, tensor in one.transcoder.state_dict().items():
        assert torch.equal(tensor, other.transcoder.state_dict()[name]), name
    first, second = (record.summary() for record in (one, other))
    timed = {"seconds": 0, "harvest_seconds": {}}
    assert {**first, **timed} == {**second, **timed}


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert_identical(run(), run())
    assert run(seed=1).curves.loss != run(seed=0).curves.loss


@pytest.mark.parametrize("memory_limit", [1.0, 2e-5])
def test_ctrl_c_saves_and_resuming_ends_where_no_interruption_would(tmp_path: Path, memory_limit: float) -> None:
    handler = signal.getsignal(signal.SIGINT)  # ignored where the suite runs in the background
    whole = run(memory_limit=memory_limit)
    half = run(memory_limit=memory_limit, output_dir=tmp_path, callbacks=[PressCtrlC(17)])
    assert (half.finished, half.steps) == (False, 17)
    assert half.metrics is not None
    stopped = load_transcoder(tmp_path)
    torch.testing.assert_close(stopped.W_enc, half.transcoder.W_enc, rtol=0, atol=0)
    assert read_record(tmp_path)["finished"] is False

    resumed = run(memory_limit=memory_limit, output_dir=tmp_path, resume=tmp_path)
    assert resumed.finished
    assert_identical(resumed, whole)
    assert read_record(tmp_path)["curves"]["loss"] == whole.curves.loss
    assert not (tmp_path / "resume").exists()
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), JumpReLUConfig()], ids=str)
def test_training_begins_at_the_firing_rate_that_was_asked_for(nonlinearity: NonlinearityConfig, rate: float) -> None:
    """The L0 of the first steps, whose learning rate is next to nothing, on tokens that the biases were not set on."""
    config = small_transcoder(nonlinearity=nonlinearity)
    settings = quick_training(max_steps=10, learning_rate=1e-30, initial_firing_rate=rate)
    held_out = relu_mlps(2000, seed=1)
    record = train_on_activations(relu_mlps(4000), config, settings, held_out=held_out, progress=False)
    assert record.metrics is not None
    assert record.metrics.l0 == pytest.approx(rate * FEATURES, rel=0.1)
    assert sum(record.curves.l0) / 10 == pytest.approx(rate * FEATURES, rel=0.2)
    assert record.metrics.density.amin() > 0.5 * rate
    assert record.metrics.density.amax() < 2 * rate


def test_checkpoints_are_written_every_so_many_steps(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 13:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(checkpoint_every=5, output_dir=tmp_path, callbacks=[Crash()])
    assert_identical(run(checkpoint_every=5, resume=tmp_path), run(checkpoint_every=5))


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(output_dir=tmp_path, callbacks=[PressCtrlC(5)])
    with pytest.raises(CheckpointError, match=r"had learning_rate = 0.005, now it is 0.1"):
        run(resume=tmp_path, learning_rate=0.1)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run(resume=tmp_path / "elsewhere")


def test_nothing_is_pickled_or_left_lying_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("pickle was used")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.chdir(tmp_path)
    run(output_dir="out", callbacks=[PressCtrlC(5)])
    run(output_dir="out", resume="out")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "out",
        "out/config.json",
        "out/transcoder.safetensors",
    ]
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_progress_shows_loss_fvu_l0_and_dead_share(capsys: pytest.CaptureFixture[str]) -> None:
    train_on_activations(relu_mlps(300), small_transcoder(), quick_training())
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("loss", "FVU", "L0", "dead"):
        assert word in shown


def test_a_language_models_transcoder_is_trained_from_texts(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    config = CrossLayerConfig(n_layers=3, n_features=48, d_model=32, nonlinearity=TopKConfig(k=8))
    settings = quick_training(epochs=30, context_length=16)
    record = train_transcoder(tiny_gpt2, TEXTS * 10, config, settings, output_dir=tmp_path, progress=False)
    assert record.metrics is not None
    assert record.metrics.fvu < 0.5
    assert record.curves.loss[-1] < record.curves.loss[0]
    assert load_transcoder(tmp_path).config == config
    assert json.loads(json.dumps(record.summary()))["held_out"]["tokens"] == record.metrics.tokens


def test_user_mistakes_are_named(tiny_gpt2: LanguageModel) -> None:
    config = CrossLayerConfig(n_layers=2, n_features=48, d_model=32)
    with pytest.raises(ConfigError, match="n_layers of the transcoder is 2"):
        train_transcoder(tiny_gpt2, TEXTS, config, quick_training(), progress=False)
    config = CrossLayerConfig(n_layers=3, n_features=48, d_model=32)
    with pytest.raises(TextError, match="give more text"):
        train_transcoder(tiny_gpt2, ["", " "], config, quick_training(), progress=False)
    with pytest.raises(TextError, match="held_out_share"):
        train_transcoder(tiny_gpt2, torch.zeros(1, 8, dtype=torch.long), config, quick_training(), progress=False)
