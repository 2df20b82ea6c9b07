"""The Lightning module of a training run: one training step, and the numbers that are recorded about it.

The transcoder computes features and reconstructions, ``losses`` computes the terms of the loss, and this module adds
them up. Only this module knows coefficients, warm-ups and which features are dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from open_clt.config import LearningConfig
from open_clt.config.json import to_dict
from open_clt.data.harvest import ActivationBatch
from open_clt.html_repr import html_repr
from open_clt.short_repr import short_repr
from open_clt.training.data.module import refuse_other_settings
from open_clt.training.parallel.shards import shard_features
from open_clt.training.parallel.strategy import clip_gradients, peers_of
from open_clt.training.step import losses
from open_clt.training.step.finite import check_optimizer, check_step, check_weights
from open_clt.training.step.optimization import OptimizerMaker, ramp, scheduled_optimizer, step_is_complete
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.metrics import MetricsAccumulator
from open_clt.transcoders.outputs import TranscoderErrors
from open_clt.transcoders.slices import ALONE
from open_clt.transcoders.sparse.codes import LayerFeatures, active_counts
from open_clt.transcoders.sparse.products import multiplied
from open_clt.transcoders.transcoder import Transcoder

_CURVE_POINTS = 400


class Step(NamedTuple):
    """The arguments of a user's own loss: a batch, and the features and errors of the transcoder on it."""

    inputs: Float[Tensor, "batch layer d_model"]
    """Raw inputs."""
    targets: Float[Tensor, "batch layer d_model"]
    """Raw targets."""
    features: list[LayerFeatures]
    """Features of each layer."""
    errors: list[Float[Tensor, "batch layer d_model"]]
    """Standardised errors of the reconstruction from each Matryoshka prefix, and last from all features."""
    transcoder: Transcoder
    progress: float
    """Share of the training steps that are done, from 0 up to, not including, 1."""

    __repr__ = short_repr


Loss: TypeAlias = Callable[[Step], Tensor]
"""A user's own loss, which replaces all terms of the built-in loss: a scalar with a gradient."""


class StepMetrics(NamedTuple):
    """Numbers of one batch, as scalars on the training device."""

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained on the batch, mean over layers."""
    l0: Float[Tensor, ""]
    """Active features per token, mean over layers."""
    dead_share: Float[Tensor, ""]
    """Share of all features that have been silent for ``dead_after_tokens`` tokens."""

    __repr__ = short_repr


class Curves(NamedTuple):
    """The numbers of a training run over its steps; each entry is a mean over the steps since the previous entry."""

    step: list[int]
    """Steps at which the entries were made, counted from 1."""
    loss: list[float]
    fvu: list[float]
    l0: list[float]
    dead_share: list[float]
    learning_rate: list[float]
    """Learning rate at each entry's step, not a mean."""

    __repr__ = short_repr
    _repr_html_ = html_repr


