"""The command line of training: flags and YAML files in, a trained transcoder out.

    settings (YAML, flags) -> TrainingConfig, classes of one's own -> TrainingRun (``run.py``) -> CommandResult

It is Lightning's own command line (LightningCLI on jsonargparse): ``trainer.*`` is Lightning's Trainer, with loggers,
callbacks, strategies and profilers by ``class_path``. The other groups are the configs of ``open_clt.config``:

    transcoder    its architecture; or a class of your own, made from the config of the other settings
    training      loss, optimizer and schedule; a loss or an optimizer of your own
    data          language model, texts, batches; texts of your own, or a store of activations of your own
    checkpoints, early_stop, report, output

The number of layers and their width are the language model's: they need not be given, and must not contradict it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from open_clt import files
from open_clt.config import (
    CheckpointsConfig,
    DataConfig,
    LearningConfig,
    ReportConfig,
    TextsConfig,
    TrainingConfig,
    TranscoderConfig,
)
from open_clt.data.harvest import ActivationStore
from open_clt.data.prompts import report_prompts
from open_clt.data.texts import open_texts
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.training.activations import ModelOnTexts, OwnStore, Shape, Source
from open_clt.training.callbacks import StopAtL0
from open_clt.training.flags.settings import (
    add_class,
    add_settings,
    as_user_error,
    in_one_line,
    named_class,
    older_names,
    read_settings,
    user_class,
)
from open_clt.training.memory import keep_freed_memory
from open_clt.training.result import TrainingResult
from open_clt.training.run import OwnParts, TrainingRun, check_output, quiet_lightning
from open_clt.training.trainer import TRAINER_DEFAULTS, Settings, check_trainer, keep_logs_in
from open_clt.transcoders.make import OwnArchitecture

_FROM_TRAINER = ("epochs", "max_steps", "seed")
_NO_TIME = "00:00:00:00"
"""A ``trainer.max_time`` that takes no further step: the run only writes the transcoder that a checkpoint holds."""


class CommandResult(NamedTuple):
    """What ``open-clt train`` made, and what its report needs."""

    training: TrainingResult
    language_model: LanguageModel | None
    """None where activations came from a store of the user's own."""
    prompts: list[str]
    """Prompts that the report makes graphs of."""
    report: ReportConfig
    output: Path


def train_command(arguments: Sequence[str], *, keep_memory: bool = False) -> CommandResult:
    """Train as a command line says; raises OpenCLTErrors that say in a sentence what is wrong with it.

    ``keep_memory`` lets a run on a CPU change the allocator of this process (``memory.keep_freed_memory``).
    """
    with quiet_lightning(), _matmul_precision_restored():
        cli = TrainingCLI(arguments, keep_memory=keep_memory)
        result = cli.training_run.train()
        cli.check_time(result)
        cli.save_config()
    return CommandResult(result, cli.language_model, cli.prompts, cli.report, cli.output)


