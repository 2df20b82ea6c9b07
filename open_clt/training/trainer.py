"""Lightning's Trainer, set up for a training run: its files go to the output directory, and none is a pickle."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.profilers import PassThroughProfiler

from open_clt import files
from open_clt.config import CheckpointsConfig, TrainingConfig
from open_clt.errors import ConfigError
from open_clt.training.callbacks import Checkpoints, ProgressBar, StepLog
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.metrics_file import MetricsFile
from open_clt.training.output import CHECKPOINTS, METRICS, PROFILE, STAGED_PROFILE
from open_clt.training.step.optimization import check_precision

Settings: TypeAlias = dict[str, Any]
"""Settings as plain values by name, possibly nested."""
TRAINER_DEFAULTS: Settings = {
    "devices": 1,
    "gradient_clip_val": TrainingConfig.gradient_clip,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
}
"""Our defaults for settings of Lightning's Trainer, where they differ from Lightning's defaults."""
_OF_DATA = {"max_steps": "data.max_steps", "max_epochs": "data.epochs"}
"""Settings of the Trainer that belong to ``TrainingConfig``, and their names there."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _never(value: Any) -> bool:
    """Accept no value.

    A limit of all batches is refused too: jsonargparse can read the text 1, which means one batch, as the share 1.0,
    because Python's typing confuses ``int | float`` with ``float | int``.
    """
    return False


def _duration(value: Any) -> bool:
    try:
        seconds = Timer(duration=value).time_remaining()
    except (MisconfigurationException, TypeError, ValueError, OverflowError):
        return False
    return seconds is not None and seconds >= 0


class _Rule(NamedTuple):
    """The legal values of a setting of the Trainer, other than None, which is Lightning's default."""

    legal: Callable[[Any], bool]
    advice: str


_NO_LIMIT = "a run takes all its batches; remove this setting, and set max_steps to take fewer"
_NO_TESTS = "a training run neither tests nor predicts; remove this setting"
_RULES: dict[str, _Rule] = {
    "fast_dev_run": _Rule(
        lambda value: value is False or value == 0,
        "it would save a transcoder of a few steps that looks like any other; set max_steps to 3 and a new output "
        "directory to try settings out",
    ),
    "limit_train_batches": _Rule(_never, _NO_LIMIT),
    "overfit_batches": _Rule(lambda value: _number(value) and value == 0, _NO_LIMIT),
    "limit_test_batches": _Rule(_never, _NO_TESTS),
    "limit_predict_batches": _Rule(_never, _NO_TESTS),
    "accumulate_grad_batches": _Rule(_count, "it must be an integer of at least 1"),
    "log_every_n_steps": _Rule(_count, "it must be an integer of at least 1"),
    "gradient_clip_val": _Rule(lambda value: _number(value) and value >= 0, "it must be at least 0; 0 does not clip"),
    "max_steps": _Rule(lambda value: _count(value) or value == -1, "it must be at least 1; -1 sets no limit"),
    "max_epochs": _Rule(_count, "it must be an integer of at least 1"),
    "max_time": _Rule(
        _duration, "it must be a time of at least 0, such as 00:02:30:00 for days, hours, minutes, seconds"
    ),
    "min_steps": _Rule(lambda value: _count(value) or value == 0, "it must be an integer of at least 0"),
    "min_epochs": _Rule(
        lambda value: value in (0, 1), "all epochs of a run are one for Lightning; set min_steps instead"
    ),
    "val_check_interval": _Rule(_count, "it must be a number of batches, of at least 1"),
    "check_val_every_n_epoch": _Rule(
        _never, "all epochs of a run are one for Lightning, so set val_check_interval instead"
    ),
    "reload_dataloaders_every_n_epochs": _Rule(
        lambda value: value == 0, "all epochs of a run are one for Lightning; remove this setting"
    ),
}
"""Settings whose values Lightning would accept, although a training run would ignore them or make no sense."""


def check_trainer(settings: Settings) -> None:
    """Raise ConfigError for settings of Lightning's Trainer that a training run would ignore or could not keep."""
    check_precision(settings.get("precision"))
    for name, (legal, advice) in _RULES.items():
        if name in settings and settings[name] is not None and not legal(settings[name]):
            raise ConfigError(f"trainer.{name} is {settings[name]!r}; {advice}.")


def check_own_trainer(own: Settings) -> None:
    """Raise ConfigError for settings of the Trainer that a call from Python gives as fields of TrainingConfig."""
    for name in own.keys() & _OF_DATA.keys():
        raise ConfigError(
            f"trainer.{name} is {own[name]!r}, but TrainingConfig decides the length of a run; set its "
            f"{_OF_DATA[name]}."
        )


def trainer_settings(device: torch.device, training: TrainingConfig, own: Settings) -> Settings:
    """Settings of Lightning's Trainer for a run from Python on one device; ``own`` settings override the others."""
    cuda = device.type == "cuda"
    hardware = {"accelerator": "gpu" if cuda else device.type, "devices": [device.index or 0] if cuda else 1}
    return {**TRAINER_DEFAULTS, **hardware, "gradient_clip_val": training.gradient_clip, **own}


def writes_checkpoints(settings: Settings) -> bool:
    """Whether a run with an output directory writes checkpoints there."""
    return settings.get("enable_checkpointing") is not False


