"""Training runs: the one way to train a transcoder, from Python, from a script and from the command line.

    texts or contexts -> Harvest ┐
    a dataset, or an own store --┴-> ActivationDataModule -> TranscoderModule, by Lightning's Trainer -> TrainingResult

A transcoder learns from pairs of activations of a language model: its inputs and its targets at every layer, for many
tokens. A training run goes through these steps:

1. ``RunActivations`` holds the activations to train on and the held-out activations. They come from a language model
   that reads texts (a ``Harvest``), from a dataset that was harvested before, or from a user's own store.
2. ``ActivationDataModule`` reads the data once to estimate its statistics, and then mixes it into random batches.
3. ``make_transcoder`` draws the first weights from the seed, and ``set_from_data`` adds the statistics of the data.
4. Lightning's Trainer takes the steps. ``TranscoderModule`` computes the loss of a batch, and callbacks write
   checkpoints, metrics and a progress bar.
5. ``fit`` measures the transcoder on the held-out activations, folds the statistics into its weights, and returns a
   ``TrainingResult``.

A ``TrainingConfig`` has one part for each subject: ``data`` (batches, length and seed), ``texts`` (their source, and
which contexts are held out) or ``dataset`` (the same for a dataset of activations), ``learning`` (loss, optimizer and
schedule), ``checkpoints``, and ``gradient_clip``.
``OwnParts`` are the parts that a user brings in place of the built-in ones.

The facade and ``train_transcoder`` start from a ``TrainingConfig``; ``open-clt train`` makes one from flags and YAML
files (``flags/command_line.py``). Each of them makes a ``TrainingRun``, so the same settings, texts and seed give the
same weights, bit for bit.

With an output directory a run writes

    config.json, transcoder.safetensors     the folded transcoder, and the record of its training
    metrics.csv                             the numbers of the training steps
    checkpoints/                            ``last``, ``best`` and ``step-N``: states of the run to resume from
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from open_clt.config import TrainingConfig, TranscoderConfig
from open_clt.config.arguments import checked_arguments
from open_clt.config.ignored import (
    check_distance,
    check_no_output,
    check_own_activations,
    check_own_parts,
    check_unused,
)
from open_clt.config.json import to_dict
from open_clt.data.harvest import ActivationStore
from open_clt.device import check_device
from open_clt.errors import CheckpointError, ConfigError, ServiceError
from open_clt.language.language_model import LanguageModel
from open_clt.memory import memory_errors
from open_clt.program import Stopped
from open_clt.short_repr import short_repr
from open_clt.training.callbacks import FirstStep
from open_clt.training.data.activations import RunActivations
from open_clt.training.data.module import ActivationDataModule
from open_clt.training.data.source import source_of
from open_clt.training.memory import MEMORY_WAYS, check_training_memory
from open_clt.training.output import OutputDirectory, checkpoint_path, how_to_resume, output_directory
from open_clt.training.parallel.shards import draw_shard, gather_features
from open_clt.training.parallel.strategy import FeatureParallelStrategy
from open_clt.training.result import TrainingResult
from open_clt.training.signals import stop_on_signals
from open_clt.training.step.finite import check_weights
from open_clt.training.step.module import Loss, TranscoderModule, set_encoder_bias
from open_clt.training.step.optimization import OptimizerMaker
from open_clt.training.trainer import (
    check_own_trainer,
    check_trainer,
    make_trainer,
    trainer_settings,
    writes_checkpoints,
)
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from open_clt.transcoders.metrics import MetricsAccumulator, TranscoderMetrics
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OwnParts:
    """Parts of a training run that a user brings in place of the built-in ones, or in addition to them."""

    architecture: OwnArchitecture | None = None
    """A subclass of Transcoder to train, in place of the class that belongs to the config."""
    loss: Loss | None = None
    """A loss function in place of the built-in loss."""
    optimizer: OptimizerMaker | None = None
    """A function that makes an optimizer, in place of Adam."""
    callbacks: Sequence[Callback] = ()
    """Lightning callbacks in addition to the built-in ones."""
    trainer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of Lightning's Trainer, such as ``accumulate_grad_batches``."""

    __repr__ = short_repr


