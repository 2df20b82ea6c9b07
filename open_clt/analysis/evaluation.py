"""How good a transcoder is on text it was not trained on: its reconstructions, and the predictions made with them.

Three runs of the language model per batch of contexts: as it is, with the transcoder in place of its MLPs, and with
each MLP output set to its mean, which is what a transcoder that says nothing would do. The first position of a
context is left out of all numbers, as it is in training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.models.metrics import MetricsAccumulator, TranscoderMetrics
from open_clt.replacement.comparison import LogitComparison, compare_logits, cross_entropy, share_recovered
from open_clt.replacement.model import ReplacementModel


class Evaluation(NamedTuple):
    """A transcoder on held-out text. Cross-entropies are nats per token."""

    reconstruction: TranscoderMetrics
    logits: LogitComparison
    cross_entropy_ablated: float
    """With every MLP output set to its mean."""
    share_recovered: float | None
    """1 if the replacement predicts as well as the original, 0 as ill as the ablation."""

    def summary(self) -> dict[str, Any]:
        """The numbers by the names that ``metrics.json`` gives them."""
        metrics = self.reconstruction
        return {
            "tokens": metrics.tokens,
            "fvu": metrics.fvu,
            "fvu_per_layer": metrics.fvu_per_layer,
            "worst_fvu": metrics.worst_fvu,
            "l0": metrics.l0,
            "l0_per_layer": metrics.l0_per_layer,
            "dead_share": metrics.dead_share,
            "ce_original": self.logits.cross_entropy_original,
            "ce_replacement": self.logits.cross_entropy_replacement,
            "ce_ablated": self.cross_entropy_ablated,
            "ce_recovered": self.share_recovered,
            "kl": self.logits.kl_divergence,
            "top1_agreement": self.logits.top1_agreement,
        }


@torch.no_grad()
def evaluate_transcoder(
    replacement: ReplacementModel, contexts: Int[Tensor, "context position"], *, batch_size: int = 8
) -> Evaluation:
    """Evaluate a replacement model and its transcoder on contexts of tokens, each beginning with BOS."""
    model, transcoder = replacement.model, replacement.transcoder
    config = transcoder.config
    metrics = MetricsAccumulator(config.n_layers, config.n_features, config.d_model)
    compared: list[LogitComparison] = []
    total = torch.zeros(config.n_layers, config.d_model, device=model.device)
    batches = [rows.to(model.device) for rows in contexts.split(batch_size)]
    for tokens in batches:
        captured = model.capture(tokens, config.input_hook, config.target_hook)
        assert captured.logits is not None
        inputs, targets = (found[:, 1:].flatten(0, 1) for found in (captured.inputs, captured.targets))
        features = transcoder.encode(inputs.to(transcoder.dtype))
        metrics.update(features, transcoder.decode(features, inputs.to(transcoder.dtype)), targets)
        total += targets.float().sum(0)
        compared.append(compare_logits(captured.logits, replacement.logits(tokens), tokens, first=1))
    weights = torch.tensor([float(tokens.shape[0]) for tokens in batches])
    logits = LogitComparison(*(weights.div(weights.sum()) @ torch.tensor(compared)).tolist())
    ablated = _ablated(replacement, batches, total / metrics.result().tokens, weights)
    recovered = share_recovered(logits.cross_entropy_original, logits.cross_entropy_replacement, ablated)
    return Evaluation(metrics.result(), logits, ablated, recovered)


def _ablated(
    replacement: ReplacementModel,
    batches: list[Tensor],
    means: Float[Tensor, "layer d_model"],
    weights: Float[Tensor, "context_batch"],
) -> float:
    """Cross-entropy with every MLP output set to its mean."""
    with replacement.ablating(means):
        losses = [cross_entropy(replacement.model.logits(tokens)[:, 1:-1], tokens[:, 2:]) for tokens in batches]
    return float(weights.div(weights.sum()) @ torch.tensor(losses))
