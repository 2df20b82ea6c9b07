"""Lightning's Trainer as every training run sets it up: its files lie in the output directory, and none is a pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from open_clt.config import CheckpointsConfig, TrainingConfig
from open_clt.errors import ConfigError
from open_clt.training.callbacks import Checkpoints, ProgressBar, StepLog
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.metrics_file import MetricsFile
from open_clt.training.step.optimization import check_precision

Settings: TypeAlias = dict[str, Any]
"""What was set: plain values by name, nested."""
TRAINER_DEFAULTS: Settings = {
    "devices": 1,
    "gradient_clip_val": TrainingConfig.gradient_clip,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
}
"""The settings of Lightning's Trainer whose defaults are other ones here."""


def check_trainer(settings: Settings) -> None:
    """Raise ConfigError for settings of Lightning's Trainer that would not make a usable transcoder."""
    check_precision(settings.get("precision"))
    if settings.get("fast_dev_run"):
        raise ConfigError(
            "trainer.fast_dev_run would leave a transcoder of a step or two that looks like any other; to try settings "
            "out, give --trainer.max_steps 3 and an --output of its own."
        )


def trainer_settings(device: torch.device, training: TrainingConfig, own: Settings) -> Settings:
    """Settings of Lightning's Trainer for a run from Python: on one device, with ``own`` settings on top."""
    cuda = device.type == "cuda"
    placed = {"accelerator": "gpu" if cuda else device.type, "devices": [device.index or 0] if cuda else 1}
    return {**TRAINER_DEFAULTS, **placed, "gradient_clip_val": training.gradient_clip, **own}


def keep_logs_in(output: Path, loggers: Any) -> None:
    """Let those loggers that would write to the current directory, as WandB's does, write to ``output``.

    ``loggers`` is what was set: one or a list of Namespaces of ``class_path`` and ``init_args``, or no logger at all.
    """
    for arguments in (getattr(logger, "init_args", None) for logger in listed(loggers)):
        if arguments is not None and arguments.get("save_dir") == ".":
            output.mkdir(parents=True, exist_ok=True)  # WandB takes another place if this one is not there
            arguments["save_dir"] = str(output)


def make_trainer(
    settings: Settings,
    watchers: Sequence[Callback],
    *,
    steps: int,
    output: Path | None,
    checkpoints: CheckpointsConfig,
    held_out: bool,
) -> Trainer:
    """A Trainer of these settings with what every run has: numbers for loggers, a progress bar unless it is off.

    With an ``output`` directory it also has a CSV file of the numbers, and checkpoints.
    """
    ours: list[Callback] = [StepLog(), *watchers]
    loggers = listed(settings.get("logger"), Logger)
    if settings.get("enable_progress_bar") is not False:
        ours.append(ProgressBar())
    keeps = output is not None and settings.get("enable_checkpointing") is not False
    if output is not None:
        loggers = [MetricsFile(output / "metrics.csv"), *loggers]
        if keeps:
            kept = {"best": checkpoints.best, "keep_all": checkpoints.keep_all}
            ours.append(Checkpoints(output / "checkpoints", checkpoints.every, at_end=True, **kept))
    settings = settings | {
        "max_steps": steps,
        "max_epochs": -1,
        "callbacks": [*listed(settings.get("callbacks")), *ours],
        "logger": loggers or False,
        "plugins": [*listed(settings.get("plugins")), SafetensorsCheckpointIO()],
        "default_root_dir": settings.get("default_root_dir") or output,
        "enable_progress_bar": False,
        "enable_checkpointing": keeps,
        "log_every_n_steps": settings.get("log_every_n_steps") or max(1, steps // 400),
    }
    if not held_out:
        settings["limit_val_batches"] = 0
    try:
        trainer = Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"Lightning cannot train that way: {' '.join(str(error).split())}") from error
    if output is not None:
        _write_profile(trainer, output)
    return trainer


def _write_profile(trainer: Trainer, output: Path) -> None:
    """Let a profiler write to a file, unless it was told where: it would log, and Lightning's log is held back."""
    profiler = cast(Any, trainer).profiler
    asked = not isinstance(profiler, PassThroughProfiler)  # which stands where none was asked for
    if asked and profiler.dirpath is None and profiler.filename is None:
        profiler.dirpath, profiler.filename = output, "profile"


def listed(value: Any, kind: type[Any] = object) -> list[Any]:
    """A setting that may be one thing, several, or none (or, for loggers, a mere yes or no) as a list."""
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    return [item for item in values if item is not None and isinstance(item, kind) and not isinstance(item, bool)]