@final
class TranscoderModule(LightningModule):
    """Trains a transcoder on batches of raw activations."""

    silent_tokens: Tensor
    """Tokens since each feature last fired, of shape (layer, feature)."""
    _recent: Tensor
    """Sums of the ``StepMetrics`` since the last entry of the curves."""

    def __init__(
        self,
        transcoder: Transcoder,
        config: LearningConfig,
        *,
        optimizer: OptimizerMaker | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        self.transcoder = transcoder
        self.config = config
        self._make_optimizer = optimizer
        self._own_loss = loss
        shape = (transcoder.config.n_layers, transcoder.config.n_features)
        self.register_buffer("silent_tokens", torch.zeros(shape, dtype=torch.long))
        self.register_buffer("_recent", torch.zeros(len(StepMetrics._fields)))
        self.curves = Curves([], [], [], [], [], [])
        self.latest: StepMetrics | None = None
        self._residuals = torch.zeros(shape[0])
        self._gradient_norm = torch.zeros(())

    @property
    def dead(self) -> Bool[Tensor, "layer feature"]:
        """Whether each feature has been silent for ``dead_after_tokens`` tokens."""
        return self.silent_tokens >= self.config.loss.dead_after_tokens

    @property
    def dead_share(self) -> Float[Tensor, ""]:
        """Share of features that are dead, over all processes."""
        peers = self.transcoder.peers
        return peers.sum_features(self.dead.float().mean() / peers.shards)

    @property
    def steps(self) -> int:
        """Steps of the whole run; warm-ups and decays are shares of them."""
        return self.trainer.max_steps

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one batch of tokens."""
        self.transcoder.nonlinearity.progress(self.global_step / self.steps)
        inputs, targets = batch.inputs.float(), batch.targets.float()
        sparsity = self.config.loss.sparsity if self._own_loss is None else None
        outputs = self.transcoder.errors(inputs, targets, norms=sparsity is not None and sparsity.coefficient != 0)
        features, errors, _ = outputs
        if self._own_loss is None:
            loss = losses.matryoshka_loss(errors) + self._sparsity(outputs) + self._distance(features)
            loss = loss + self._preactivation(inputs) + self._auxiliary(inputs, errors[-1])
        else:
            progress = self.global_step / self.steps
            loss = self._own_loss(Step(inputs, targets, features, errors, self.transcoder, progress))
        self._record(features, errors[-1].detach(), targets, loss.detach())
        return loss

    def _sparsity(self, outputs: TranscoderErrors) -> Tensor | float:
        """The sparsity term, whose coefficient rises linearly from zero during the warm-up."""
        sparsity = self.config.loss.sparsity
        if sparsity is None or outputs.decoder_norms is None:
            return 0.0
        coefficient = sparsity.coefficient * ramp(self.global_step, self.steps, sparsity.warmup)
        penalty = losses.sparsity_loss(outputs.features, outputs.decoder_norms, sparsity)
        return coefficient * self.transcoder.peers.sum_features(penalty)

    def _distance(self, features: list[LayerFeatures]) -> Tensor | float:
        """The distance term, which prices what features write to later layers."""
        coefficient = self.config.loss.distance_penalty
        if coefficient == 0 or not isinstance(self.transcoder, CrossLayerTranscoder):
            return 0.0
        penalty = losses.distance_loss(features, list(self.transcoder.W_dec))
        return coefficient * self.transcoder.peers.sum_features(penalty)

    def _preactivation(self, inputs: Float[Tensor, "batch layer d_model"]) -> Tensor | float:
        """The pre-activation term, which raises dead features, or all features, to their thresholds."""
        settings = self.config.loss
        if settings.preactivation == 0:
            return 0.0
        chosen = self._by_layer(self.dead if settings.preactivation_on == "dead" else torch.ones_like(self.dead))
        if not chosen:
            return 0.0
        total = inputs.new_zeros(())
        norms = self.transcoder.decoder_norms().detach()
        for layer, indices in chosen:
            pre = self.transcoder.preactivations_of(inputs[:, layer], layer, indices)
            learned = self.transcoder.nonlinearity.threshold(layer)
            thresholds = torch.zeros_like(norms[layer]) if learned is None else learned.to(norms)
            total = total + losses.preactivation_loss(pre, thresholds[indices], norms[layer][indices])
        return settings.preactivation * self.transcoder.peers.sum_features(total)

    def _auxiliary(
        self, inputs: Float[Tensor, "batch layer d_model"], errors: Float[Tensor, "batch layer d_model"]
    ) -> Tensor | float:
        """The AuxK term, by which dead features learn to reconstruct the error that the other features leave."""
        settings, peers = self.config.loss, self.transcoder.peers
        if settings.auxiliary == 0:
            return 0.0
        dead = self._by_layer(self.dead)
        if not dead:
            return 0.0
        standard = self.transcoder.standardisation.inputs(inputs)
        written = torch.zeros_like(errors)
        for layer, indices in dead:
            pre = self.transcoder.preactivations_of(inputs[:, layer], layer, indices)
            n_features = self.transcoder.config.n_features
            top = losses.top_dead_features(pre, indices, k=settings.auxiliary_k, n_features=n_features, peers=peers)
            written_by_layer = multiplied(self.transcoder.written(top, layer, standard[:, layer]))
            written[:, layer : layer + written_by_layer.shape[1]] += written_by_layer
        return settings.auxiliary * losses.auxiliary_loss(errors, peers.sum_features(written))

    def _by_layer(self, chosen: Bool[Tensor, "layer feature"]) -> list[tuple[int, Int[Tensor, "some"]]]:
        """Indices of this process's chosen features, for each layer where any process has a chosen feature."""
        counts = self.transcoder.peers.sum_features(chosen.sum(1)).tolist()
        return [(layer, row.nonzero().flatten()) for layer, row in enumerate(chosen) if counts[layer]]

    @torch.no_grad()
    def _record(self, features: list[LayerFeatures], errors: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Count the tokens since each feature fired, and record the numbers of this batch."""
        peers = self.transcoder.peers
        tokens = errors.shape[0] * peers.replicas
        counts = peers.sum_batch(torch.stack([active_counts(layer) for layer in features]))
        self.silent_tokens += tokens
        self.silent_tokens[counts > 0] = 0
        deviation = torch.linalg.vector_norm(targets - targets.mean(0), dim=(0, 2))
        residual = torch.linalg.vector_norm(errors, dim=(0, 2)) * self.transcoder.standardisation.target_scale
        self._residuals = residual
        fvu = (residual / deviation.clamp(min=1e-6)).square().mean()
        loss, fvu = peers.sum_batch(torch.stack([loss, fvu])) / peers.replicas
        l0 = peers.sum_features(counts.sum() / (tokens * counts.shape[0]))
        self.latest = StepMetrics(loss, fvu, l0, self.dead_share)
        self._recent += torch.stack(self.latest)
        self._extend_curves(self.global_step + 1)

    def _extend_curves(self, step: int) -> None:
        """Add an entry to the curves if it is due at this step; a run has about ``_CURVE_POINTS`` entries."""
        every = max(1, self.steps // _CURVE_POINTS)
        batches = self.trainer.accumulate_grad_batches
        if step % every == 0 and step_is_complete(self.trainer):
            means: list[float] = (self._recent / (every * batches)).tolist()
            learning_rate: float = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.curves.step.append(step)
            for curve, value in zip(self.curves[1:], (*means, learning_rate), strict=True):
                curve.append(value)
            self._recent.zero_()

    def on_train_start(self) -> None:
        """Raise NotFiniteError if the weights to start from, such as those of a checkpoint, are not finite."""
        check_weights(self.transcoder, self.global_step)

    def on_train_batch_end(self, outputs: Any, batch: ActivationBatch, batch_idx: int) -> None:
        """Raise NotFiniteError if the numbers of the batch are not finite."""
        self.check_step()

    def check_step(self) -> None:
        """Raise NotFiniteError if the numbers of the latest batch are not finite; all processes must call it."""
        if self.latest is not None:
            step = self.global_step + (not step_is_complete(self.trainer))
            norm = self._gradient_norm.to(self.latest.loss)
            numbers = {"loss": self.latest.loss, "FVU": self.latest.fvu, "norm of the gradient": norm}
            check_step(self.transcoder, numbers, self._residuals, step)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and its learning-rate schedule."""
        return scheduled_optimizer(self.transcoder.parameters(), self.config, self.trainer, self._make_optimizer)

    def configure_model(self) -> None:
        """Connect the transcoder to the other processes of the run, and keep only this process's slice of features."""
        peers = peers_of(self.trainer)
        if peers is not ALONE and self.transcoder.peers is ALONE:
            self.transcoder = shard_features(self.transcoder, peers)
            shape = (self.transcoder.config.n_layers, self.transcoder.config.n_features)
            self.silent_tokens = self.silent_tokens.new_zeros(shape)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients by their norm over the features of all processes, and keep the norm that they had."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            gradient_clip_val = None
        if not scaled:  # with float16, infinite gradients are usual: PyTorch leaves out such a step and scales less
            self._gradient_norm = clip_gradients(self.transcoder, gradient_clip_val)

    def on_validation_epoch_start(self) -> None:
        """Start a new measurement on the held-out tokens."""
        self._held_out = MetricsAccumulator(self.transcoder)

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Measure the transcoder on a batch of held-out tokens."""
        self._held_out.update(batch.inputs, batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Log FVU and L0 on all held-out tokens."""
        metrics = self._held_out.result()
        self.log_dict({"held_out_fvu": metrics.fvu, "held_out_l0": metrics.l0})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the curves, and the settings that a resumed run must have, to the checkpoint.

        Raises NotFiniteError, before anything is written, if the loss, the weights or the optimizer are not finite.
        """
        self.check_step()
        check_weights(self.transcoder, self.global_step)
        check_optimizer(self.transcoder, checkpoint.get("optimizer_states"), self.global_step)
        checkpoint["curves"] = self.curves._asdict()
        checkpoint["settings"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the curves; raises CheckpointError if the settings differ from those of the run to resume."""
        for group, settings in self._settings().items():
            refuse_other_settings(checkpoint["settings"][group], settings)
        self.curves = Curves(**checkpoint["curves"])

    def _settings(self) -> dict[str, dict[str, Any]]:
        training = {**to_dict(self.config), "steps": self.steps}
        return {"transcoder": to_dict(self.transcoder.config), "training": training}


@torch.no_grad()
def set_encoder_bias(transcoder: Transcoder, inputs: Float[Tensor, "batch layer d_model"], firing_rate: float) -> None:
    """Shift encoder biases so that each feature exceeds its threshold on this share of the tokens.

    Ameisen et al. (2025), "Circuit Tracing", initialise encoder biases in this way.
    """
    all_features = torch.arange(transcoder.config.n_features, device=inputs.device)
    for layer in range(transcoder.config.n_layers):
        pre = transcoder.preactivations_of(inputs[:, layer], layer, all_features)
        rank = max(1, round(firing_rate * pre.shape[0]))
        quantile = pre.topk(rank, dim=0, sorted=True).values[-1]
        threshold = transcoder.nonlinearity.threshold(layer)
        transcoder.b_enc[layer] += (0.0 if threshold is None else threshold.to(inputs.device)) - quantile
