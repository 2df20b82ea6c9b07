"""Train a transcoder: the one way in, for the facade, the command line, and whoever has activations of their own.

texts -> contexts -> Harvest -> ActivationDataModule -> TranscoderModule, by Lightning's Trainer -> TrainingRecord
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from open_clt.activations.buffer import ActivationStore, Harvest
from open_clt.activations.language_model import LanguageModel
from open_clt.activations.text import pack_contexts
from open_clt.config import TrainingConfig, TranscoderConfig
from open_clt.config_json import to_dict
from open_clt.errors import CheckpointError, ConfigError, TextError
from open_clt.models.architectures import make_transcoder
from open_clt.models.checkpoint import save_transcoder
from open_clt.models.metrics import MetricsAccumulator, TranscoderMetrics
from open_clt.models.transcoder import Transcoder
from open_clt.training.callbacks import Checkpoints, ProgressBar, stop_on_interrupt
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.training.data import ActivationDataModule, HarvestCost
from open_clt.training.module import Curves, TranscoderModule, set_encoder_bias
from open_clt.training.shards import gather_features

logger = logging.getLogger(__name__)

_RESUME = "resume"


class TrainingRecord(NamedTuple):
    """What came out of a training."""

    transcoder: Transcoder
    """All of it on the first process; on others that hold some of its features, those."""
    curves: Curves
    metrics: TranscoderMetrics | None
    """On held-out tokens; None if none were held out."""
    dead_share: float
    """Share of features silent over the last ``dead_after_tokens`` tokens of training."""
    steps: int
    tokens: int
    """Tokens trained on, repeated ones included."""
    seconds: float
    finished: bool
    """False if it was interrupted."""
    harvest: HarvestCost
    """What the activations cost."""

    def summary(self) -> dict[str, Any]:
        """All of it but the transcoder and the densities, JSON-ready: the record that is stored beside the weights."""
        metrics = self.metrics and {
            "tokens": self.metrics.tokens,
            "fvu": self.metrics.fvu,
            "worst_fvu": self.metrics.worst_fvu,
            "fvu_per_layer": self.metrics.fvu_per_layer,
            "l0": self.metrics.l0,
            "l0_per_layer": self.metrics.l0_per_layer,
            "dead_share": self.metrics.dead_share,
        }
        kept = {name: getattr(self, name) for name in ("dead_share", "steps", "tokens", "seconds", "finished")}
        harvest = {**self.harvest._asdict(), "share": self.harvest.share}
        return {**kept, "harvest_seconds": harvest, "held_out": metrics, "curves": self.curves._asdict()}


def train_transcoder(
    model: LanguageModel,
    texts_or_contexts: Iterable[str] | Int[Tensor, "context position"],
    transcoder_config: TranscoderConfig,
    training_config: TrainingConfig,
    *,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainingRecord:
    """Train a transcoder of a language model on texts, or on contexts of tokens that were packed before.

    A share of the contexts is held out for the final metrics. With an ``output_dir`` the transcoder and its record are
    saved there, and beside them, every so often and on Ctrl-C, a checkpoint that a later call can ``resume`` (give it
    the same texts and settings). Raises ConfigError if the transcoder's shape is not the model's, TextError if there is
    hardly any text, CheckpointError if there is nothing to resume.
    """
    _check_shape(model, transcoder_config)
    if isinstance(texts_or_contexts, Tensor):
        contexts = texts_or_contexts
    else:
        contexts = pack_contexts(texts_or_contexts, model, training_config.context_length)
    held_out, train = (
        _harvest(model, rows, transcoder_config, training_config) for rows in split_contexts(contexts, training_config)
    )
    return train_on_activations(
        train,
        transcoder_config,
        training_config,
        held_out=held_out,
        device=model.device,
        output_dir=output_dir,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
    )


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
    callbacks: Sequence[Callback] = (),
) -> TrainingRecord:
    """Train a transcoder on activations from any store; the rest is as in ``train_transcoder``."""
    started = time.monotonic()
    data = ActivationDataModule(train, training_config, held_out=held_out)
    transcoder = make_transcoder(transcoder_config, seed=training_config.seed)
    transcoder = set_from_data(transcoder, data, training_config.initial_firing_rate)
    module = TranscoderModule(transcoder, training_config)
    watchers = [*callbacks, *([ProgressBar()] if progress else [])]
    if output_dir is not None:
        watchers.append(Checkpoints(Path(output_dir) / _RESUME, training_config.checkpoint_every))
    with quiet_lightning():
        trainer = _trainer(data.steps, torch.device(device), training_config, watchers)
        record = fit(module, data, trainer, resume=resume and _resumable(resume))
    record = record._replace(seconds=time.monotonic() - started)
    if output_dir is not None:
        _save(record, training_config, Path(output_dir))
    return record


def fit(
    module: TranscoderModule, data: ActivationDataModule, trainer: Trainer, *, resume: str | Path | None = None
) -> TrainingRecord:
    """Train by Lightning's Trainer, from the beginning or from a checkpoint, and measure what came out."""
    started = time.monotonic()
    try:
        with stop_on_interrupt(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=resume)
    finally:
        data.close()
    cost = data.cost
    transcoder = module.transcoder.to(trainer.strategy.root_device).eval()
    return TrainingRecord(
        transcoder=gather_features(transcoder) or transcoder,
        curves=module.curves,
        metrics=evaluate(transcoder, data),
        dead_share=module.dead_share.item(),
        steps=trainer.global_step,
        tokens=trainer.global_step * data.accumulation * data.batch_size,
        seconds=time.monotonic() - started,
        finished=trainer.global_step >= data.steps,
        harvest=cost,
    )