@contextmanager
def _matmul_precision_restored() -> Generator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@final
class TrainingCLI(LightningCLI):
    """Reads the settings, and makes the training run that they describe: ``training_run``."""

    training_run: TrainingRun

    def __init__(self, arguments: Sequence[str], *, keep_memory: bool = False) -> None:
        self._keep_memory = keep_memory
        self.language_model: LanguageModel | None = None
        said = {"prog": "open-clt train", "description": "Train a transcoder.", "exit_on_error": False}
        super().__init__(
            args=list(arguments),
            run=False,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs=said,
        )

    @property
    def output(self) -> Path:
        """Directory of everything that is written."""
        return Path(self.config.output)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """All flags."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        add_settings(parser, "transcoder", TranscoderConfig, skip=("language_model",))
        add_class(parser, "transcoder", "a Transcoder of your own, made from a CrossLayerConfig of the other settings")
        add_settings(parser, "training", LearningConfig)
        precision = "how exact matrix products are in float32 (torch.set_float32_matmul_precision; default: as it is)"
        precisions = Literal["highest", "high", "medium"] | None
        parser.add_argument("--training.matmul_precision", type=precisions, default=None, help=precision)
        what = "a loss of your own: a class whose objects are called with a training step (module.Step), and return it"
        add_class(parser, "training.loss", what)
        add_class(parser, "training.optimizer", "an optimizer such as torch.optim.NAdam, in place of Adam")
        add_settings(parser, "data", DataConfig, skip=_FROM_TRAINER)
        add_settings(parser, "data.texts", TextsConfig)
        add_class(parser, "data.texts", "texts of your own: a function that returns strings, each time the same")
        add_class(parser, "data", "activations of your own (an ActivationStore), in place of language model and texts")
        option = parser.add_argument
        option("--data.language_model", type=str, default="gpt2", help="name, directory, .gguf file, or 'embedded'")
        option("--data.dtype", type=str, default="float32", help="how the language model computes: float32, bfloat16")
        add_settings(parser, "checkpoints", CheckpointsConfig)
        add_settings(parser, "report", ReportConfig)
        parser.add_lightning_class_args(StopAtL0, "early_stop")
        option("--output", type=str, default="transcoder", help="directory of everything that is written")
        resume = (
            f"go on from here: last, best, or a path; with --trainer.max_time {_NO_TIME}, only write its transcoder"
        )
        option("--ckpt_path", "--ckpt-path", type=str, default=None, help=resume)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the command line; raises ConfigError where argparse would print a page and exit."""
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise ConfigError(in_one_line(error, parser)) from error

    def instantiate_classes(self) -> None:
        """Make everything, in the order in which each thing needs the one before."""
        check_output(self.output, self.config.ckpt_path)
        check_trainer(self.config.trainer.as_dict())
        settings = self.config.as_dict()
        self._prepare_torch(settings.get("training", {}).pop("matmul_precision", None))
        parts = self._instantiated()
        self.report: ReportConfig = read_settings(ReportConfig, settings.get("report", {}), "report")
        own = self._own_parts(parts, settings)
        source = self._source(settings["data"])
        training = self._training_config(settings)
        transcoder = self._transcoder_config(settings.get("transcoder", {}), source.shape)
        activations = source.activations(transcoder, training)
        self.prompts = self._prompts(activations.contexts)
        self.training_run = TrainingRun(
            activations,
            transcoder,
            training,
            trainer={**parts["trainer"]},
            own=own,
            output=self.output,
            resume=self.config.ckpt_path,
        )

    def _prepare_torch(self, matmul_precision: str | None) -> None:
        """What PyTorch must know before it is at work."""
        if self._keep_memory and self._device.type == "cpu":
            keep_freed_memory()
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)

    def _instantiated(self) -> Namespace:
        """Callbacks, loggers and the like; raises MissingExtraError if one needs a package that is not there."""
        try:
            config = self.config.clone()
            keep_logs_in(Path(config.output), config.trainer.logger)
            with older_names():
                return cast(Namespace, self.parser.instantiate_classes(config))
        except (ImportError, ValueError) as error:
            raise as_user_error(error, "trainer", self.config.trainer.as_dict()) from error

    def _own_parts(self, parts: Namespace, settings: Settings) -> OwnParts:
        """Classes of the user's own, taken out of the settings that name them."""
        transcoder, training = settings.get("transcoder", {}), settings.get("training", {})
        named = named_class(transcoder, "transcoder")
        loss = user_class(training.get("loss", {}), "training.loss")
        # The settings of a run that was refused must not stay in its directory: they are written when training starts.
        accepted = LambdaCallback(on_train_start=lambda *_: self.save_config())
        return OwnParts(
            architecture=named and OwnArchitecture(*named),
            loss=None if loss is None else loss(),
            optimizer=user_class(training.pop("optimizer", {}), "training.optimizer"),
            callbacks=[accepted, parts["early_stop"]],
        )

    def _source(self, data: Settings) -> Source:
        """Where activations come from, taken out of the settings of ``data``: a store, or a language model on texts."""
        texts: Settings = data.setdefault("texts", {})
        name, dtype = data.pop("language_model"), data.pop("dtype")
        origin = {"language_model": name, "texts": dict(texts), "activations": data.get("class_path")}
        own_store, own_texts = user_class(data, "data"), user_class(texts, "data.texts")
        if own_store is not None:
            store = own_store()
            if not isinstance(store, ActivationStore):
                raise ConfigError("data.class_path does not name an ActivationStore, which has n_tokens and __iter__.")
            return OwnStore(store, origin)
        if own_texts is None and texts.get("source") is None:
            raise ConfigError("data.texts.source is missing; name a file or a data set of texts.")
        described: TextsConfig = read_settings(TextsConfig, texts, "data.texts")
        self.language_model = load_language_model(name, device=self._device, dtype=dtype)
        return ModelOnTexts(self.language_model, own_texts or partial(open_texts, described), origin)

    def _training_config(self, settings: Settings) -> TrainingConfig:
        data: Settings = settings["data"]
        texts = data.pop("texts")
        checkpoints = settings.get("checkpoints", {})
        return TrainingConfig(
            data=read_settings(DataConfig, {**data, **self._lengths(), "seed": self._seed}, "data"),
            texts=read_settings(TextsConfig, texts, "data.texts"),
            learning=read_settings(LearningConfig, settings.get("training", {}), "training"),
            checkpoints=read_settings(CheckpointsConfig, checkpoints, "checkpoints"),
            gradient_clip=self.config.trainer.gradient_clip_val or None,
        )

    def _transcoder_config(self, settings: Settings, shape: Shape) -> TranscoderConfig:
        """The transcoder's config with the data's shape; raises ConfigError if a setting contradicts the data."""
        for name, value in shape._asdict().items():
            if settings.get(name, value) != value:
                raise ConfigError(
                    f"transcoder.{name} is {settings[name]}, but the data has {value}; leave it out: it is known."
                )
        model = self.language_model
        whole = {**settings, **shape._asdict(), "language_model": model and model.name}
        return read_settings(TranscoderConfig, whole, "transcoder")

    def _prompts(self, held_out: Tensor | None) -> list[str]:
        """Prompts of the report's graphs: a mistake in them should not wait for the end of the run."""
        if self.language_model is None or held_out is None:
            return []
        return report_prompts(self.report, self.language_model, held_out)

    def _lengths(self) -> Settings:
        """How long to train, by the names that the data knows it by."""
        trainer = self.config.trainer
        steps = {} if trainer.max_steps in (None, -1) else {"max_steps": trainer.max_steps}
        return {**steps, "epochs": trainer.max_epochs or 1}

    @property
    def _seed(self) -> int:
        return int(self.config.seed_everything)

    @property
    def _device(self) -> torch.device:
        """Where the language model runs: where the transcoder does, as far as it is known before the Trainer is."""
        wanted = self.config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        # Launchers tell each process of a machine which of its devices it has.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if wanted else torch.device("cpu")

    def check_time(self, result: TrainingResult) -> None:
        """Raise ConfigError if a resumed run had no time for a single step, though steps were asked for."""
        wanted = self.config.trainer.max_time
        if wanted not in (None, _NO_TIME) and not result.finished and result.harvest.total == 0:
            raise ConfigError(
                f"trainer.max_time is {wanted}, which the run to resume has used up: it counts all parts of the run; "
                "give more."
            )

    def save_config(self) -> None:
        """Write the settings beside what they make."""
        if self.training_run.trainer.is_global_zero:
            self.output.mkdir(parents=True, exist_ok=True)
            # Without what would make another run of the same settings resume this one, or end at once.
            settings: Settings = {**self.config.as_dict(), "ckpt_path": None}
            if settings["trainer"]["max_time"] == _NO_TIME:
                settings["trainer"]["max_time"] = None
            with older_names():
                text = self.parser.dump(Namespace(settings), skip_none=False, skip_validation=True)
            files.write_text(self.output / "config.yaml", text)
