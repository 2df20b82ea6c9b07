"""Training runs: the one way to train a transcoder, for Python, for scripts and for the command line.

    texts or contexts -> Harvest ┐
    a store of activations ------┴-> ActivationDataModule -> TranscoderModule, by Lightning's Trainer -> TrainingResult

The facade and ``train_transcoder`` start from a ``TrainingConfig``, ``open-clt train`` from flags and YAML files
(``command.py``). All of them make a ``TrainingRun``, so the same settings, texts and seed give the same weights, bit
for bit.

With an output directory a run writes

    config.json, transcoder.safetensors     the folded transcoder and the record of its training
    metrics.csv                             the numbers of the steps
    checkpoints/                            ``last``, ``best`` and ``step-N``: whole states of the run, to resume from
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from open_clt.config import TrainingConfig, TranscoderConfig
from open_clt.config.json import to_dict
from open_clt.data.harvest import ActivationStore
from open_clt.errors import CheckpointError, ConfigError
from open_clt.files import kept
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.training.activations import RunActivations, model_on
from open_clt.training.callbacks import stop_on_interrupt
from open_clt.training.data import ActivationDataModule
from open_clt.training.parallel.shards import draw_shard, gather_features
from open_clt.training.parallel.strategy import FeatureParallelStrategy
from open_clt.training.result import TrainingResult
from open_clt.training.step.module import Loss, TranscoderModule, set_encoder_bias
from open_clt.training.step.optimization import OptimizerMaker
from open_clt.training.trainer import check_trainer, make_trainer, trainer_settings
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from open_clt.transcoders.metrics import MetricsAccumulator, TranscoderMetrics
from open_clt.transcoders.transcoder import Transcoder

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OwnParts:
    """Parts of a training run that a user brings in place of the built-in ones, or beside them."""

    architecture: OwnArchitecture | None = None
    """A subclass of Transcoder to train, in place of the class that belongs to the config."""
    loss: Loss | None = None
    """A loss in place of the built-in one."""
    optimizer: OptimizerMaker | None = None
    """Makes an optimizer in place of Adam."""
    callbacks: Sequence[Callback] = ()
    """Lightning callbacks beside our own."""
    trainer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of Lightning's Trainer, such as ``accumulate_grad_batches``."""


