"""What ``open-clt train`` does before anything is measured or drawn: settings in, a trained transcoder out.

    settings (YAML, flags) -> language model, texts -> ActivationDataModule -> TranscoderModule -> Trainer -> files

It is Lightning's own command line (LightningCLI on jsonargparse): ``trainer.*`` is Lightning's Trainer, with loggers,
callbacks, strategies and profilers by ``class_path``. The other groups are the configs of ``open_clt.config``:

    transcoder    its architecture; or a class of your own, made from a CrossLayerConfig
    training      loss, optimizer and schedule; a loss or an optimizer of your own
    data          language model, texts, batches; texts of your own, or a store of activations of your own
    checkpoints, early_stop, report, output

The number of layers and their width are the language model's: they need not be given, and must not contradict it.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import torch
from jaxtyping import Int
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from open_clt.activations.buffer import ActivationStore, Harvest
from open_clt.activations.language_model import LanguageModel, load_language_model
from open_clt.activations.prompts import report_prompts
from open_clt.activations.text import ContextStream, TextSource, open_texts
from open_clt.config import (
    CheckpointsConfig,
    CrossLayerConfig,
    DataConfig,
    LearningConfig,
    ReportConfig,
    TextsConfig,
    TranscoderConfig,
)
from open_clt.errors import CheckpointError, ConfigError
from open_clt.models.architectures import OwnArchitecture, make_transcoder
from open_clt.models.checkpoint import save_transcoder
from open_clt.models.transcoder import Transcoder
from open_clt.training.callbacks import StopAtL0
from open_clt.training.data import ActivationDataModule
from open_clt.training.memory import keep_freed_memory
from open_clt.training.module import TranscoderModule
from open_clt.training.parallel import FeatureParallelStrategy
from open_clt.training.settings import (
    Settings,
    add_class,
    add_settings,
    as_user_error,
    in_one_line,
    named_class,
    older_names,
    read_settings,
    user_class,
)
from open_clt.training.shards import draw_shard
from open_clt.training.train import TrainingRecord, fit, quiet_lightning, set_from_data
from open_clt.training.trainer import TRAINER_DEFAULTS, check_trainer, keep_logs_in, make_trainer

logger = logging.getLogger(__name__)

_FROM_MODEL = ("n_layers", "d_model", "language_model")
_FROM_TRAINER = ("epochs", "max_steps", "seed")
_NO_TIME = "00:00:00:00"
"""``trainer.max_time`` of who wants what a checkpoint holds, and no further step."""


class TrainedRun(NamedTuple):
    """What ``open-clt train`` made, and what it can be measured with."""

    record: TrainingRecord
    folded: Transcoder
    """The transcoder that reads and writes raw activations, as it is saved."""
    language_model: LanguageModel | None
    """None where activations came from a store of the user's own."""
    held_out: Int[Tensor, "context position"] | None
    """Contexts that were not trained on."""
    prompts: list[str]
    """What the graphs of its report are made of."""
    report: ReportConfig
    output: Path
    first: bool
    """Whether this is the first of the processes that trained: the one that has all features, and reports."""


def train_command(arguments: Sequence[str], *, keep_memory: bool = False) -> TrainedRun:
    """Train as a command line says; raises OpenCLTErrors that say in a sentence what is wrong with it.

    ``keep_memory`` lets a training on a CPU change the allocator of this process (``memory.keep_freed_memory``).
    """
    with quiet_lightning(), _matmul_precision_restored():
        cli = TrainingCLI(arguments, keep_memory=keep_memory)
        output = Path(cli.config.output)
        record = fit(cli.model, cli.datamodule, cli.trainer, resume=cli.checkpoint)
        cli.check_time(record)
        cli.save_config()
    folded = record.transcoder.folded()
    if cli.trainer.is_global_zero:
        save_transcoder(folded, output, record=record.summary())
    return TrainedRun(
        record=record,
        folded=folded,
        language_model=cli.language_model,
        held_out=cli.held_out,
        prompts=cli.prompts,
        report=cli.report,
        output=output,
        first=cli.trainer.is_global_zero,
    )


