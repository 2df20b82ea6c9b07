"""The command line ``open-clt train``: flags and YAML files in, a trained transcoder out.

    flags, YAML files -> TrainingConfig, the user's own classes -> TrainingRun (``run.py``) -> CommandResult

It extends Lightning's command line (LightningCLI, which uses jsonargparse). The group ``trainer.*`` has the arguments
of Lightning's Trainer, with loggers, callbacks, strategies and profilers by ``class_path``. The other groups are:

    transcoder    the architecture (``TranscoderConfig``), or a Transcoder class of your own
    training      loss, optimizer and schedule (``LearningConfig``), or a loss or an optimizer of your own
    data          language model, texts and batches, or a dataset, or texts or activations of your own
    checkpoints   the checkpoints that are kept (``CheckpointsConfig``)
    early_stop    the L0 at which training stops (``StopAtL0``)
    report        the attribution graphs of the report (``ReportConfig``)
    output        the directory of all files that are written

The language model decides ``n_layers`` and ``d_model``, and a dataset also the hooks. They need not be set; a value
that contradicts the data is an error.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import torch
from jsonargparse import ActionYesNo, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from open_clt import files
from open_clt.config import (
    CheckpointsConfig,
    DataConfig,
    DatasetConfig,
    LearningConfig,
    ReportConfig,
    TextsConfig,
    TrainingConfig,
    TranscoderConfig,
)
from open_clt.config.ignored import DATASET_SETTINGS
from open_clt.data.prompts import report_prompts
from open_clt.device import check_device
from open_clt.errors import ConfigError
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.training.callbacks import FirstStep, StopAtL0
from open_clt.training.data.activations import OwnStore
from open_clt.training.data.stored import StoredActivations
from open_clt.training.flags.ignored import check_replaced, check_unused_flags
from open_clt.training.flags.settings import (
    add_class,
    add_settings,
    as_user_error,
    check_config_files,
    in_one_line,
    named_class,
    older_names,
    read_settings,
    user_class,
)
from open_clt.training.flags.source import DTYPE, MODEL, FlagSource, add_source_flags, source_of
from open_clt.training.forecast import Forecast, forecast
from open_clt.training.memory import keep_freed_memory
from open_clt.training.output import OutputDirectory, output_directory
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, TrainingRun, quiet_lightning
from open_clt.training.trainer import TRAINER_DEFAULTS, Settings, check_trainer, keep_logs_in, writes_checkpoints
from open_clt.transcoders.make import OwnArchitecture

_CONFIG = "config.yaml"
DRY_RUN = "--dry-run"
_MEASURED_ONLY = {"logger": False, "callbacks": None, "profiler": None, "limit_val_batches": 0}
"""Settings of the Trainer for a dry run."""
_NO_TIME = "00:00:00:00"
"""A ``trainer.max_time`` with which a resumed run takes no step: it only saves the transcoder of its checkpoint."""


class CommandResult(NamedTuple):
    """The result of ``open-clt train``, and what its evaluation report needs."""

    training: TrainingResult
    language_model: LanguageModel | None
    """The language model of the transcoder; None if the activations came from a store that the user brought."""
    prompts: list[str]
    """Prompts of the attribution graphs in the report."""
    report: ReportConfig
    output: Path
    """Directory of all files that the run writes."""

    __repr__ = short_repr


def train_command(
    arguments: Sequence[str],
    *,
    keep_memory: bool = False,
    also_writes: Sequence[str] = (),
    then: Callable[[CommandResult], None] | None = None,
) -> CommandResult:
    """Train with the settings of a command line; raises an OpenCLTError that names what is wrong with a setting.

    ``keep_memory`` allows a run on a CPU to change the allocator of this process (``memory.keep_freed_memory``).
    ``then`` is called with the result before another run can use the output directory, and may write files of the names
    ``also_writes`` there.
    """
    with ExitStack() as held:
        with quiet_lightning(), _matmul_precision_restored():
            cli = TrainingCLI(arguments, held, keep_memory=keep_memory, also_writes=also_writes)
            result = cli.training_run.train()
            cli.check_time(result)
            cli.save_config()
        trained = CommandResult(result, cli.language_model, cli.prompts, cli.report, cli.output)
        if then is not None:
            then(trained)
    return trained


def forecast_command(arguments: Sequence[str]) -> Forecast | None:
    """The size, memory and time of the run that a command line describes; None in all processes but the first.

    A few steps are taken to measure the time, and nothing is written. Raises what ``train_command`` raises for wrong
    settings, apart from those of the output directory, which is not looked at.
    """
    with ExitStack() as held, quiet_lightning(), _matmul_precision_restored():
        run = TrainingCLI(arguments, held, keep_memory=True, dry_run=True).training_run
        result = forecast(run)
        return result if run.trainer.is_global_zero else None


@contextmanager
def _matmul_precision_restored() -> Generator[None]:
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@final
class TrainingCLI(LightningCLI):
    """Reads flags and YAML files, and makes the training run that they describe: ``training_run``."""

    training_run: TrainingRun

    def __init__(
        self,
        arguments: Sequence[str],
        held: ExitStack,
        *,
        keep_memory: bool = False,
        also_writes: Sequence[str] = (),
        dry_run: bool = False,
    ) -> None:
        """``held`` receives the lock of the output directory. With ``dry_run``, nothing is written there."""
        self._held = held
        self._dry_run = dry_run
        self._also_writes = (_CONFIG, *also_writes)
        self._keep_memory = keep_memory
        self.language_model: LanguageModel | None = None
        parser_settings = {"prog": "open-clt train", "description": "Train a transcoder.", "exit_on_error": False}
        super().__init__(
            args=list(arguments),
            run=False,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs=parser_settings,
        )

    @property
    def output(self) -> Path:
        """Directory of all files that the run writes."""
        return Path(self.config.output)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add all flags to the parser."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        add_settings(parser, "transcoder", TranscoderConfig, skip=("language_model",))
        add_class(parser, "transcoder", "A Transcoder class of your own, which takes a CrossLayerConfig.")
        add_settings(parser, "training", LearningConfig)
        parser.add_argument(
            "--training.matmul_precision",
            type=Literal["highest", "high", "medium"] | None,
            default=None,
            help="Precision of float32 matrix products (torch.set_float32_matmul_precision); null does not change it.",
        )
        add_class(
            parser,
            "training.loss",
            "A loss of your own: a class whose objects take a training step (module.Step) and return its loss.",
        )
        add_class(parser, "training.optimizer", "An optimizer in place of Adam, such as torch.optim.NAdam.")
        add_source_flags(parser)
        option = parser.add_argument
        add_settings(parser, "checkpoints", CheckpointsConfig)
        add_settings(parser, "report", ReportConfig)
        parser.add_lightning_class_args(StopAtL0, "early_stop")
        option("--output", type=str, default="transcoder", help="Directory of all files that the run writes.")
        option(
            "--overwrite",
            action=ActionYesNo,
            default=False,
            help="Replace a former run in the output directory at the end of the first step; its files are deleted, "
            "also those that you changed since. Files that OpenCLT did not write stay.",
        )
        option(
            DRY_RUN,
            action="store_true",
            help="Print size, memory, tokens, steps and time of the run, which are measured on a few steps; write "
            "nothing.",
        )
        option(
            "--ckpt_path",
            "--ckpt-path",
            type=str,
            default=None,
            help="Checkpoint to resume from: last, best, or a path. With --trainer.max_time "
            f"{_NO_TIME}, no step is taken, and the transcoder of the checkpoint is saved.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line; raises ConfigError where argparse would print its usage and exit."""
        check_config_files(args)
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise ConfigError(in_one_line(error, parser)) from error
        if not 0 <= self._seed < 2**32:
            raise ConfigError(f"seed_everything is {self._seed}; it must lie between 0 and {2**32 - 1}.")

    def instantiate_classes(self) -> None:
        """Make the training run from the settings; a mistake in any of them is found here, before training."""
        check_trainer(self.config.trainer.as_dict())
        settings = self.config.as_dict()
        check_replaced(settings)
        output = self._output_directory(settings.get("checkpoints", {}))
        self._prepare_torch(settings.get("training", {}).pop("matmul_precision", None))
        instances = self._instances()
        self.report: ReportConfig = read_settings(ReportConfig, settings.get("report", {}), "report")
        own = self._own_parts(instances, settings)
        source, self.language_model = source_of(settings["data"], self._device)
        training = self._training_config(settings)
        check_unused_flags(self.config.as_dict(), training)
        transcoder = self._transcoder_config(settings.get("transcoder", {}), source)
        activations = source.activations(transcoder, training)
        self.prompts = self._prompts(activations.contexts)
        self.training_run = TrainingRun(
            activations,
            transcoder,
            training,
            trainer={**instances["trainer"]},
            own=own,
            output=output,
            resume=self.config.ckpt_path,
        )

    def _output_directory(self, checkpoints: Settings) -> OutputDirectory | None:
        """Check the output directory, and hold its lock until the command ends; None if nothing is written."""
        config = read_settings(CheckpointsConfig, checkpoints, "checkpoints")
        if self._dry_run:
            return None
        if self.config.dry_run:
            raise ConfigError(f"dry_run is true in a settings file; give the flag {DRY_RUN} instead.")
        return self._held.enter_context(
            output_directory(
                self.output,
                resume=self.config.ckpt_path,
                overwrite=self.config.overwrite,
                checkpoints=config if writes_checkpoints(self.config.trainer.as_dict()) else None,
                also_writes=self._also_writes,
            )
        )

    def _prepare_torch(self, matmul_precision: str | None) -> None:
        """Set the allocator and the precision of matrix products, before PyTorch computes anything."""
        if self._keep_memory and self._device.type == "cpu":
            keep_freed_memory()
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)

    def _instances(self) -> Namespace:
        """The objects of all settings with a ``class_path``, such as callbacks and loggers.

        Raises MissingExtraError if one of them needs a package that is not installed.
        """
        try:
            config = self.config.clone()
            if self._dry_run:
                for name, value in _MEASURED_ONLY.items():
                    config.trainer[name] = value
            keep_logs_in(Path(config.output), config.trainer.logger)
            with older_names():
                return cast(Namespace, self.parser.instantiate_classes(config))
        except (ImportError, ValueError) as error:
            raise as_user_error(error, "trainer", self.config.trainer.as_dict()) from error

    def _own_parts(self, instances: Namespace, settings: Settings) -> OwnParts:
        """The user's own classes; the settings that name them are removed from ``settings``."""
        transcoder, training = settings.get("transcoder", {}), settings.get("training", {})
        architecture = named_class(transcoder, "transcoder")
        loss = user_class(training.get("loss", {}), "training.loss")
        optimizer = user_class(training.pop("optimizer", {}), "training.optimizer")
        # A refused run must not leave its settings in the directory, so they are written after the first step.
        callbacks = [FirstStep(self.save_config), instances["early_stop"]]
        return OwnParts(
            architecture=architecture and OwnArchitecture(*architecture),
            loss=None if loss is None else loss(),
            optimizer=optimizer,
            callbacks=[] if self._dry_run else callbacks,
        )

    def _training_config(self, settings: Settings) -> TrainingConfig:
        data: Settings = settings["data"]
        texts = data.pop("texts")
        dataset = {name: data.pop(name) for name in DATASET_SETTINGS if name in data}
        checkpoints = settings.get("checkpoints", {})
        return TrainingConfig(
            data=read_settings(DataConfig, {**data, **self._lengths(), "seed": self._seed}, "data"),
            texts=read_settings(TextsConfig, texts, "data.texts"),
            dataset=read_settings(DatasetConfig, dataset, "data"),
            learning=read_settings(LearningConfig, settings.get("training", {}), "training"),
            checkpoints=read_settings(CheckpointsConfig, checkpoints, "checkpoints"),
            gradient_clip=self.config.trainer.gradient_clip_val or None,
        )

    def _transcoder_config(self, settings: Settings, source: FlagSource) -> TranscoderConfig:
        """The transcoder's config with the data's shape; raises ConfigError if a setting contradicts the data."""
        decided = source.shape.settings()
        layers = settings.get("layers")
        if layers is not None and not isinstance(source, OwnStore):  # a user's own store has the chosen layers only
            decided["n_layers"] = settings.get("n_layers", len(layers))
        for name, value in decided.items():
            if settings.get(name, value) != value:
                raise ConfigError(
                    f"transcoder.{name} is {settings[name]!r}, but the data has {value!r}; remove this setting: the "
                    "data decides it."
                )
        model = self.language_model
        name = source.language_model if isinstance(source, StoredActivations) else model and model.name
        complete = {**settings, **decided, "language_model": name}
        config: TranscoderConfig = read_settings(TranscoderConfig, complete, "transcoder")
        if model is not None:
            check_fits(config, model)
        return config

    def _prompts(self, held_out: Tensor | None) -> list[str]:
        """Prompts of the report's graphs; they are read before training so that a mistake in them is found early."""
        if self.language_model is None or held_out is None:
            return []
        return report_prompts(self.report, self.language_model, held_out)

    def _lengths(self) -> Settings:
        """The length of training from the Trainer's settings, under the names of ``DataConfig``."""
        trainer = self.config.trainer
        steps = {} if trainer.max_steps in (None, -1) else {"max_steps": trainer.max_steps}
        return {**steps, "epochs": 1 if trainer.max_epochs is None else trainer.max_epochs}

    @property
    def _seed(self) -> int:
        return int(self.config.seed_everything)

    @property
    def _device(self) -> torch.device:
        """The device of the language model: the one on which the Trainer, which does not exist yet, will train."""
        accelerator = self.config.trainer.accelerator
        device = check_device("auto" if accelerator in ("auto", "gpu", "cuda", "mps") else "cpu")
        # Launchers set LOCAL_RANK to the index of each process's device.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device

    def check_time(self, result: TrainingResult) -> None:
        """Raise ConfigError if ``trainer.max_time`` was used up before a resumed run took its first step."""
        max_time = self.config.trainer.max_time
        if max_time not in (None, _NO_TIME) and not result.finished and result.harvest.total == 0:
            raise ConfigError(
                f"trainer.max_time is {max_time}, which the earlier parts of this run have used up already; give more "
                "time, because all parts of a run count together."
            )

    def save_config(self) -> None:
        """Write the settings to ``config.yaml`` in the output directory."""
        if self.training_run.trainer.is_global_zero:
            # A new run with the written settings must neither resume this one, nor overwrite one, nor end at once.
            settings: Settings = {**self.config.as_dict(), "ckpt_path": None, "overwrite": False}
            if settings["trainer"]["max_time"] == _NO_TIME:
                settings["trainer"]["max_time"] = None
            if self.language_model is not None:
                settings["data"] = {"language_model": MODEL, "dtype": DTYPE, **settings["data"]}
            with older_names():
                text = self.parser.dump(Namespace(settings), skip_none=False, skip_validation=True)
            files.write_text(self.output / _CONFIG, text)
