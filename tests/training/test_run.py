"""Training runs: they can be repeated, stopped and resumed, and are the same from Python and from the command line."""

from __future__ import annotations

import gc
import json
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from open_clt.config import CrossLayerConfig, JumpReLUConfig, NonlinearityConfig, ReLUConfig, TopKConfig, TrainingConfig
from open_clt.data import harvest
from open_clt.data.contexts import pack_contexts
from open_clt.errors import CheckpointError, ConfigError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.program import Stopped
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.flags.command_line import train_command
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, train_on_activations, train_transcoder
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import read_record
from tests.refusals import refuses
from tests.tiny_models import TEXTS
from tests.training.synthetic import FEATURES, quick_training, relu_mlps, small_transcoder


class PressCtrlC(Callback):
    """Sends the signal of Ctrl-C after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *rest: Any, **named: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def run(
    *callbacks: Callback, output_dir: Path | str | None = None, resume: Any = None, **settings: Any
) -> TrainingResult:
    return train_on_activations(
        relu_mlps(1500),
        small_transcoder(),
        quick_training(**({} if "max_steps" in settings else {"epochs": 2}), **settings),
        held_out=relu_mlps(300, seed=1),
        progress=False,
        output_dir=output_dir,
        resume=resume,
        own=OwnParts(callbacks=callbacks),
    )


def assert_identical(result: TrainingResult, expected: TrainingResult) -> None:
    """Two results are equal in all tensors and numbers, apart from measured times."""
    for name, tensor in result.transcoder.state_dict().items():
        assert torch.equal(tensor, expected.transcoder.state_dict()[name]), name
    times = {"seconds": 0, "harvest_seconds": {}}
    assert {**result.summary(), **times} == {**expected.summary(), **times}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers() -> None:
    result = run()
    assert_identical(run(seed=0), result)
    assert run(seed=1).curves.loss != result.curves.loss


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [1.0, 2e-5], ids=["in memory", "harvested during training"])
def test_a_run_that_is_resumed_after_ctrl_c_ends_where_an_uninterrupted_run_does(
    tmp_path: Path, memory_limit: float
) -> None:
    handler = signal.getsignal(signal.SIGINT)  # not the default one if the suite runs in the background
    whole = run(memory_limit=memory_limit)
    half = run(PressCtrlC(17), memory_limit=memory_limit, output_dir=tmp_path)
    assert (half.finished, half.interrupted, half.steps) == (False, True, 17)
    assert half.metrics is not None
    stopped = load_transcoder(tmp_path)
    torch.testing.assert_close(stopped.W_enc, half.transcoder.W_enc, rtol=0, atol=0)
    assert read_record(tmp_path)["finished"] is False

    resumed = run(memory_limit=memory_limit, output_dir=tmp_path, resume="last")
    assert resumed.finished
    assert_identical(resumed, whole)
    assert read_record(tmp_path)["curves"]["loss"] == whole.curves.loss
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_run_that_a_signal_stops_keeps_its_checkpoint_and_says_how_to_go_on(ending: int, tmp_path: Path) -> None:
    class Terminate(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any, **named: Any) -> None:
            if trainer.global_step == 5:
                signal.raise_signal(ending)

    def receive(number: int, frame: Any) -> None:
        raise Stopped(number)

    former = signal.signal(ending, receive)
    try:
        with pytest.raises(Stopped) as stopped:
            run(Terminate(), output_dir=tmp_path, max_steps=8)
    finally:
        assert signal.signal(ending, former) is receive
    assert stopped.value.number == ending
    assert str(tmp_path / "checkpoints" / "last") in stopped.value.advice
    resumed = run(output_dir=tmp_path, resume="last", max_steps=8)
    assert_identical(resumed, run(max_steps=8))


def test_a_second_signal_stops_a_run_at_once_and_keeps_its_former_checkpoint(tmp_path: Path) -> None:
    class Terminate(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any, **named: Any) -> None:
            if trainer.global_step == 5:
                signal.raise_signal(signal.SIGTERM)

        def on_save_checkpoint(self, trainer: Any, *rest: Any, **named: Any) -> None:
            if trainer.global_step == 6:
                signal.raise_signal(signal.SIGTERM)

    def receive(number: int, frame: Any) -> None:
        raise Stopped(number)

    former = signal.signal(signal.SIGTERM, receive)
    try:
        with pytest.raises(Stopped):
            run(Terminate(), output_dir=tmp_path, max_steps=8, every=3)
    finally:
        signal.signal(signal.SIGTERM, former)
    state = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "checkpoints" / "last")
    assert state["global_step"] == 3


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("nonlinearity", [ReLUConfig(), JumpReLUConfig()], ids=str)
def test_features_start_at_the_initial_firing_rate(nonlinearity: NonlinearityConfig, rate: float) -> None:
    """Measured in steps with a learning rate of almost zero, and on held-out tokens."""
    config = small_transcoder(nonlinearity=nonlinearity)
    settings = quick_training(max_steps=10, learning_rate=1e-30, initial_firing_rate=rate)
    held_out = relu_mlps(2000, seed=1)
    result = train_on_activations(relu_mlps(4000), config, settings, held_out=held_out, progress=False)
    assert result.metrics is not None
    assert result.metrics.l0 == pytest.approx(rate * FEATURES, rel=0.1)
    assert sum(result.curves.l0) / 10 == pytest.approx(rate * FEATURES, rel=0.2)
    features = result.transcoder.encode(torch.cat([batch.inputs for batch in held_out.batches]))
    density = torch.stack([layer.dense() > 0 for layer in features]).float().mean(1)
    assert density.amin() > 0.5 * rate
    assert density.amax() < 2 * rate


@pytest.mark.slow
def test_a_run_that_crashed_is_resumed_from_its_newest_checkpoint(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any, **named: Any) -> None:
            if trainer.global_step == 13:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run(Crash(), every=5, output_dir=tmp_path)
    assert json.loads((tmp_path / "checkpoints" / "last" / "state.json").read_text())
    assert_identical(run(every=5, output_dir=tmp_path, resume="last"), run())


@pytest.mark.parametrize("last_step", [3, 20], ids=["stopped", "finished"])
def test_activations_are_freed_at_the_end_of_a_run(last_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[weakref.ref[torch.Tensor]] = []
    room_for = harvest._room_for  # pyright: ignore[reportPrivateUsage]

    def watched(*arguments: Any) -> harvest.ActivationBatch:
        batch = room_for(*arguments)
        buffers.extend(weakref.ref(field) for field in batch)
        return batch

    monkeypatch.setattr(harvest, "_room_for", watched)
    gc.disable()
    try:
        result = run(PressCtrlC(last_step), max_steps=10)
        assert result.steps == min(last_step, 10)
        assert len(buffers) == 4
        assert all(buffer() is None for buffer in buffers)
    finally:
        gc.enable()


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(PressCtrlC(5), output_dir=tmp_path)
    with refuses(CheckpointError, "learning_rate", 0.005, 0.1):
        run(output_dir=tmp_path, resume="last", learning_rate=0.1)
    with refuses(CheckpointError, tmp_path / "elsewhere"):
        run(output_dir=tmp_path, resume=tmp_path / "elsewhere")


def test_an_output_directory_that_cannot_be_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("the user's own")
    with refuses(ConfigError, str(tmp_path / "taken")):
        run(PressCtrlC(1), output_dir=tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "the user's own"


def test_a_directory_that_holds_a_run_is_refused_for_another_run(tmp_path: Path) -> None:
    result = run(output_dir=tmp_path, max_steps=5)
    with refuses(ConfigError, tmp_path):
        run(output_dir=tmp_path, max_steps=5, seed=1)
    assert torch.equal(load_transcoder(tmp_path).W_enc, result.transcoder.W_enc)


def test_a_run_pickles_nothing_and_writes_to_its_output_directory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("pickle was used")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.chdir(tmp_path)
    run(max_steps=3)
    assert not list(tmp_path.iterdir()), "without an output directory, nothing is written"
    run(PressCtrlC(5), output_dir="out", max_steps=8)
    run(output_dir="out", resume="last", max_steps=8)
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".open-clt.json", "checkpoints", "config.json", "metrics.csv", "transcoder.safetensors",
    ]  # fmt: skip
    assert [path.name for path in Path().iterdir()] == ["out"]
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_progress_shows_loss_fvu_l0_and_dead_share(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat standard error as a terminal
    train_on_activations(relu_mlps(300), small_transcoder(), quick_training())
    printed = capsys.readouterr()
    assert printed.out == ""
    output = " ".join(printed.err.split())
    for name in ("loss", "FVU", "L0", "dead"):
        assert name in output


@pytest.mark.slow
def test_a_transcoder_of_a_language_model_learns_from_texts(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    config = CrossLayerConfig(n_layers=3, n_features=48, d_model=32, nonlinearity=TopKConfig(k=8))
    settings = quick_training(epochs=8, context_length=16, learning_rate=1e-2)
    result = train_transcoder(tiny_gpt2, TEXTS * 10, config, settings, output_dir=tmp_path, progress=False)
    assert result.metrics is not None
    assert result.metrics.fvu < 0.5
    assert result.curves.loss[-1] < result.curves.loss[0]
    assert load_transcoder(tmp_path).config == config
    assert json.loads(json.dumps(result.summary()))["held_out"]["tokens"] == result.metrics.tokens
    assert read_record(tmp_path)["settings"]["data"]["epochs"] == 8


def test_the_facade_the_function_and_the_command_line_train_the_same_weights(
    tiny_gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clt.training.flags.source.load_language_model", lambda *_, **__: tiny_gpt2)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS * 20))
    settings: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.01, "context_length": 16}
    settings |= {"max_steps": 6, "seed": 3}
    flags = [
        "--transcoder.n_features=40",
        "--transcoder.nonlinearity.k=4",
        "--seed_everything=3",
        "--trainer.max_steps=6",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--training.learning_rate=0.01",
        "--data.language_model=tiny",
        "--data.batch_size=32",
        "--data.context_length=16",
        f"--data.texts.source={texts}",
        f"--output={tmp_path / 'command'}",
    ]
    by_command = train_command(flags).training
    clt = OpenCrossLayerTranscoder(tiny_gpt2, num_features=40, nonlinearity=TopKConfig(k=4), seed=3)
    by_facade = clt.train_transcoder(TEXTS * 20, output_dir=tmp_path / "facade", progress=False, **settings)
    by_function = train_transcoder(
        tiny_gpt2,
        TEXTS * 20,
        by_command.transcoder.config,
        TrainingConfig.of(**settings),
        output_dir=tmp_path / "function",
        progress=False,
    )
    assert by_command.held_out is not None
    for result in (by_facade, by_function):
        assert_identical(result, by_command)
        assert result.held_out is not None
        assert torch.equal(result.held_out, by_command.held_out)
    for name in ("facade", "function"):
        stored, expected = (load_transcoder(tmp_path / folder) for folder in (name, "command"))
        assert stored.config == expected.config
        for key, tensor in expected.state_dict().items():
            assert torch.equal(stored.state_dict()[key], tensor)
        tables = [(tmp_path / folder / "metrics.csv").read_text().splitlines() for folder in (name, "command")]
        assert [len(lines) for lines in tables] == [7, 7]
        assert (tmp_path / name / "checkpoints" / "last").is_dir()
    assert torch.equal(clt.transcoder.W_enc, load_transcoder(tmp_path / "facade").W_enc), (
        "the facade's is the saved one"
    )


def test_the_first_contexts_are_held_out(tiny_gpt2: LanguageModel) -> None:
    config = CrossLayerConfig(n_layers=3, n_features=48, d_model=32)
    contexts = pack_contexts(TEXTS * 10, tiny_gpt2, 16)
    settings = quick_training(max_steps=1, context_length=16, held_out_contexts=5)
    for texts in (TEXTS * 10, contexts):
        result = train_transcoder(tiny_gpt2, texts, config, settings, progress=False)
        assert result.held_out is not None
        assert torch.equal(result.held_out, contexts[:5])
    result = train_transcoder(tiny_gpt2, contexts, config, quick_training(max_steps=1), progress=False)
    assert result.held_out is not None
    assert len(result.held_out) == len(contexts) // 10, "by default, a tenth of few contexts is held out"
    none_held_out = quick_training(max_steps=1, held_out_contexts=0)
    result = train_transcoder(tiny_gpt2, contexts, config, none_held_out, progress=False)
    assert (result.held_out, result.metrics) == (None, None)


def test_two_sentences_are_enough_text(tiny_gpt2: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    clt = OpenCrossLayerTranscoder(tiny_gpt2, num_features=16)
    result = clt.train_transcoder(TEXTS[:2], batch_size=2, num_epochs=3, learning_rate=1e-4, progress=False)
    assert result.finished
    assert result.metrics is not None
    assert any("shortened" in record.getMessage() for record in caplog.records)


def test_user_mistakes_are_named(tiny_gpt2: LanguageModel) -> None:
    config = CrossLayerConfig(n_layers=2, n_features=48, d_model=32)
    with refuses(ConfigError, "n_layers"):
        train_transcoder(tiny_gpt2, TEXTS, config, quick_training(), progress=False)
    config = CrossLayerConfig(n_layers=3, n_features=48, d_model=32)
    for texts in (["", " "], torch.zeros(1, 8, dtype=torch.long)):
        with refuses(TextError):
            train_transcoder(tiny_gpt2, texts, config, quick_training(held_out_contexts=1), progress=False)
    with refuses(TextError, "'one string'"):
        train_transcoder(tiny_gpt2, "one string", config, quick_training(), progress=False)
    with refuses(TextError, 5000):
        train_transcoder(tiny_gpt2, TEXTS, config, quick_training(held_out_contexts=5000), progress=False)
