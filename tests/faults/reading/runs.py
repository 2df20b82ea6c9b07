"""Readers of what a training run needs and writes: settings, language models, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from torch import Tensor

from open_clt.errors import TextError
from open_clt.hub.repository import read_index, write_index
from open_clt.language.language_model import load_language_model
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.flags.command_line import train_command
from tests.faults.reading.reader import Reader
from tests.tiny_models import write_gpt2


def _read_checkpoint(folder: Path) -> Iterable[Tensor]:
    state = SafetensorsCheckpointIO().load_checkpoint(folder / "last")
    repr(state)
    return ()


def _write_settings(folder: Path) -> None:
    settings = {
        "transcoder": {"n_features": 64, "nonlinearity": {"kind": "batchtopk", "k": 4}},
        "training": {"learning_rate": 2e-3, "loss": {"auxiliary": 1.0, "dead_after_tokens": 20000}},
        "data": {"language_model": "embedded", "texts": {"source": "missing.txt"}, "context_length": 16},
        "trainer": {"max_steps": 3, "val_check_interval": 2},
        "checkpoints": {"every": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def _read_settings(folder: Path) -> Iterable[float]:
    """Read the settings of a training run, which then finds that its text is missing."""
    flags = ["--config", str(folder / "config.yaml"), "--data.texts.source", str(folder / "missing.txt")]
    try:
        train_command([*flags, "--output", str(folder / "output")])
    except TextError as error:
        if "missing.txt" not in str(error):
            raise
    return ()


def _use_language_model(folder: Path) -> Iterable[Tensor]:
    model = load_language_model(str(folder))
    return (model.logits(model.tokenize("The cat sat")[None]),)


_SETTING = (
    r"\b(transcoder|training|data|trainer|checkpoints|report|output|init_args)\b|Config\.\w+ is "
    r"|There is no setting|The language model|^\w+ is [^ ]+; it must "
)

RUNS: dict[str, Reader] = {
    "checkpoint": Reader(
        lambda folder: SafetensorsCheckpointIO().save_checkpoint(
            {"step": 1, "weights": torch.ones(2), "loops": {"a": (1, [2.0, None])}}, folder / "last"
        ),
        _read_checkpoint,
        "training.checkpoint_io",
    ),
    "settings": Reader(_write_settings, _read_settings, "training.flags.settings", names=_SETTING, slow=True),
    "index of a repository": Reader(
        lambda folder: write_index(folder / "main.json", "0" * 40, {"config.json": 3}),
        lambda folder: read_index(folder / "main.json")[1].values(),
        "hub.repository",
    ),
    "language model": Reader(write_gpt2, _use_language_model, "language.loading", slow=True),
}