@contextmanager
def _matmul_precision_restored() -> Generator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@final
class TrainingCLI(LightningCLI):
    """Reads the settings, and makes what they describe: ``datamodule``, ``model`` and ``trainer``."""

    datamodule: ActivationDataModule
    model: TranscoderModule
    trainer: Trainer

    def __init__(self, arguments: Sequence[str], *, keep_memory: bool = False) -> None:
        self._keep_memory = keep_memory
        self.language_model: LanguageModel | None = None
        self.held_out: Tensor | None = None
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
    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from."""
        asked: str | None = self.config.ckpt_path
        if asked is None:
            return None
        path = Path(self.config.output) / "checkpoints" / asked if asked in ("last", "best") else Path(asked)
        if not path.is_dir():
            raise CheckpointError(f"There is no checkpoint {path}; --ckpt-path is last, best, or the path of one.")
        return path

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
        self._check_output()
        check_trainer(self.config.trainer.as_dict())
        settings = self.config.as_dict()
        self._prepare_torch(settings.get("training", {}).pop("matmul_precision", None))
        parts = self._instantiated()
        self.report: ReportConfig = read_settings(ReportConfig, settings.get("report", {}), "report")
        self.datamodule = self._data(settings["data"], settings.get("transcoder", {}))
        self.prompts = self._prompts()
        self.trainer = self._trainer(parts)
        self.model = self._module(settings.get("transcoder", {}), settings.get("training", {}))

    def _check_output(self) -> None:
        last = Path(self.config.output) / "checkpoints" / "last"
        if self.checkpoint is None and last.exists():
            raise ConfigError(
                f"{self.config.output} holds a training; go on with it (--ckpt-path last), or give another --output."
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

    def _data(self, settings: Settings, transcoder: Settings) -> ActivationDataModule:
        """Activations: of a language model on texts, or of a store of the user's own."""
        texts: Settings = settings.pop("texts", {})
        name, dtype = settings.pop("language_model"), settings.pop("dtype")
        origin = {"language_model": name, "texts": dict(texts), "activations": settings.get("class_path")}
        own = user_class(settings, "data")
        config = read_settings(DataConfig, {**settings, **self._lengths(), "seed": self._seed}, "data")
        if own is not None:
            store, held_out = own(), None
            if not isinstance(store, ActivationStore):
                raise ConfigError("data.class_path names no ActivationStore; it needs n_tokens and __iter__.")
        else:
            self.language_model = load_language_model(name, device=self._device, dtype=dtype)
            store, held_out = self._harvests(self.language_model, texts, config, transcoder)
        accumulation: int = self.config.trainer.accumulate_grad_batches
        return ActivationDataModule(store, config, held_out=held_out, accumulation=accumulation, source=origin)

    def _harvests(
        self, model: LanguageModel, texts: Settings, config: DataConfig, transcoder: Settings
    ) -> tuple[Harvest, Harvest | None]:
        """What is trained on, and what is held out."""
        hooks = {name: transcoder.get(name, getattr(CrossLayerConfig, name)) for name in ("input_hook", "target_hook")}
        own = user_class(texts, "data.texts")
        described: TextsConfig = read_settings(TextsConfig, {"source": "", **texts} if own else texts, "data.texts")
        source: TextSource = partial(open_texts, described) if own is None else own
        stream = ContextStream(
            source, model, config.context_length, from_start=described.from_start, skip=described.held_out_contexts
        )
        train = Harvest(model, stream, **hooks, batch_size=config.harvest_batch_size)
        if not described.held_out_contexts:
            return train, None
        self.held_out = stream.head()
        return train, Harvest(model, self.held_out, **hooks, batch_size=config.harvest_batch_size)

    def _prompts(self) -> list[str]:
        """What the report will make graphs of: a mistake in it should not wait for the end of the training."""
        if self.language_model is None or self.held_out is None:
            return []
        return report_prompts(self.report, self.language_model, self.held_out)

    def _module(self, transcoder: Settings, training: Settings) -> TranscoderModule:
        """The transcoder, and how it learns."""
        named = named_class(transcoder, "transcoder")
        loss = user_class(training.get("loss", {}), "training.loss")
        optimizer = user_class(training.pop("optimizer", {}), "training.optimizer")
        learning = read_settings(LearningConfig, training, "training")
        config = read_settings(TranscoderConfig, {**transcoder, **self._shape(transcoder)}, "transcoder")
        strategy = self.trainer.strategy
        if named is None and isinstance(strategy, FeatureParallelStrategy):
            part = strategy.part(self.trainer.global_rank, self.trainer.world_size)
            made = draw_shard(config, part, seed=self._seed)
        else:
            made = make_transcoder(config, seed=self._seed, own=named and OwnArchitecture(*named))
        ready = set_from_data(made, self.datamodule, learning.initial_firing_rate)
        return TranscoderModule(ready, learning, optimizer=optimizer, loss=None if loss is None else loss())

    def _shape(self, transcoder: Settings) -> Settings:
        """What the data says about the transcoder; raises ConfigError if a setting contradicts it."""
        _, n_layers, d_model = self.datamodule.prepared.sample.inputs.shape
        for name, value in (("n_layers", n_layers), ("d_model", d_model)):
            if transcoder.get(name, value) != value:
                raise ConfigError(
                    f"transcoder.{name} is {transcoder[name]}, but the data has {value}; leave it out: it is known."
                )
        model = self.language_model
        return {"n_layers": n_layers, "d_model": d_model, "language_model": model and model.name}

    def _trainer(self, parts: Namespace) -> Trainer:
        # What a training to resume refuses must not stand among its settings: it has been read when training starts.
        accepted = LambdaCallback(on_train_start=lambda *_: self.save_config())
        return make_trainer(
            {**parts["trainer"]},
            [accepted, parts["early_stop"]],
            steps=self.datamodule.steps,
            output=Path(self.config.output),
            checkpoints=read_settings(CheckpointsConfig, self._group("checkpoints"), "checkpoints"),
            held_out=self.held_out is not None,
        )

    def _group(self, name: str) -> Settings:
        group: Namespace | None = self.config.get(name)
        return {} if group is None else group.as_dict()

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

    def check_time(self, record: TrainingRecord) -> None:
        """Raise ConfigError if a resumed training had no time for a single step, though that was not what was asked."""
        wanted = self.config.trainer.max_time
        if wanted not in (None, _NO_TIME) and not record.finished and record.harvest.total == 0:
            raise ConfigError(
                f"trainer.max_time is {wanted}, which the training to resume has used up: it counts all its parts; "
                "give more."
            )

    def save_config(self) -> None:
        """Write the settings beside what they make."""
        if self.trainer.is_global_zero:
            output = Path(self.config.output)
            output.mkdir(parents=True, exist_ok=True)
            # Without what would make another training of the same settings go on with this one, or end at once.
            settings: Settings = {**self.config.as_dict(), "ckpt_path": None}
            if settings["trainer"]["max_time"] == _NO_TIME:
                settings["trainer"]["max_time"] = None
            with older_names():
                text = self.parser.dump(Namespace(settings), skip_none=False, skip_validation=True)
            (output / "config.yaml").write_text(text, encoding="utf-8")
