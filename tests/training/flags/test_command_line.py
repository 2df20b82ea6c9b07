"""The command line ``open-clt train``: every setting by file or flag, classes of the user's own, and mistakes."""

from __future__ import annotations

import csv
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from open_clt import files
from open_clt.config import (
    CrossLayerConfig,
    DataConfig,
    LearningConfig,
    LossConfig,
    MoltConfig,
    ReportConfig,
    TextsConfig,
)
from open_clt.errors import ConfigError, MissingExtraError, OpenCLTError, TextError
from open_clt.training.flags.command_line import train_command
from open_clt.training.run import set_from_data
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.training.flags.small_run import OWN, Settings, assert_same_weights, train
from tests.training.own import AbsoluteErrors, OwnTranscoder, Precision


def test_a_run_writes_the_folded_transcoder_its_settings_and_its_metrics(settings: Settings, tmp_path: Path) -> None:
    run = train(settings, "--trainer.val_check_interval", "4")
    assert run.training.finished
    stored = load_transcoder(tmp_path / "out")
    assert torch.equal(stored.standardisation.target_scale, torch.ones(3))
    inputs = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stored(inputs).reconstruction, run.training.transcoder(inputs).reconstruction)
    assert (stored.config.n_layers, stored.config.d_model) == (3, 32), "the language model decides them"
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["transcoder"] == settings["transcoder"]
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert [float(row["loss"]) for row in rows] == pytest.approx(run.training.curves.loss)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(run.training.curves.learning_rate)
    assert [bool(row["held_out_fvu"]) for row in rows] == [False, False, False, True] * 2


def test_the_saved_settings_repeat_the_run(settings: Settings, tmp_path: Path) -> None:
    run = train(settings)
    again = train_command(["--config", str(tmp_path / "out" / "config.yaml"), "--output", str(tmp_path / "again")])
    assert_same_weights(again, run)


def test_a_flag_overrides_the_file(settings: Settings) -> None:
    run = train(settings, "--transcoder.n_features", "24", "--training.loss.auxiliary=0", "--trainer.max_steps", "3")
    assert (run.training.transcoder.config.n_features, run.training.steps) == (24, 3)


def test_the_first_position_is_a_setting_of_the_transcoder(settings: Settings) -> None:
    run = train(settings, "--transcoder.use_first_position", "true")
    assert run.training.transcoder.config.use_first_position
    assert run.training.metrics is not None
    assert run.training.metrics.tokens == 4 * 16, "all positions of the held-out contexts are measured"


