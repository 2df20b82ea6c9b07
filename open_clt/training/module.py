"""One training step of a transcoder, and what is watched meanwhile: the LightningModule of every training.

The transcoder computes features and reconstructions, ``losses`` computes losses, and this file adds them up:
coefficients, warm-ups and dead features are known here only.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from open_clt.activations.buffer import ActivationBatch
from open_clt.config import TrainingConfig, to_dict
from open_clt.errors import CheckpointError
from open_clt.models.cross_layer import CrossLayerTranscoder
from open_clt.models.sparse import LayerFeatures, active_counts, write
from open_clt.training import losses

_CURVE_POINTS = 400


class StepMetrics(NamedTuple):
    """Numbers of one training step, as scalars on the training device."""

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained on the batch, mean of the layers."""
    l0: Float[Tensor, ""]
    """Active features per token, mean of the layers."""
    dead_share: Float[Tensor, ""]
    """Share of all features that have been silent for ``dead_after_tokens`` tokens."""


class Curves(NamedTuple):
    """How training went: each entry is a mean over the steps since the entry before."""

    step: list[int]
    loss: list[float]
    fvu: list[float]
    l0: list[float]
    dead_share: list[float]
    learning_rate: list[float]


@final
class TranscoderModule(LightningModule):
    """Trains a transcoder on batches of raw activations."""

    silent_tokens: Tensor
    """Tokens since each feature fired, (layer, feature)."""
    _recent: Tensor

    def __init__(self, transcoder: CrossLayerTranscoder, config: TrainingConfig) -> None:
        super().__init__()
        self.transcoder = transcoder
        self.config = config
        shape = (transcoder.config.n_layers, transcoder.config.n_features)
        self.register_buffer("silent_tokens", torch.zeros(shape, dtype=torch.long))
        self.register_buffer("_recent", torch.zeros(len(StepMetrics._fields)))
        self.curves = Curves([], [], [], [], [], [])
        self.latest: StepMetrics | None = None

    @property
    def dead(self) -> Bool[Tensor, "layer feature"]:
        """Which features have been silent for too long."""
        return self.silent_tokens >= self.config.loss.dead_after_tokens

    @property
    def steps(self) -> int:
        """Steps of the whole training: what warm-ups and decays are shares of."""
        return self.trainer.max_steps

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one batch of tokens."""
        inputs, targets = batch.inputs.float(), batch.targets.float()
        features, reconstruction = self.transcoder(inputs)
        standard = self.transcoder.standardisation.targets(targets)
        errors = self.transcoder.standardisation.errors(targets - reconstruction)
        loss = losses.reconstruction_loss(errors) + self._penalty(features) + self._revival(inputs, errors)
        self._watch(features, errors.detach(), standard, loss.detach())
        return loss

    def _penalty(self, features: list[LayerFeatures]) -> Tensor | float:
        """The sparsity term, its coefficient rising from zero."""
        settings = self.config.loss
        if settings.sparsity == 0:
            return 0.0
        coefficient = settings.sparsity * ramp(self.global_step, self.steps, settings.sparsity_warmup)
        norms = self.transcoder.decoder_norms()
        return coefficient * losses.sparsity_loss(features, norms, steepness=settings.sparsity_steepness)

    def _revival(
        self, inputs: Float[Tensor, "batch layer d_model"], errors: Float[Tensor, "batch layer d_model"]
    ) -> Tensor | float:
        """The two terms that bring dead features back; they touch dead features only."""
        settings = self.config.loss
        dead = self.dead
        if (settings.auxiliary == 0 and settings.preactivation == 0) or not bool(dead.any()):
            return 0.0
        written = torch.zeros_like(errors)
        total = errors.new_zeros(())
        for layer in range(dead.shape[0]):
            indices = dead[layer].nonzero().flatten()
            if indices.shape[0] == 0:
                continue
            pre = self.transcoder.preactivations_of(inputs[:, layer], layer, indices)
            if settings.preactivation:
                total = total + settings.preactivation * self._below_threshold(pre, layer, indices)
            if settings.auxiliary:
                top = losses.top_dead_features(pre, indices, k=settings.auxiliary_k, n_features=dead.shape[1])
                wrote = write(top, self.transcoder.W_dec[layer])
                written[:, layer : layer + wrote.shape[1]] += wrote
        return total + settings.auxiliary * losses.auxiliary_loss(errors, written)

    def _below_threshold(
        self, preactivations: Float[Tensor, "batch some"], layer: int, indices: Int[Tensor, "some"]
    ) -> Float[Tensor, ""]:
        thresholds = self.transcoder.nonlinearity.threshold(layer)
        if thresholds is None:
            thresholds = self.silent_tokens.new_zeros(self.silent_tokens.shape[1], dtype=torch.float32)
        norms = self.transcoder.W_dec[layer][indices].flatten(1).norm(dim=1)
        return losses.preactivation_loss(preactivations, thresholds.to(indices.device)[indices], norms)

    @torch.no_grad()
    def _watch(self, features: list[LayerFeatures], errors: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Count silent features, and take down the numbers of this step."""
        counts = torch.stack([active_counts(layer) for layer in features])
        self.silent_tokens += errors.shape[0]
        self.silent_tokens[counts > 0] = 0
        centred = targets - targets.mean(0)
        fvu = (errors.square().sum((0, 2)) / centred.square().sum((0, 2)).clamp(min=1e-12)).mean()
        l0 = counts.sum() / (errors.shape[0] * counts.shape[0])
        self.latest = StepMetrics(loss, fvu, l0, self.dead.float().mean())
        self._recent += torch.stack(self.latest)
        self._record(self.global_step + 1)

    def _record(self, step: int) -> None:
        """Add a point to the curves, every so many steps."""
        every = max(1, self.steps // _CURVE_POINTS)
        if step % every == 0:
            means: list[float] = (self._recent / every).tolist()
            rate: float = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.curves.step.append(step)
            for curve, value in zip(self.curves[1:], (*means, rate), strict=True):
                curve.append(value)
            self._recent.zero_()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, fused, with linear warm-up and final linear decay of the learning rate."""
        config, steps = self.config, self.steps
        optimizer = torch.optim.Adam(self.transcoder.parameters(), lr=config.learning_rate, fused=True)

        def factor(step: int) -> float:
            rising = ramp(step + 1, steps, config.warmup_share)
            return rising * min(1.0, (steps - step) / (config.decay_share * steps)) if config.decay_share else rising

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the curves, and the settings that a resumed training must share."""
        checkpoint["curves"] = self.curves._asdict()
        checkpoint["settings"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the curves back; raises CheckpointError if the settings differ from those of the first run."""
        stored, ours = checkpoint["settings"], self._settings()
        for group, settings in ours.items():
            for name, value in settings.items():
                if stored[group].get(name) != value:
                    raise CheckpointError(
                        f"The training to resume had {name} = {stored[group].get(name)!r}, now it is {value!r}; "
                        "resume with the same settings, or start anew."
                    )
        self.curves = Curves(**checkpoint["curves"])

    def _settings(self) -> dict[str, dict[str, Any]]:
        return {"transcoder": to_dict(self.transcoder.config), "training": to_dict(self.config)}


def ramp(step: int, steps: int, share: float) -> float:
    """Rise linearly from 0 to 1 over the first ``share`` of all steps."""
    return min(1.0, step / (share * steps)) if share > 0 else 1.0


@torch.no_grad()
def set_encoder_bias(
    transcoder: CrossLayerTranscoder, inputs: Float[Tensor, "batch layer d_model"], firing_rate: float
) -> None:
    """Shift encoder biases so that each feature passes its threshold on this share of the tokens (methods)."""
    every = torch.arange(transcoder.config.n_features, device=inputs.device)
    for layer in range(transcoder.config.n_layers):
        pre = transcoder.preactivations_of(inputs[:, layer], layer, every)
        rank = max(1, round(firing_rate * pre.shape[0]))
        quantile = pre.topk(rank, dim=0, sorted=True).values[-1]
        threshold = transcoder.nonlinearity.threshold(layer)
        transcoder.b_enc[layer] += (0.0 if threshold is None else threshold.to(inputs.device)) - quantile
