"""``open-clt train --dry-run``: it says what the run takes, and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from open_clt.cli import main
from open_clt.errors import ConfigError
from open_clt.training.flags.command_line import forecast_command
from open_clt.training.forecast import Forecast
from tests.refusals import refuses
from tests.training.data.stored_run import TOO_SMALL, write
from tests.training.flags.small_run import Settings, train
from tests.training.synthetic import D_MODEL, LAYERS


def on(data: Path, tmp_path: Path, **trainer: Any) -> Settings:
    """Settings of a small run on a dataset."""
    return {
        "transcoder": {"n_features": 24, "nonlinearity": {"kind": "topk", "k": 4}},
        "data": {"path": str(data), "batch_size": 64},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, **trainer},
        "output": str(tmp_path / "out"),
    }


def flags(settings: Settings, path: Path) -> list[str]:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["--config", str(path), "--dry-run"]


@pytest.mark.parametrize("memory_limit", [1.0, TOO_SMALL], ids=["in memory", "read during training"])
def test_a_dry_run_says_what_the_run_takes(tmp_path: Path, memory_limit: float) -> None:
    settings = on(write(tmp_path / "data"), tmp_path, max_epochs=2, accumulate_grad_batches=2)
    settings["data"]["memory_limit"] = memory_limit
    expected = forecast_command(flags(settings, tmp_path / "settings.yaml"))
    assert isinstance(expected, Forecast)
    result = train(settings).training
    assert (expected.steps, expected.steps * expected.step_tokens) == (result.steps, result.tokens)
    assert expected.parameters == sum(weights.numel() for weights in result.transcoder.parameters())
    assert expected.in_memory == (memory_limit == 1)
    tokens = 1500 * 14 // 15 if expected.in_memory else 2 * 64
    assert expected.data_bytes == pytest.approx(2 * 4 * LAYERS * D_MODEL * tokens, rel=0.1)
    assert 0 < expected.step_seconds < expected.seconds
    assert 1 <= expected.measured_steps <= expected.steps


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    write(tmp_path / "data")
    settings = on(tmp_path / "data", tmp_path / "run", max_steps=3, val_check_interval=1, profiler="simple")
    settings["trainer"]["logger"] = [{"class_path": "tests.training.own.NoteLogger"}]
    arguments = ["train", *flags(settings, tmp_path / "settings.yaml")]
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(arguments) == 0
    assert sorted(path for path in tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    for name in ("transcoder", "files", "memory", "data", "steps", "time", "measured"):
        assert name in printed
    assert main([*arguments, "--transcoder.n_featurs", "3"]) == 2
    assert "n_features" in capsys.readouterr().err


def test_a_dry_run_is_asked_for_by_its_flag(tmp_path: Path) -> None:
    settings = on(write(tmp_path / "data"), tmp_path, max_steps=3)
    with refuses(ConfigError, "dry_run", "--dry-run"):
        train({**settings, "dry_run": True})
    assert not (tmp_path / "out").exists()