def keep_logs_in(output: Path, loggers: Any) -> None:
    """Make loggers that would write to the current directory, such as WandB's, write to ``output`` instead.

    ``loggers`` is the setting ``trainer.logger``: a Namespace of ``class_path`` and ``init_args``, a list of them, a
    bool, or None.
    """
    for arguments in (getattr(logger, "init_args", None) for logger in listed(loggers)):
        if arguments is not None and arguments.get("save_dir") == ".":
            files.make_directory(output)  # WandB writes elsewhere if the directory does not exist
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
    """Make a Trainer of these settings, with the callbacks of every run: a log of steps and a progress bar.

    With an ``output`` directory, the Trainer also writes ``metrics.csv`` and checkpoints.
    """
    callbacks: list[Callback] = [*listed(settings.get("callbacks")), StepLog(), *watchers]
    loggers = listed(settings.get("logger"), Logger)
    if settings.get("enable_progress_bar") is not False:
        callbacks.append(ProgressBar())
    if output is not None:
        loggers = [MetricsFile(output / METRICS), *loggers]
        if writes_checkpoints(settings):
            choices = {"best": checkpoints.best, "keep_all": checkpoints.keep_all}
            callbacks.append(Checkpoints(output / CHECKPOINTS, checkpoints.every, at_end=True, **choices))
    settings = settings | {
        "max_steps": steps,
        "max_epochs": -1,
        "callbacks": callbacks,
        "logger": loggers or False,
        "plugins": [*listed(settings.get("plugins")), SafetensorsCheckpointIO()],
        "default_root_dir": settings.get("default_root_dir") or output,
        "enable_progress_bar": False,
        "enable_checkpointing": output is not None and writes_checkpoints(settings),
        "log_every_n_steps": settings.get("log_every_n_steps") or max(1, steps // 400),
    }
    if not held_out:
        settings["limit_val_batches"] = 0
    try:
        trainer = Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"Lightning's Trainer refuses these settings: {' '.join(str(error).split())}") from error
    if str(settings.get("precision")) in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise ConfigError(
            f"trainer.precision is {settings['precision']!r}, which needs a GPU; on a CPU, use '32-true' or "
            "'bf16-mixed'."
        )
    if output is not None:
        _check_places(trainer, output)
        _write_profile(trainer, output)
    return trainer


def _check_places(trainer: Trainer, output: Path) -> None:
    """Raise ConfigError if a logger or a callback of the user would write files under the names of the run's own."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and Path(logger.log_dir).resolve() == output.resolve():
            raise ConfigError(
                f"The CSV logger would replace {output / METRICS}, which the run writes too; give the logger a name or "
                "another directory."
            )
    ours = (output.resolve(), (output / CHECKPOINTS).resolve())
    for callback in trainer.checkpoint_callbacks:
        place = getattr(callback, "dirpath", None)
        if isinstance(callback, ModelCheckpoint) and place is not None and Path(place).resolve() in ours:
            raise ConfigError(
                f"The callback ModelCheckpoint would write into {place}, beside the files of the run; give it another "
                "directory."
            )


def _write_profile(trainer: Trainer, output: Path) -> None:
    """Make a profiler without a directory of its own write to the folder ``profile`` of the output directory.

    Lightning would append its summary to a file that may be the user's, and other files would replace the user's.
    Meanwhile the files are in a temporary folder, which the next run deletes if this one is killed: their names, which
    hold the time, are not known before. Raises ConfigError if another program has made a folder ``profile``.
    """
    staging = output / (STAGED_PROFILE if trainer.is_global_zero else f"{STAGED_PROFILE}-{trainer.global_rank}")
    files.check_ours(output, [staging.name])
    if staging.is_dir() and not staging.is_symlink():
        shutil.rmtree(staging)
    profiler = cast(Any, trainer).profiler
    if isinstance(profiler, PassThroughProfiler) or profiler.dirpath is not None:
        return  # Lightning uses PassThroughProfiler when no profiler is set
    files.check_ours(output, [PROFILE])
    if trainer.is_global_zero:
        staged = (f"{STAGED_PROFILE}-{rank}" for rank in range(1, trainer.world_size))
        files.list_names(output, [PROFILE, STAGED_PROFILE, *staged])
    name = profiler.filename or "summary"
    profiler.dirpath, profiler.filename = staging, None

    def describe() -> None:
        pytorch_profiler = getattr(profiler, "profiler", None)
        if getattr(pytorch_profiler, "profiler", pytorch_profiler) is None:
            profiler.profiler = None  # the run took no step, and PyTorch's profiler has nothing to be asked for
        if summary := profiler.summary():
            rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
            files.write_text(staging / f"{name}{rank}.txt", summary)
        _keep_profile(staging, output)

    profiler.describe = describe


def _keep_profile(staging: Path, output: Path) -> None:
    """Move the files of a profiler from the temporary folder to the folder ``profile``; replace none of the user's."""
    written = sorted(path for path in staging.glob("*") if path.is_file())
    if not written:
        return
    ours, names = files.listed_names(output), dict[Path, str]()
    for path in written:
        candidates = (path.name, *(f"{path.stem}-{number}{path.suffix}" for number in range(2, 10**6)))
        names[path] = next(
            name
            for name in (f"{PROFILE}/{candidate}" for candidate in candidates)
            if name in ours or not os.path.lexists(output / name)
        )
    files.list_names(output, names.values())
    (output / PROFILE).mkdir(exist_ok=True)
    for path, name in names.items():
        path.replace(output / name)
    shutil.rmtree(staging, ignore_errors=True)


def listed(value: Any, kind: type[Any] = object) -> list[Any]:
    """The objects of a setting that is one object, a list of objects, None or a bool; only those of class ``kind``."""
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    return [item for item in values if item is not None and isinstance(item, kind) and not isinstance(item, bool)]
