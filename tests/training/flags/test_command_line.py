"""Training from a command line: every setting by file or flag, classes of one's own, the same run when resumed."""

from __future__ import annotations

import csv
import json
import threading
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from open_clt.config import (
    CrossLayerConfig,
    DataConfig,
    LearningConfig,
    LossConfig,
    MoltConfig,
    ReportConfig,
    TextsConfig,
)
from open_clt.errors import CheckpointError, ConfigError, MissingExtraError, OpenCLTError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.flags.command_line import CommandResult, train_command
from open_clt.training.run import set_from_data
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.make import make_transcoder
from tests.tiny_models import TEXTS
from tests.training.own import AbsoluteErrors, Muffled, OwnTranscoder, Precision

Settings = dict[str, Any]
OWN = "tests.training.own.Muffled"


@pytest.fixture
def settings(tiny_gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A training of eight small steps, which writes to ``tmp_path / "out"``; its language model is loaded already."""
    monkeypatch.setattr(
        "open_clt.training.flags.command_line.load_language_model", lambda name, **_: {"tiny": tiny_gpt2}[name]
    )
    rows = [{"text": text, "other": text.upper()} for text in TEXTS * 30]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "transcoder": {"n_features": 40, "nonlinearity": {"kind": "topk", "k": 4}},
        "training": {"learning_rate": 0.01},
        "data": {
            "language_model": "tiny",
            "context_length": 16,
            "batch_size": 32,
            "texts": {"source": str(tmp_path / "texts.jsonl"), "held_out_contexts": 4},
        },
        "trainer": {"max_steps": 8, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "output": str(tmp_path / "out"),
    }


def train(settings: Settings, *flags: str) -> CommandResult:
    path = Path(settings["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return train_command(["--config", str(path), *flags])


def weights(run: CommandResult) -> dict[str, torch.Tensor]:
    return run.training.transcoder.state_dict()


def assert_equal(one: CommandResult, other: CommandResult, **tolerance: float) -> None:
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], **{"rtol": 0, "atol": 0, **tolerance})


def test_what_is_written_is_the_folded_transcoder_the_settings_and_the_metrics(
    settings: Settings, tmp_path: Path
) -> None:
    run = train(settings, "--trainer.val_check_interval", "4")
    assert run.training.finished
    stored = load_transcoder(tmp_path / "out")
    assert torch.equal(stored.standardisation.target_scale, torch.ones(3))
    inputs = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stored(inputs).reconstruction, run.training.transcoder(inputs).reconstruction)
    assert (stored.config.n_layers, stored.config.d_model) == (3, 32)  # nobody gave them
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["transcoder"] == settings["transcoder"]
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert [float(row["loss"]) for row in rows] == pytest.approx(run.training.curves.loss)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(run.training.curves.learning_rate)
    assert [bool(row["held_out_fvu"]) for row in rows] == [False, False, False, True] * 2


def test_written_settings_make_the_same_training_again(settings: Settings, tmp_path: Path) -> None:
    run = train(settings)
    again = train_command(["--config", str(tmp_path / "out" / "config.yaml"), "--output", str(tmp_path / "again")])
    assert_equal(run, again)


def test_a_flag_overrides_the_file(settings: Settings) -> None:
    run = train(settings, "--transcoder.n_features", "24", "--training.loss.auxiliary=0", "--trainer.max_steps", "3")
    assert (run.training.transcoder.config.n_features, run.training.steps) == (24, 3)


def test_the_first_position_is_a_setting_of_the_transcoder(settings: Settings) -> None:
    run = train(settings, "--transcoder.use_first_position", "true")
    assert run.training.transcoder.config.use_first_position
    assert run.training.metrics is not None
    assert run.training.metrics.tokens == 4 * 16  # all that is held out


def test_alternatives_are_chosen_by_flags(settings: Settings) -> None:
    del settings["transcoder"]["nonlinearity"]
    sparsity = ["--training.loss.sparsity.kind", "l1", "--training.loss.sparsity.coefficient", "2"]
    run = train(settings, "--transcoder.nonlinearity.kind", "jumprelu", *sparsity)
    assert run.training.transcoder.config.nonlinearity.kind == "jumprelu"
    run = train({**settings, "output": settings["output"] + "2"}, "--transcoder.nonlinearity.k", "5")
    assert run.training.transcoder.config.nonlinearity.k == 5  # of the default kind


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train_command(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    groups = {
        "transcoder": (CrossLayerConfig, MoltConfig),
        "training": (LearningConfig,),
        "training.loss": (LossConfig,),
        "data": (DataConfig,),
        "data.texts": (TextsConfig,),
        "report": (ReportConfig,),
    }
    known = {f"--{group}.{field.name}" for group, kinds in groups.items() for kind in kinds for field in fields(kind)}
    # What the language model and Lightning's Trainer say is not said twice.
    elsewhere = {"--transcoder.language_model", "--data.epochs", "--data.max_steps", "--data.seed"}
    for flag in known - elsewhere:
        assert f"{flag} " in said or f"{flag}." in said, flag
    for flag in ("--trainer.precision", "--trainer.devices", "--trainer.max_time", "--trainer.profiler", "--ckpt_path"):
        assert f"{flag} " in said
    for flag in elsewhere:
        assert f"{flag} " not in said


@pytest.mark.parametrize("memory_limit", [1.0, 5e-5])
def test_resuming_ends_where_no_interruption_would(
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
    stopped = {**settings, "trainer": {**settings["trainer"], "callbacks": [interrupt]}}
    half = train(stopped)
    assert (half.training.steps, half.training.finished) == (5, False)  # the step that was begun is completed
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
    with pytest.raises(ConfigError):
        train(settings)
    resumed = train(settings, "--ckpt-path", "last")
    assert resumed.training.finished
    assert_equal(resumed, whole)
    assert resumed.training.curves == whole.training.curves
    columns = ("step", "loss", "fvu", "l0", "learning_rate")
    rows = []
    for name in ("out", "whole"):
        with (tmp_path / name / "metrics.csv").open() as file:
            rows.append([[row[column] for column in columns] for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8


def test_no_more_time_writes_what_a_checkpoint_holds_and_leaves_the_rest_of_the_training_to_be_done(
    settings: Settings, tmp_path: Path
) -> None:
    stopped = train({**settings, "checkpoints": {"every": 3, "keep_all": True}}, "--checkpoints.best", "false")
    killed = str(tmp_path / "out" / "checkpoints" / "step-3")
    for file in ("transcoder.safetensors", "config.json"):
        (tmp_path / "out" / file).unlink()
    written = train(settings, "--ckpt-path", killed, "--trainer.max_time", "00:00:00:00")
    assert (written.training.steps, written.training.finished) == (3, False)
    kept = SafetensorsCheckpointIO().load_checkpoint(killed)["state_dict"]
    reached = make_transcoder(written.training.transcoder.config)
    reached.load_state_dict({name.removeprefix("transcoder."): kept[name] for name in kept if "transcoder." in name})
    for name, tensor in weights(written).items():
        assert torch.equal(tensor, reached.folded().state_dict()[name])
    stored = load_transcoder(tmp_path / "out")
    for name, tensor in written.training.transcoder.state_dict().items():
        assert torch.equal(stored.state_dict()[name], tensor)
    config = str(tmp_path / "out" / "config.yaml")
    resumed = train_command(["--config", config, "--output", settings["output"], "--ckpt-path", killed])
    assert resumed.training.finished
    assert_equal(resumed, stopped)


class NineBatches(Callback):
    """Stops a training in the middle of its fifth step of two batches, and says so to nobody before."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop |= trainer.fit_loop.batch_idx + 1 >= 9


@pytest.mark.parametrize("stop", ["max_time", "callback", "validation in a step", "validation after a step"])
def test_whatever_stops_a_training_leaves_the_end_of_a_step_to_go_on_from(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    settings["trainer"] |= {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    settings["checkpoints"] = {"every": 100, "best": False}
    whole = train({**settings, "output": str(tmp_path / "whole")})
    flags: list[str] = []
    if stop == "max_time":  # the clock of a test that is slow today must not decide
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
    monkeypatch.setattr(
        "open_clt.training.flags.command_line.load_language_model", lambda *_, **__: half.language_model
    )
    resumed = train(settings, "--ckpt-path", "last")
    assert resumed.training.finished
    assert_equal(resumed, whole)
    assert resumed.training.curves == whole.training.curves


def test_time_counts_all_parts_of_a_training(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_, **__: 60.0)
    settings["trainer"]["accumulate_grad_batches"] = 2
    train(settings, "--trainer.callbacks", f"{__name__}.NineBatches")
    with pytest.raises(ConfigError, match="00:00:00:59"):
        train(settings, "--ckpt-path", "last", "--trainer.max_time", "00:00:00:59")


def test_what_a_refused_resume_asked_for_is_not_kept(settings: Settings, tmp_path: Path) -> None:
    train(settings, "--checkpoints.every", "3")
    kept = (tmp_path / "out" / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"steps\b.*8\b.*20\b"):
        train(settings, "--ckpt-path", "last", "--trainer.max_steps", "20")
    assert (tmp_path / "out" / "config.yaml").read_text() == kept


def test_batches_larger_than_the_data_are_counted_as_they_are(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings["data"] = {"class_path": "tests.training.own.OwnStore", "init_args": {"tokens": 320}, "batch_size": 5000}
    run = train(settings)
    (said,) = [record.getMessage() for record in caplog.records if "batch_size is 5000" in record.getMessage()]
    assert int(said.split("all ")[1].split()[0]) * 8 == run.training.tokens <= 8 * 320


def test_resuming_with_other_settings_is_refused(settings: Settings) -> None:
    train(settings)
    changed = {"learning_rate": "--training.learning_rate=1", "batch_size": "--data.batch_size=16"}
    for name, flag in {**changed, "texts": "--data.texts.column=other", "steps": "--trainer.max_steps=9"}.items():
        with pytest.raises(CheckpointError, match=f"had {name} = "):
            train(settings, "--ckpt-path", "last", flag)
    with pytest.raises(CheckpointError, match="nowhere"):
        train(settings, "--ckpt-path", "nowhere")


def test_the_last_the_best_and_every_checkpoint_are_kept(settings: Settings, tmp_path: Path) -> None:
    settings["checkpoints"] = {"every": 3, "keep_all": True}
    train(settings, "--trainer.val_check_interval", "2")
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["best", "last", "step-3", "step-6", "step-8"]
    train(settings, "--ckpt-path", str(tmp_path / "out" / "checkpoints" / "step-3"))


def test_accumulated_batches_equal_one_large_batch(settings: Settings) -> None:
    # One thread of numbers: neither half-batch sees dead features, and the clip is the same.
    whole = train(settings, "--data.batch_size", "32")
    halves = ["--data.batch_size", "16", "--trainer.accumulate_grad_batches", "2"]
    parts = train({**settings, "output": settings["output"] + "2"}, *halves)
    assert (parts.training.steps, parts.training.tokens) == (whole.training.steps, whole.training.tokens)
    assert_equal(parts, whole, rtol=1e-3, atol=1e-4)
    assert parts.training.curves.l0 == pytest.approx(whole.training.curves.l0)
    assert parts.training.curves.learning_rate == whole.training.curves.learning_rate


def test_classes_of_ones_own_plug_in(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[float] = []

    def watched(transcoder: Any, *rest: Any) -> Any:
        assert isinstance(transcoder, OwnTranscoder)
        started.append(transcoder.W_dec[0].abs().max().item())
        return set_from_data(transcoder, *rest)

    monkeypatch.setattr("open_clt.training.run.set_from_data", watched)
    settings["transcoder"] |= {"class_path": "tests.training.own.OwnTranscoder", "init_args": {"size": 3.0}}
    settings["training"]["loss"] = {"class_path": "tests.training.own.AbsoluteErrors", "init_args": {"weight": 2.0}}
    settings["training"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}
    settings["data"]["texts"] |= {"class_path": "tests.training.own.texts", "init_args": {"number": 30}}
    del settings["data"]["texts"]["source"]
    run = train(settings)
    assert started[0] == pytest.approx(3 * (3 * 32) ** -0.5, rel=0.01)
    assert max(run.training.curves.learning_rate) == 0.25
    assert run.training.curves.loss[0] > 2 * AbsoluteErrors().weight
    settings |= {"data": {"class_path": "tests.training.own.OwnStore", "init_args": {"tokens": 320}, "batch_size": 64}}
    run = train({**settings, "output": settings["output"] + "2"})
    assert (run.training.transcoder.config.n_layers, run.training.transcoder.config.d_model, run.training.held_out) == (
        2,
        12,
        None,
    )


def test_a_class_of_ones_own_is_what_its_checkpoints_hold(settings: Settings, tmp_path: Path) -> None:
    settings["transcoder"] |= {"class_path": OWN, "init_args": {"share": 0.25}}
    run = train(settings)
    stored, inputs = load_transcoder(tmp_path / "out"), torch.randn(9, 3, 32)
    assert isinstance(stored, Muffled)
    assert torch.equal(stored(inputs).reconstruction, run.training.transcoder(inputs).reconstruction)
    for other in ({}, {"class_path": OWN}, {"class_path": OWN, "init_args": {"share": 0.3}}):
        plain = {name: settings["transcoder"][name] for name in ("n_features", "nonlinearity")}
        with pytest.raises(CheckpointError, match=r"had architecture = \{'class_path': '.*Muffled'"):
            train({**settings, "transcoder": plain | other}, "--ckpt-path", "last")
    assert isinstance(train(settings, "--ckpt-path", "last").training.transcoder, Muffled)


def test_products_of_matrices_are_as_exact_as_asked_for_while_training(settings: Settings) -> None:
    before = torch.get_float32_matmul_precision()
    settings["trainer"]["callbacks"] = [{"class_path": "tests.training.own.Precision"}]
    for flags, meanwhile in (([], before), (["--training.matmul_precision", "medium"], "medium")):
        Precision.seen.clear()
        train(settings, *flags, "--output", f"{settings['output']}-{meanwhile}")
        assert Precision.seen == {meanwhile}
        assert torch.get_float32_matmul_precision() == before


def test_a_profile_is_written_beside_the_rest(settings: Settings, tmp_path: Path) -> None:
    train(settings, "--trainer.profiler", "simple")
    assert "run_training_batch" in (tmp_path / "out" / "fit-profile.txt").read_text()
    train(settings, "--output", str(tmp_path / "other"))
    assert not list((tmp_path / "other").glob("*profile*"))


def test_loggers_write_to_the_output_unless_told_otherwise(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = ["--trainer.logger", "tests.training.own.NoteLogger"]
    train(settings, *logger)
    assert (tmp_path / "out" / "note.txt").is_file()
    train({**settings, "output": "out2"}, *logger, "--trainer.logger.save_dir", str(tmp_path / "there"))
    assert (tmp_path / "there" / "note.txt").is_file()
    assert not (tmp_path / "note.txt").exists()
    assert "save_dir: .\n" in (tmp_path / "out" / "config.yaml").read_text(), "another --output is another place"


def test_nobodys_allocator_is_changed_unasked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("open_clt.training.flags.command_line.keep_freed_memory", lambda: asked.append(True))
    train(settings)
    assert not asked
    path = str(Path(settings["output"]).with_suffix(".yaml"))
    train_command(["--config", path, "--output", settings["output"] + "2"], keep_memory=True)
    assert asked == [True]


def test_training_ends_early_at_a_target_l0(settings: Settings) -> None:
    run = train(settings, "--early_stop.l0", "4", "--early_stop.window", "3")
    assert (run.training.steps, run.training.finished) == (3, False)
    run = train({**settings, "output": settings["output"] + "2"}, "--early_stop.l0", "3.9", "--early_stop.window", "3")
    assert run.training.finished


def test_lightnings_own_settings_reach_its_trainer(settings: Settings, tmp_path: Path) -> None:
    del settings["trainer"]["max_steps"]
    profiler = ["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.dirpath", str(tmp_path)]
    profiler += ["--trainer.profiler.filename", "profile"]
    run = train(settings, "--trainer.max_epochs", "2", "--trainer.precision", "bf16-mixed", *profiler)
    assert run.training.finished
    assert run.training.steps == 2 * (run.training.tokens // 2 // 32)
    assert "run_training_batch" in next(tmp_path.glob("*profile*.txt")).read_text()
    assert run.training.curves.loss[-1] < run.training.curves.loss[0]


def test_the_learning_rate_can_follow_a_cosine(settings: Settings) -> None:
    flags = ["--training.schedule", "cosine", "--training.warmup_share", "0.25", "--training.decay_share", "0.0"]
    rates = train(settings, *flags).training.curves.learning_rate
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[5] == pytest.approx(0.005)  # half-way between the warm-up and the end
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--transcoder.n_featurs", "3"], ConfigError, "did you mean 'transcoder.n_features'"),
        (["--transcoder.n_features", "many"], ConfigError, "transcoder.n_features is 'many'; it must be a whole num"),
        (["--transcoder.nonlinearity.kind", "jump"], ConfigError, "'relu' or 'jumprelu' or 'topk' or 'batchtopk'"),
        (["--transcoder.nonlinearity.kind", "relu"], ConfigError, r"nonlinearity\.k is given, but kind 'relu' has no"),
        (
            ["--transcoder.kind", "molt"],
            ConfigError,
            r"transcoder\.n_features is given, but kind 'molt' has no such .* ra",
        ),
        (["--training.loss.sparsity.kind", "l1"], ConfigError, r"sparsity\.coefficient is missing; kind 'l1' needs it"),
        (["--training.optimizer", "torch.optim.SGD"], ConfigError, r"a group: set training\.optimizer\.class_path or "),
        (["--transcoder.n_layers", "5"], ConfigError, "n_layers is 5, but the data has 3"),
        (["--transcoder.class_path", "nowhere.Mine"], ConfigError, "'nowhere.Mine' cannot be imported"),
        (["--transcoder.class_path", "builtins.dict"], ConfigError, "'builtins.dict'"),
        (
            ["--transcoder.class_path", OWN, "--transcoder.init_args.a", "1"],
            ConfigError,
            "cannot be made with init_args",
        ),
        (
            ["--training.loss.class_path", OWN, "--training.loss.init_args.a", "1"],
            ConfigError,
            "be made with init_args",
        ),
        (["--trainer.precision", "bf16-true"], ConfigError, "'bf16-true', which rounds weights .* take 'bf16-mixed'"),
        (["--trainer.precision", "16-true"], ConfigError, "'16-true', which rounds weights"),
        (["--trainer.fast_dev_run", "1"], ConfigError, "fast_dev_run would leave a transcoder of a step or two"),
        (["--data.class_path", "builtins.int"], ConfigError, "ActivationStore"),
        (["--training.loss.init_args.a", "1"], ConfigError, "without training.loss.class_path"),
        (["--data.texts.column", "body"], TextError, "no column 'body'; it has text, other"),
        (["--data.texts.source", "gone.jsonl"], TextError, "no file gone.jsonl"),
        (["--data.texts.held_out_contexts", "5000"], TextError, "5000 are to be held out"),
        (["--checkpoints.every", "0"], ConfigError, "every is 0"),
        (["--report.graphs=-1"], ConfigError, "graphs is -1"),
        (["--report.prompts", "gone.txt"], TextError, "gone.txt cannot be read"),
        (["--early_stop.l0=-1"], ConfigError, "l0 is -1"),
        (["--trainer.accelerator", "abacus"], ConfigError, "Lightning cannot train that way.*abacus"),
        (["--config", "nowhere.yaml"], ConfigError, "nowhere.yaml"),
    ],
)
def test_mistakes_are_named_in_one_line(
    settings: Settings, flags: list[str], error: type[OpenCLTError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        train(settings, *flags)
    assert "\n" not in str(raised.value)
    assert not Path(settings["output"]).exists(), "it leaves nothing behind"


def test_texts_are_asked_for_by_their_flag(settings: Settings) -> None:
    del settings["data"]["texts"]["source"]
    with pytest.raises(ConfigError, match=r"data\.texts\.source is missing"):
        train(settings)


@pytest.mark.skipif(bool(find_spec("tensorboard") or find_spec("tensorboardX")), reason="TensorBoard is installed")
def test_a_logger_that_is_not_installed_is_named(settings: Settings, tmp_path: Path) -> None:
    message = r"trainer\.logger TensorBoardLogger needs the package tensorboard; pip install 'open-clt\[tensorboard\]'"
    with pytest.raises(MissingExtraError, match=message) as raised:
        train(settings, "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(tmp_path))
    assert "\n" not in str(raised.value)


ADAM_IN_BACKWARD = "open_clt.training.step.adam_in_backward.AdamInBackward"


def test_updating_in_the_backward_pass_trains_as_adam_does(settings: Settings, tmp_path: Path) -> None:
    settings["trainer"]["gradient_clip_val"] = None
    usual = train(settings)
    settings["output"] = str(tmp_path / "frugal")
    settings["training"]["optimizer"] = {"class_path": ADAM_IN_BACKWARD, "init_args": {"lr": 0.01}}
    assert_equal(train(settings), usual, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("asked", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_what_needs_all_gradients_is_refused_where_none_is_kept(settings: Settings, asked: Settings) -> None:
    settings["trainer"] |= {"gradient_clip_val": None, **asked}
    settings["training"]["optimizer"] = {"class_path": ADAM_IN_BACKWARD, "init_args": {"lr": 0.01}}
    with pytest.raises(ConfigError, match="AdamInBackward keeps no gradients"):
        train(settings)
