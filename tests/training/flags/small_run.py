"""Small training runs by ``open-clt train``, and comparisons of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from open_clt.language.language_model import LanguageModel
from open_clt.training.flags.command_line import CommandResult, train_command

Settings = dict[str, Any]
OWN = "tests.training.own.Muffled"


def use_language_model(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``open-clt train`` use a model that is loaded already, by the name ``tiny``."""
    monkeypatch.setattr("open_clt.training.flags.source.load_language_model", lambda name, **_: {"tiny": model}[name])


def train(settings: Settings, *flags: str) -> CommandResult:
    """Train with settings from a YAML file, and with flags after it."""
    path = Path(settings["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return train_command(["--config", str(path), *flags])


def weights(run: CommandResult) -> dict[str, torch.Tensor]:
    """The tensors of a run's transcoder, by name."""
    return run.training.transcoder.state_dict()


def assert_same_weights(run: CommandResult, expected: CommandResult, *, rtol: float = 0, atol: float = 0) -> None:
    """The transcoders of two runs are equal, up to a tolerance if one is given."""
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, weights(expected)[name], rtol=rtol, atol=atol)
