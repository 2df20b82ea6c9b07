"""Lightning's Trainer as ``open-clt train`` sets it up: what it writes lies in the output directory, unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from open_clt.config import CheckpointsConfig
from open_clt.errors import ConfigError
from open_clt.training.callbacks import Checkpoints, ProgressBar, StepLog
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.metrics_file import MetricsFile
from open_clt.training.optimization import check_precision
from open_clt.training.settings import Settings, listed

TRAINER_DEFAULTS = {
    "devices": 1,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
}
"""Where ours differ from Lightning's."""


def check_trainer(settings: Settings) -> None:
    """Raise ConfigError for settings of Lightning's that make no transcoder, before anything is loaded."""
    check_precision(settings["precision"])
    if settings["fast_dev_run"]:
        raise ConfigError(
            "trainer.fast_dev_run would leave a transcoder of a step or two that looks like any other; to try settings "
            "out, give --trainer.max_steps 3 and an --output of its own."
        )


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
    output: Path,
    checkpoints: CheckpointsConfig,
    held_out: bool,
) -> Trainer:
    """A Trainer of these settings, with what every training has: a CSV file, checkpoints, a progress bar."""
    ours: list[Callback] = [StepLog(), *watchers]
    if settings["enable_progress_bar"] is not False:
        ours.append(ProgressBar())
    if settings["enable_checkpointing"] is not False:
        kept = {"best": checkpoints.best, "keep_all": checkpoints.keep_all}
        ours.append(Checkpoints(output / "checkpoints", checkpoints.every, at_end=True, **kept))
    settings = settings | {
        "max_steps": steps,
        "max_epochs": -1,
        "callbacks": [*listed(settings["callbacks"]), *ours],
        "logger": [MetricsFile(output / "metrics.csv"), *listed(settings["logger"], Logger)],
        "plugins": [*listed(settings["plugins"]), SafetensorsCheckpointIO()],
        "default_root_dir": settings["default_root_dir"] or output,
        "enable_progress_bar": False,
        "enable_checkpointing": settings["enable_checkpointing"] is not False,
        "log_every_n_steps": settings["log_every_n_steps"] or max(1, steps // 400),
    }
    if not held_out:
        settings["limit_val_batches"] = 0
    try:
        trainer = Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"Lightning cannot train that way: {' '.join(str(error).split())}") from error
    _write_profile(trainer, output)
    return trainer


def _write_profile(trainer: Trainer, output: Path) -> None:
    """Let a profiler write to a file, unless it was told where: it would log, and Lightning's log is held back."""
    profiler = cast(Any, trainer).profiler
    asked = not isinstance(profiler, PassThroughProfiler)  # which stands where none was asked for
    if asked and profiler.dirpath is None and profiler.filename is None:
        profiler.dirpath, profiler.filename = output, "profile"
