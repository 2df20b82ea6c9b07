"""Devices: ``auto`` is the best one that exists, and one that does not exist is refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_clt.cli import main
from open_clt.config import TrainingConfig
from open_clt.device import check_device
from open_clt.errors import ConfigError
from open_clt.language import language_model
from open_clt.training.run import train_on_activations
from tests.refusals import refuses
from tests.training.synthetic import relu_mlps, small_transcoder


def set_devices(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: int = 0) -> None:
    """Let PyTorch find these numbers of devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps > 0)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(0, 0, "cpu"), (0, 1, "mps"), (2, 0, "cuda"), (1, 1, "cuda")], ids=str
)
def test_auto_is_the_first_of_cuda_mps_and_cpu(
    cuda: int, mps: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_devices(monkeypatch, cuda=cuda, mps=mps)
    assert check_device("auto") == check_device(chosen) == torch.device(chosen)


@pytest.mark.parametrize(
    "device",
    [
        "gpu",
        "",
        "meta",
        "xpu",
        "cuda",
        "mps",
        "cuda:0",
        "cpu:1",
        torch.device("mps"),
        pytest.param(3.5, marks=pytest.mark.wrong_types),
    ],
)
def test_a_device_that_does_not_exist_is_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch)
    with refuses(ConfigError, device, "cpu"):
        check_device(device)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, cuda=2)
    assert check_device("cuda:1") == torch.device("cuda:1")
    with refuses(ConfigError, "cuda:2", "2"):
        check_device("cuda:2")


@pytest.mark.parametrize(
    "command",
    [
        "attribute --prompt x",
        "compare embedded embedded",
        "convert --output new",
        "evaluate",
        "generate --prompt x",
        "intervene --prompt x --ablate 0:-1:3",
    ],
)
def test_commands_refuse_an_absent_device_before_they_load_a_model(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    set_devices(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language_model, "find_model", lambda name: pytest.fail("the model is searched"))
    for device in ("mps", "cuda"):
        assert main([*command.split(), "--device", device]) == 2
        error = capsys.readouterr().err
        assert (device in error, error.count("\n")) == (True, 1)


def test_training_refuses_an_absent_device(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch)
    with refuses(ConfigError, "mps"):
        train_on_activations(relu_mlps(10), small_transcoder(), TrainingConfig(), device="mps")