def split_contexts(
    contexts: Int[Tensor, "context position"], config: TrainingConfig
) -> tuple[Int[Tensor, "held_out position"], Int[Tensor, "trained position"]]:
    """Held-out contexts and those to train on, both in an order that follows from the seed."""
    order = torch.randperm(contexts.shape[0], generator=torch.Generator().manual_seed(config.seed))
    held_out = round(config.held_out_share * contexts.shape[0])
    if config.held_out_share > 0:
        held_out = max(1, held_out)
    if held_out >= contexts.shape[0]:
        raise TextError(
            f"{contexts.shape[0]} contexts cannot be split into held-out and training ones; give more text, "
            "or set held_out_share to 0."
        )
    return contexts[order[:held_out]], contexts[order[held_out:]]


@torch.no_grad()
def evaluate(transcoder: Transcoder, data: ActivationDataModule) -> TranscoderMetrics | None:
    """Metrics on the held-out tokens, or None if there are none."""
    config = transcoder.config
    metrics = MetricsAccumulator(config.n_layers, config.n_features, config.d_model, peers=transcoder.peers)
    tokens = 0
    for batch in data.held_out_batches():
        features, reconstruction = transcoder(batch.inputs.to(transcoder.device, transcoder.dtype))
        metrics.update(features, reconstruction, batch.targets)
        tokens += batch.size
    return metrics.result() if tokens else None


def _check_shape(model: LanguageModel, config: TranscoderConfig) -> None:
    for name in ("n_layers", "d_model"):
        if getattr(config, name) != getattr(model, name):
            raise ConfigError(
                f"{name} of the transcoder is {getattr(config, name)}, but {model.name} has {getattr(model, name)}; "
                "they must be equal."
            )


def _harvest(
    model: LanguageModel, contexts: Tensor, transcoder_config: TranscoderConfig, training_config: TrainingConfig
) -> Harvest:
    return Harvest(
        model,
        contexts,
        input_hook=transcoder_config.input_hook,
        target_hook=transcoder_config.target_hook,
        batch_size=training_config.harvest_batch_size,
    )


def set_from_data(transcoder: Transcoder, data: ActivationDataModule, firing_rate: float | None) -> Transcoder:
    """Set in a new transcoder what comes from data before the first step: statistics, and encoder biases on request."""
    prepared = data.prepared
    transcoder.standardisation.set(prepared.inputs, prepared.targets)
    if firing_rate is not None:
        set_encoder_bias(transcoder, prepared.sample.inputs.float(), firing_rate)
    return transcoder


def _trainer(steps: int, device: torch.device, config: TrainingConfig, callbacks: Sequence[Callback]) -> Trainer:
    """Lightning's Trainer with nothing on that was not asked for: no loggers, directories, summaries or banners."""
    return Trainer(
        max_steps=steps,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        gradient_clip_val=config.gradient_clip,
        limit_val_batches=0,
        plugins=[SafetensorsCheckpointIO()],
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


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


def _resumable(path: str | Path) -> str:
    """The checkpoint to resume: ``path`` itself, or the one that a training left in its output directory ``path``."""
    path = Path(path)
    found = next((at for at in (path / _RESUME / "last", path / "last") if at.is_dir()), path)
    if not found.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}; give the output directory of an interrupted training.")
    return str(found)


def _save(record: TrainingRecord, config: TrainingConfig, directory: Path) -> None:
    """Save the transcoder and its record; a finished training leaves nothing to resume."""
    summary = {"settings": to_dict(config), **record.summary()}
    save_transcoder(record.transcoder, directory, record=summary)
    if record.finished:
        SafetensorsCheckpointIO().remove_checkpoint(directory / _RESUME)
    logger.info("Saved the transcoder to %s.", directory)