@final
class TrainingRun:
    """One training run: its data, its trainer and its untrained transcoder, made in the order in which each is needed.

    Callers make and train it inside ``quiet_lightning``. Raises ConfigError, CheckpointError or TextError before the
    first step if the settings do not fit together.
    """

    def __init__(
        self,
        activations: RunActivations,
        transcoder: TranscoderConfig,
        training: TrainingConfig,
        *,
        trainer: Mapping[str, Any],
        own: OwnParts,
        output: OutputDirectory | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """``trainer`` holds all arguments of Lightning's Trainer, including those of ``own.trainer``."""
        check_unused(training)
        check_distance(training, transcoder)
        check_own_parts(training, loss=own.loss is not None, optimizer=own.optimizer is not None)
        self.activations = activations
        self.training = training
        self.output = output
        path = None if output is None else output.path
        self.checkpoint = checkpoint_path(path, resume)
        settings = dict(trainer)
        self.data = ActivationDataModule(
            activations.train,
            training.data,
            held_out=activations.held_out,
            use_first_position=transcoder.use_first_position,
            layers=transcoder.layers,
            accumulation=settings.get("accumulate_grad_batches", 1),
            source=activations.origin,
            statistics=activations.statistics,
        )
        self.trainer = make_trainer(
            settings,
            [*([] if output is None else [FirstStep(output.begin)]), *own.callbacks],
            steps=self.data.steps,
            output=path,
            checkpoints=training.checkpoints,
            held_out=activations.held_out is not None,
        )
        self.module = self._module(transcoder, own)

    def _module(self, config: TranscoderConfig, own: OwnParts) -> TranscoderModule:
        """The Lightning module that trains the new transcoder, or this process's slice of it."""
        with memory_errors("The training run", MEMORY_WAYS):
            return self._built(config, own)

    def _built(self, config: TranscoderConfig, own: OwnParts) -> TranscoderModule:
        strategy, seed = self.trainer.strategy, self.training.data.seed
        if own.architecture is None and isinstance(strategy, FeatureParallelStrategy):
            part = strategy.part(self.trainer.global_rank, self.trainer.world_size)
            transcoder = draw_shard(config, part, seed=seed)
        else:
            if own.architecture is None:
                check_training_memory(config, strategy.root_device)
            transcoder = make_transcoder(config, seed=seed, own=own.architecture)
        learning = self.training.learning
        transcoder = set_from_data(transcoder, self.data, learning.initial_firing_rate)
        return TranscoderModule(transcoder, learning, optimizer=own.optimizer, loss=own.loss)

    def train(self) -> TrainingResult:
        """Train from the beginning or from a checkpoint, save the transcoder, and return the result."""
        try:
            with memory_errors("The training run", MEMORY_WAYS):
                result = fit(self.module, self.data, self.trainer, resume=self.checkpoint)
        except Stopped as stopped:
            stopped.advice = how_to_resume(self.output and self.output.path)
            stopped.silent = self.trainer.should_stop and not self.trainer.is_global_zero
            raise
        except (CheckpointError, ServiceError) as error:  # a shard is damaged, or its server has vanished
            if self.trainer.global_step > 0:
                error.args = (f"{error} {how_to_resume(self.output and self.output.path)}",)
            raise
        finally:
            self.data.release()
        result = result._replace(held_out=self.activations.contexts)
        if self.output is not None:
            self.output.begin()  # a resumed run may have no steps left
        if self.output is not None and result.first:
            about = {"dataset": self.activations.about} if self.activations.about else {}
            record = {"settings": to_dict(self.training), **about, **result.summary()}
            save_transcoder(result.transcoder, self.output.path, record=record)
            logger.info("Saved the transcoder to %s.", self.output.path)
        return result


@checked_arguments
def train_transcoder(
    model: LanguageModel | None = None,
    texts_or_contexts: Iterable[str] | Int[Tensor, "context position"] | None = None,
    transcoder_config: TranscoderConfig | None = None,
    training_config: TrainingConfig | None = None,
    *,
    data: str | Path | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    progress: bool = True,
    own: OwnParts | None = None,
) -> TrainingResult:
    """Train a transcoder of a language model on texts, on contexts that are packed already, or on stored activations.

    ``data`` is the directory or the URL of a dataset (``open-clt harvest``), which takes the place of texts and
    contexts; the settings of its use are those of ``TrainingConfig.dataset``. No language model is needed then; if one
    is given, it must be that of the dataset, and the run uses its device.

    The first contexts are held out, and the result is measured on them (``TextsConfig.held_out_contexts``). With an
    ``output_dir``, the run saves the folded transcoder and its record there, and writes checkpoints at regular steps,
    and when Ctrl-C or SIGTERM stops it. After SIGTERM, the process ends once the checkpoint is written. A later call
    with the same texts and settings continues from a checkpoint: ``resume`` is ``"last"``, ``"best"``, or the path of a
    checkpoint. ``overwrite`` replaces a former run in ``output_dir`` at the end of the first step, so a run that cannot
    start leaves it as it is. All files of the former run are deleted, also those that you changed since; files that
    OpenCLT did not write stay.

    Raises ConfigError if the transcoder does not fit the model or the dataset, if ``output_dir`` is in use, or if it
    holds another run or files of other programs under the names that the run writes. Raises TextError if the texts are
    too short to train on, CheckpointError if the checkpoint to resume is missing or has other settings, or if the
    dataset is damaged, and NotFiniteError at the first step whose loss is not finite; what was saved before that step
    is kept.
    """
    if transcoder_config is None:
        raise ConfigError("transcoder_config is missing; give a CrossLayerConfig or a MoltConfig.")
    config, training, source = source_of(model, texts_or_contexts, transcoder_config, training_config, data)
    return _train(
        lambda: source.activations(config, training),
        config,
        training,
        device=torch.device("cpu") if model is None else model.device,
        output_dir=output_dir,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
        own=own,
    )


def train_on_activations(
    train: ActivationStore,
    transcoder_config: TranscoderConfig,
    training_config: TrainingConfig,
    *,
    held_out: ActivationStore | None = None,
    device: torch.device | str = "cpu",
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    progress: bool = True,
    own: OwnParts | None = None,
) -> TrainingResult:
    """Train a transcoder on activations from any store; everything else is as in ``train_transcoder``.

    Also raises ConfigError if ``training_config`` has settings of texts or of a language model, which are not used.
    """
    check_own_activations(training_config)
    return _train(
        lambda: RunActivations(train=train, held_out=held_out),
        transcoder_config,
        training_config,
        device=check_device(device),
        output_dir=output_dir,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
        own=own,
    )


def _train(
    activations: Callable[[], RunActivations],
    transcoder: TranscoderConfig,
    training: TrainingConfig,
    *,
    device: torch.device,
    output_dir: str | Path | None,
    overwrite: bool,
    resume: str | Path | None,
    progress: bool,
    own: OwnParts | None,
) -> TrainingResult:
    """Make a training run with the settings of a call from Python, and train."""
    own = own or OwnParts()
    check_own_trainer(dict(own.trainer))
    check_unused(training)
    check_distance(training, transcoder)
    if output_dir is None:
        check_no_output(training)
    settings = trainer_settings(device, training, dict(own.trainer))
    settings.setdefault("enable_progress_bar", progress)
    check_trainer(settings)
    checkpoints = training.checkpoints if writes_checkpoints(settings) else None
    with (
        quiet_lightning(),
        output_directory(output_dir, resume=resume, overwrite=overwrite, checkpoints=checkpoints) as output,
    ):
        run = TrainingRun(activations(), transcoder, training, trainer=settings, own=own, output=output, resume=resume)
        return run.train()


def fit(
    module: TranscoderModule, data: ActivationDataModule, trainer: Trainer, *, resume: str | Path | None = None
) -> TrainingResult:
    """Train with Lightning's Trainer, from the beginning or from a checkpoint, and measure the trained transcoder.

    Raises NotFiniteError at the first step whose loss is not finite.
    """
    started = time.monotonic()
    try:
        with stop_on_signals(trainer) as stop:
            trainer.fit(module, datamodule=data, ckpt_path=resume)
    finally:
        data.close()
    check_weights(module.transcoder, trainer.global_step)
    harvest_cost = data.cost
    transcoder = module.transcoder.to(trainer.strategy.root_device).eval()
    metrics = evaluate(transcoder, data)
    gathered = gather_features(transcoder) or transcoder
    return TrainingResult(
        transcoder=gathered.folded(),
        curves=module.curves,
        metrics=metrics,
        dead_share=module.dead_share.item(),
        steps=trainer.global_step,
        tokens=trainer.global_step * data.accumulation * data.batch_size,
        seconds=time.monotonic() - started,
        finished=trainer.global_step >= data.steps,
        harvest=harvest_cost,
        first=trainer.is_global_zero,
        interrupted=stop.stopped,
    )


@torch.no_grad()
def evaluate(transcoder: Transcoder, data: ActivationDataModule) -> TranscoderMetrics | None:
    """Measure a transcoder on the held-out tokens; returns None if no tokens are held out."""
    accumulator = MetricsAccumulator(transcoder)
    for batch in data.held_out_batches():
        accumulator.update(batch.inputs, batch.targets)
    return accumulator.result() if accumulator.tokens else None


def set_from_data(transcoder: Transcoder, data: ActivationDataModule, firing_rate: float | None) -> Transcoder:
    """Give a new transcoder the statistics of the data and, with a ``firing_rate``, encoder biases that produce it."""
    prepared = data.prepared
    transcoder.standardisation.set(prepared.inputs, prepared.targets)
    if firing_rate is not None:
        set_encoder_bias(transcoder, prepared.sample.inputs.float(), firing_rate)
    return transcoder


@contextmanager
def quiet_lightning() -> Generator[None]:
    """Silence Lightning's banners, and its warnings about choices that we make on purpose."""
    lightning_loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [lightning_logger.level for lightning_logger in lightning_loggers]
    for lightning_logger in lightning_loggers:
        lightning_logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for lightning_logger, level in zip(lightning_loggers, levels, strict=True):
            lightning_logger.setLevel(level)