@final
class TrainingRun:
    """One training run: its data, its trainer and its untrained transcoder, made in the order in which each is needed.

    Made and trained inside ``quiet_lightning``. Raises ConfigError, CheckpointError or TextError on settings that do
    not fit together, before the first step.
    """

    def __init__(
        self,
        activations: RunActivations,
        transcoder: TranscoderConfig,
        training: TrainingConfig,
        *,
        trainer: Mapping[str, Any],
        own: OwnParts,
        output: Path | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """``trainer`` are all arguments of Lightning's Trainer; those of ``own`` are among them already."""
        self.activations = activations
        self.training = training
        self.output = output
        self.checkpoint = _checkpoint(output, resume)
        settings = dict(trainer)
        self.data = ActivationDataModule(
            activations.train,
            training.data,
            held_out=activations.held_out,
            use_first_position=transcoder.use_first_position,
            accumulation=settings.get("accumulate_grad_batches", 1),
            source=activations.origin,
        )
        self.trainer = make_trainer(
            settings,
            own.callbacks,
            steps=self.data.steps,
            output=output,
            checkpoints=training.checkpoints,
            held_out=activations.held_out is not None,
        )
        self.module = self._module(transcoder, own)

    def _module(self, config: TranscoderConfig, own: OwnParts) -> TranscoderModule:
        """The untrained transcoder, or this process's slice of it, and how it learns."""
        strategy, seed = self.trainer.strategy, self.training.data.seed
        if own.architecture is None and isinstance(strategy, FeatureParallelStrategy):
            part = strategy.part(self.trainer.global_rank, self.trainer.world_size)
            made = draw_shard(config, part, seed=seed)
        else:
            made = make_transcoder(config, seed=seed, own=own.architecture)
        learning = self.training.learning
        ready = set_from_data(made, self.data, learning.initial_firing_rate)
        return TranscoderModule(ready, learning, optimizer=own.optimizer, loss=own.loss)

    def train(self) -> TrainingResult:
        """Train from the beginning, or from the checkpoint to resume; save what came out, and return it."""
        result = fit(self.module, self.data, self.trainer, resume=self.checkpoint)
        result = result._replace(held_out=self.activations.contexts)
        if self.output is not None and result.first:
            record = {"settings": to_dict(self.training), **result.summary()}
            save_transcoder(result.transcoder, self.output, record=record)
            logger.info("Saved the transcoder to %s.", self.output)
        return result


def train_transcoder(
    model: LanguageModel,
    texts_or_contexts: Iterable[str] | Int[Tensor, "context position"],
    transcoder_config: TranscoderConfig,
    training_config: TrainingConfig,
    *,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    own: OwnParts | None = None,
) -> TrainingResult:
    """Train a transcoder of a language model on texts, or on contexts of tokens that were packed before.

    The first contexts are held out for the numbers of the result (``TextsConfig.held_out_contexts``). With an
    ``output_dir`` the folded transcoder and its record are saved there, and beside them, every so often and on Ctrl-C,
    a checkpoint; a later call with the same texts and settings goes on from it with ``resume="last"`` (or ``"best"``,
    or the path of a checkpoint).

    Raises ConfigError if the transcoder does not have the model's shape or ``output_dir`` holds another run, TextError
    if there is hardly any text, CheckpointError if there is nothing to resume.
    """
    check_fits(transcoder_config, model)
    source = model_on(model, texts_or_contexts, training_config)
    activations = source.activations(transcoder_config, training_config)
    return _train(activations, transcoder_config, training_config, model.device, output_dir, resume, progress, own)


def train_on_activations(
    train: ActivationStore,
    transcoder_config: TranscoderConfig,
    training_config: TrainingConfig,
    *,
    held_out: ActivationStore | None = None,
    device: torch.device | str = "cpu",
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    own: OwnParts | None = None,
) -> TrainingResult:
    """Train a transcoder on activations from any store; all else is as in ``train_transcoder``."""
    activations = RunActivations(train=train, held_out=held_out)
    device = torch.device(device)
    return _train(activations, transcoder_config, training_config, device, output_dir, resume, progress, own)


def _train(
    activations: RunActivations,
    transcoder: TranscoderConfig,
    training: TrainingConfig,
    device: torch.device,
    output: str | Path | None,
    resume: str | Path | None,
    progress: bool,
    own: OwnParts | None,
) -> TrainingResult:
    own = own or OwnParts()
    settings = trainer_settings(device, training, dict(own.trainer))
    settings.setdefault("enable_progress_bar", progress)
    check_trainer(settings)
    with quiet_lightning():
        run = TrainingRun(
            activations,
            transcoder,
            training,
            trainer=settings,
            own=own,
            output=None if output is None else Path(output),
            resume=resume,
        )
        return run.train()


def fit(
    module: TranscoderModule, data: ActivationDataModule, trainer: Trainer, *, resume: str | Path | None = None
) -> TrainingResult:
    """Train by Lightning's Trainer, from the beginning or from a checkpoint, and measure what came out."""
    started = time.monotonic()
    try:
        with stop_on_interrupt(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=resume)
    finally:
        data.close()
    cost = data.cost
    transcoder = module.transcoder.to(trainer.strategy.root_device).eval()
    metrics = evaluate(transcoder, data)
    whole = gather_features(transcoder) or transcoder
    return TrainingResult(
        transcoder=whole.folded(),
        curves=module.curves,
        metrics=metrics,
        dead_share=module.dead_share.item(),
        steps=trainer.global_step,
        tokens=trainer.global_step * data.accumulation * data.batch_size,
        seconds=time.monotonic() - started,
        finished=trainer.global_step >= data.steps,
        harvest=cost,
        first=trainer.is_global_zero,
    )


@torch.no_grad()
def evaluate(transcoder: Transcoder, data: ActivationDataModule) -> TranscoderMetrics | None:
    """Metrics on the held-out tokens, or None if there are none."""
    metrics = MetricsAccumulator(transcoder)
    for batch in data.held_out_batches():
        metrics.update(batch.inputs, batch.targets)
    return metrics.result() if metrics.tokens else None


def set_from_data(transcoder: Transcoder, data: ActivationDataModule, firing_rate: float | None) -> Transcoder:
    """Set in a new transcoder what comes from data before the first step: statistics, and encoder biases on request."""
    prepared = data.prepared
    transcoder.standardisation.set(prepared.inputs, prepared.targets)
    if firing_rate is not None:
        set_encoder_bias(transcoder, prepared.sample.inputs.float(), firing_rate)
    return transcoder


@contextmanager
def quiet_lightning() -> Generator[None]:
    """Hold back Lightning's banners, and its advice about things that we do on purpose."""
    banners = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [banner.level for banner in banners]
    for banner in banners:
        banner.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for banner, level in zip(banners, levels, strict=True):
            banner.setLevel(level)


def check_output(output: Path, resume: str | Path | None) -> None:
    """Raise ConfigError if a directory holds a training run that is not to be resumed."""
    if resume is None and (output / "checkpoints" / "last").exists():
        raise ConfigError(
            f"{output} holds a training run; resume it from 'last' (on a command line: --ckpt-path last), or give "
            "another output directory."
        )


def _checkpoint(output: Path | None, resume: str | Path | None) -> Path | None:
    """The checkpoint to resume from; raises CheckpointError if there is none, ConfigError as ``check_output`` does."""
    if output is not None:
        check_output(output, resume)
    if resume is None:
        return None
    named = output is not None and resume in ("last", "best")
    path = output / "checkpoints" / resume if output is not None and named else Path(resume)
    if not kept(path).is_dir():
        raise CheckpointError(f"There is no checkpoint {path}; resume from last, best, or the path of a checkpoint.")
    return path