def test_alternatives_are_chosen_by_flags(settings: Settings) -> None:
    del settings["transcoder"]["nonlinearity"]
    sparsity = ["--training.loss.sparsity.kind", "l1", "--training.loss.sparsity.coefficient", "2"]
    run = train(settings, "--transcoder.nonlinearity.kind", "jumprelu", *sparsity)
    assert run.training.transcoder.config.nonlinearity.kind == "jumprelu"
    run = train({**settings, "output": settings["output"] + "2"}, "--transcoder.nonlinearity.k", "5")
    assert run.training.transcoder.config.nonlinearity.k == 5, "without a kind, it is a setting of the default kind"


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train_command(["--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    groups = {
        "transcoder": (CrossLayerConfig, MoltConfig),
        "training": (LearningConfig,),
        "training.loss": (LossConfig,),
        "data": (DataConfig,),
        "data.texts": (TextsConfig,),
        "report": (ReportConfig,),
    }
    flags = {f"--{group}.{field.name}" for group, kinds in groups.items() for kind in kinds for field in fields(kind)}
    # These settings have other flags: --data.language_model, and those of Lightning's Trainer.
    elsewhere = {"--transcoder.language_model", "--data.epochs", "--data.max_steps", "--data.seed"}
    for flag in flags - elsewhere:
        assert f"{flag} " in help_text or f"{flag}." in help_text, flag
    for flag in ("--trainer.precision", "--trainer.devices", "--trainer.max_time", "--trainer.profiler", "--ckpt_path"):
        assert f"{flag} " in help_text
    for flag in elsewhere:
        assert f"{flag} " not in help_text


def test_a_batch_size_above_the_size_of_the_data_makes_batches_of_all_tokens(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings["data"] = {"class_path": "tests.training.own.OwnStore", "init_args": {"tokens": 320}, "batch_size": 5000}
    run = train(settings)
    (warning,) = [record for record in caplog.records if record.args and record.args[0] == 5000]
    assert warning.args is not None
    assert warning.args[1] * 8 == run.training.tokens <= 8 * 320


@pytest.mark.parametrize(
    ("name", "value"),
    [("language_model", "gpt2"), ("dtype", "float32"), ("context_length", 16), ("harvest_batch_size", 4)],
)
def test_settings_of_a_language_model_are_refused_beside_a_users_own_activations(
    settings: Settings, name: str, value: object
) -> None:
    settings["data"] = {"class_path": "tests.training.own.OwnStore", "init_args": {"tokens": 320}, name: value}
    with refuses(ConfigError, f"data.{name}", "data.class_path"):
        train(settings)


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(settings: Settings) -> None:
    # No feature is dead, so that the losses of both half batches add up to the loss of the large batch.
    whole = train(settings, "--data.batch_size", "32")
    halves = ["--data.batch_size", "16", "--trainer.accumulate_grad_batches", "2"]
    parts = train({**settings, "output": settings["output"] + "2"}, *halves)
    assert (parts.training.steps, parts.training.tokens) == (whole.training.steps, whole.training.tokens)
    assert_same_weights(parts, whole, rtol=1e-3, atol=1e-4)
    assert parts.training.curves.l0 == pytest.approx(whole.training.curves.l0)
    assert parts.training.curves.learning_rate == whole.training.curves.learning_rate


def test_a_users_own_classes_are_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first_weights: list[float] = []

    def watch(transcoder: Any, *rest: Any) -> Any:
        assert isinstance(transcoder, OwnTranscoder)
        first_weights.append(transcoder.W_dec[0].abs().max().item())
        return set_from_data(transcoder, *rest)

    monkeypatch.setattr("open_clt.training.run.set_from_data", watch)
    settings["transcoder"] |= {"class_path": "tests.training.own.OwnTranscoder", "init_args": {"size": 3.0}}
    settings["training"] = {
        "loss": {"class_path": "tests.training.own.AbsoluteErrors", "init_args": {"weight": 2.0}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}},
    }
    settings["data"]["texts"] |= {"class_path": "tests.training.own.texts", "init_args": {"number": 30}}
    del settings["data"]["texts"]["source"]
    run = train(settings)
    assert first_weights[0] == pytest.approx(3 * (3 * 32) ** -0.5, rel=0.01)
    assert max(run.training.curves.learning_rate) == 0.25
    assert run.training.curves.loss[0] > 2 * AbsoluteErrors().weight
    settings |= {"data": {"class_path": "tests.training.own.OwnStore", "init_args": {"tokens": 320}, "batch_size": 64}}
    result = train({**settings, "output": settings["output"] + "2"}).training
    assert (result.transcoder.config.n_layers, result.transcoder.config.d_model, result.held_out) == (2, 12, None)


def test_the_precision_of_matrix_products_is_set_during_training_only(settings: Settings) -> None:
    default = torch.get_float32_matmul_precision()
    settings["trainer"]["callbacks"] = [{"class_path": "tests.training.own.Precision"}]
    for flags, expected in (([], default), (["--training.matmul_precision", "medium"], "medium")):
        Precision.seen.clear()
        train(settings, *flags, "--output", f"{settings['output']}-{expected}")
        assert Precision.seen == {expected}
        assert torch.get_float32_matmul_precision() == default


@pytest.mark.slow
def test_a_profile_is_written_to_the_output_directory(settings: Settings, tmp_path: Path) -> None:
    train(settings, "--trainer.profiler", "simple")
    profile = tmp_path / "out" / "profile" / "summary.txt"
    assert "run_training_batch" in profile.read_text()
    assert {"profile", "profile/summary.txt"} <= files.listed_names(tmp_path / "out")
    mine = files.write_text(profile.with_name("notes.txt"), "mine")
    train(settings, "--overwrite")
    assert [*profile.parent.iterdir()] == [mine]


def test_a_profile_does_not_replace_a_folder_of_another_program(settings: Settings, tmp_path: Path) -> None:
    mine = files.write_text(tmp_path / "out" / "profile" / "summary.txt", "mine")
    with refuses(ConfigError, mine.parent):
        train(settings, "--trainer.profiler", "simple")
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_loggers_write_to_the_output_directory_unless_a_directory_is_set(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = ["--trainer.logger", "tests.training.own.NoteLogger"]
    train(settings, *logger)
    assert (tmp_path / "out" / "note.txt").is_file()
    train({**settings, "output": "out2"}, *logger, "--trainer.logger.save_dir", str(tmp_path / "there"))
    assert (tmp_path / "there" / "note.txt").is_file()
    assert not (tmp_path / "note.txt").exists()
    assert "save_dir: .\n" in (tmp_path / "out" / "config.yaml").read_text(), "saved settings fit any other --output"


def test_the_allocator_is_changed_only_on_request(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("open_clt.training.flags.command_line.keep_freed_memory", lambda: calls.append(True))
    train(settings)
    assert not calls
    path = str(Path(settings["output"]).with_suffix(".yaml"))
    train_command(["--config", path, "--output", settings["output"] + "2"], keep_memory=True)
    assert calls == [True]


def test_training_ends_early_at_a_target_l0(settings: Settings) -> None:
    run = train(settings, "--early_stop.l0", "4", "--early_stop.window", "3")
    assert (run.training.steps, run.training.finished) == (3, False)
    run = train({**settings, "output": settings["output"] + "2"}, "--early_stop.l0", "3.9", "--early_stop.window", "3")
    assert run.training.finished


def test_settings_of_lightnings_trainer_are_used(settings: Settings, tmp_path: Path) -> None:
    del settings["trainer"]["max_steps"]
    settings["data"]["texts"]["max_contexts"] = 20
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
    assert rates[5] == pytest.approx(0.005), "the cosine is at its middle between the warm-up and the end"
    assert rates[3:] == sorted(rates[3:], reverse=True)


WRONG_ARGUMENTS = {
    group: [f"--{group}.class_path", OWN, f"--{group}.init_args.a", "1"] for group in ("transcoder", "training.loss")
}

L1_WITHOUT_WEIGHT = ["--training.loss.sparsity.kind", "l1", "--training.loss.sparsity.coefficient", "0"]
OWN_TEXTS = ["--data.texts.class_path", "tests.training.own.texts"]
OWN_LOSS = ["--training.loss.class_path", "tests.training.own.AbsoluteErrors", "--training.loss.auxiliary", "1"]
OWN_OPTIMIZER = ["--training.optimizer.class_path", "torch.optim.SGD", "--training.learning_rate", "0.1"]
OWN_ACTIVATIONS = ["--data.class_path", "tests.training.own.OwnStore", "--data.init_args.tokens", "320"]


@pytest.mark.parametrize(
    ("flags", "error", "named"),
    [
        (["--transcoder.n_featurs", "3"], ConfigError, ["transcoder.n_featurs", "transcoder.n_features"]),
        (["--transcoder.n_features", "many"], ConfigError, ["transcoder.n_features", "'many'"]),
        (["--seed_everything=-1"], ConfigError, ["seed_everything", -1]),
        (["--seed_everything", str(2**32)], ConfigError, ["seed_everything", 2**32]),
        (["--trainer.precision="], ConfigError, ["trainer.precision", "''"]),
        (["--transcoder.nonlinearity.kind", "jump"], ConfigError, ["'relu'", "'jumprelu'", "'topk'", "'batchtopk'"]),
        (["--transcoder.nonlinearity.kind", "relu"], ConfigError, ["transcoder.nonlinearity.k", "'relu'"]),
        (["--transcoder.kind", "molt"], ConfigError, ["transcoder.n_features", "'molt'", "ranks"]),
        (["--training.loss.sparsity.kind", "l1"], ConfigError, ["training.loss.sparsity.coefficient", "'l1'"]),
        (["--training.optimizer", "torch.optim.SGD"], ConfigError, ["training.optimizer.class_path"]),
        (["--transcoder.n_layers", "5"], ConfigError, ["transcoder.n_layers", 5, 3]),
        (["--transcoder.class_path", "nowhere.Mine"], ConfigError, ["'nowhere.Mine'"]),
        (["--transcoder.class_path", "builtins.dict"], ConfigError, ["'builtins.dict'"]),
        (WRONG_ARGUMENTS["transcoder"], ConfigError, [OWN, "init_args"]),
        (WRONG_ARGUMENTS["training.loss"], ConfigError, [OWN, "init_args"]),
        (["--trainer.precision", "bf16-true"], ConfigError, ["trainer.precision", "'bf16-true'", "'bf16-mixed'"]),
        (["--trainer.precision", "16-true"], ConfigError, ["trainer.precision", "'16-true'"]),
        (["--trainer.fast_dev_run", "1"], ConfigError, ["trainer.fast_dev_run"]),
        (["--trainer.limit_train_batches", "1"], ConfigError, ["trainer.limit_train_batches"]),
        (["--trainer.accumulate_grad_batches", "0"], ConfigError, ["trainer.accumulate_grad_batches", 0]),
        (["--trainer.gradient_clip_val=-1"], ConfigError, ["trainer.gradient_clip_val", -1]),
        (["--trainer.max_steps", "0"], ConfigError, ["trainer.max_steps", 0]),
        (["--trainer.max_epochs", "0"], ConfigError, ["trainer.max_epochs", 0]),
        (OWN_TEXTS, ConfigError, ["data.texts.source", "data.texts.class_path"]),
        (OWN_ACTIVATIONS, ConfigError, ["data.texts.held_out_contexts", "data.class_path"]),
        (OWN_LOSS, ConfigError, ["training.loss.auxiliary", "training.loss.class_path"]),
        (OWN_OPTIMIZER, ConfigError, ["training.learning_rate", "training.optimizer"]),
        (["--training.loss.init_args.a", "1"], ConfigError, ["training.loss.init_args", "training.loss.class_path"]),
        (["--data.texts.column", "body"], TextError, ["'body'", "text", "other"]),
        (["--data.texts.source", "gone.jsonl"], TextError, ["gone.jsonl"]),
        (["--data.texts.held_out_contexts", "5000"], TextError, [5000]),
        (["--checkpoints.every", "0"], ConfigError, ["every", 0]),
        (["--report.graphs=-1"], ConfigError, ["graphs", -1]),
        (["--report.prompts", "gone.txt"], TextError, ["gone.txt"]),
        (["--early_stop.l0=-1"], ConfigError, ["l0", -1.0]),
        (["--trainer.accelerator", "abacus"], ConfigError, ["abacus"]),
        (["--config", "nowhere.yaml"], ConfigError, ["nowhere.yaml"]),
    ],
)
def test_a_mistake_is_named_in_one_line_and_nothing_is_written(
    settings: Settings, flags: list[str], error: type[OpenCLTError], named: list[object]
) -> None:
    with refuses(error, *named) as raised:
        train(settings, *flags)
    assert "\n" not in str(raised.value)
    assert not Path(settings["output"]).exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--training.loss.preactivation_on", "dead"], ["training.loss.preactivation_on", "preactivation"]),
        (["--training.loss.auxiliary", "0", "--training.loss.auxiliary_k", "32"], ["training.loss.auxiliary_k"]),
        ([*L1_WITHOUT_WEIGHT, "--training.loss.sparsity.warmup", "0.5"], ["training.loss.sparsity.warmup"]),
        (["--data.texts.held_out_contexts", "0", "--report.graphs", "8"], ["report.graphs", "held_out_contexts"]),
        (
            ["--data.texts.held_out_contexts", "0", "--checkpoints.best", "true"],
            ["checkpoints.best", "held_out_contexts"],
        ),
        (["--report.graphs", "0", "--report.max_feature_nodes", "1024"], ["report.max_feature_nodes", "report.graphs"]),
        (["--trainer.enable_checkpointing", "false", "--checkpoints.every", "5"], ["checkpoints.every"]),
        (["--early_stop.window", "5"], ["window", 5, "l0"]),
    ],
)
def test_a_setting_without_use_is_refused_also_with_its_default(
    settings: Settings, flags: list[str], named: list[object]
) -> None:
    with refuses(ConfigError, *named):
        train(settings, *flags)
    assert not Path(settings["output"]).exists()


def test_a_report_is_refused_beside_activations_without_a_model(settings: Settings) -> None:
    settings["data"] = {"class_path": "tests.training.own.OwnStore", "init_args": {"tokens": 320}}
    with refuses(ConfigError, "report.graphs", "data.class_path"):
        train(settings, "--report.graphs", "8")


def test_activations_of_a_class_that_is_not_a_store_are_refused(settings: Settings) -> None:
    settings["data"] = {"class_path": "builtins.int"}
    with refuses(ConfigError, "data.class_path", "'builtins.int'", "ActivationStore"):
        train(settings)


def test_missing_texts_are_named_by_their_flag(settings: Settings) -> None:
    del settings["data"]["texts"]["source"]
    with refuses(ConfigError, "data.texts.source"):
        train(settings)


@pytest.mark.skipif(bool(find_spec("tensorboard") or find_spec("tensorboardX")), reason="TensorBoard is installed")
def test_a_logger_that_is_not_installed_is_named(settings: Settings, tmp_path: Path) -> None:
    with refuses(MissingExtraError, "trainer.logger TensorBoardLogger", "'open-clt[tensorboard]'") as raised:
        train(settings, "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", str(tmp_path))
    assert "\n" not in str(raised.value)


ADAM_IN_BACKWARD = "open_clt.training.step.adam_in_backward.AdamInBackward"


@pytest.mark.slow
def test_adam_in_the_backward_pass_trains_as_adam_does(settings: Settings, tmp_path: Path) -> None:
    settings["trainer"]["gradient_clip_val"] = None
    usual = train(settings)
    settings["output"] = str(tmp_path / "frugal")
    settings["training"] = {"optimizer": {"class_path": ADAM_IN_BACKWARD, "init_args": {"lr": 0.01}}}
    assert_same_weights(train(settings), usual, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("setting", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_adam_in_the_backward_pass_refuses_what_needs_all_gradients(settings: Settings, setting: Settings) -> None:
    settings["trainer"] |= {"gradient_clip_val": None, **setting}
    settings["training"] = {"optimizer": {"class_path": ADAM_IN_BACKWARD, "init_args": {"lr": 0.01}}}
    with refuses(ConfigError, "AdamInBackward", *(f"trainer.{name}" for name in setting)):
        train(settings)
