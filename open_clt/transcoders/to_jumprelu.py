"""TopK and BatchTopK become JumpReLU: thresholds in place of ranks, so that a feature depends on its own inputs only.

A selection by rank needs the other features of a token, or the other tokens of a batch; one by thresholds does not, and
is what other programs read. Thresholds come from data, in two steps on two halves of the tokens:

    1. the first half    theta[f]: the feature passes it on as many tokens as its rank selected it on
    2. the second half   a scale per layer on all its thetas, by bisection, so that the mean L0 is what ranks gave

The second step is there because thresholds that fit the tokens they come from let too much or too little through on
others, above all for features that fired a few times only.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import BatchTopKConfig, JumpReLUConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.transcoders.make import make_transcoder, own_architecture
from open_clt.transcoders.metrics import MetricsAccumulator, TranscoderMetrics
from open_clt.transcoders.nonlinearities import JumpReLU
from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.transcoder import Transcoder

L0_TOLERANCE = 0.01
"""How far, relatively, the bisection may leave L0 from its aim; ties and few tokens can keep it farther away."""
_BISECTIONS = 40
_CHUNK = 4096
_SMALLEST_THRESHOLD = 1e-6


class Conversion(NamedTuple):
    """A converted transcoder, and what the conversion did on the tokens it was fitted to."""

    transcoder: Transcoder
    """The same weights with JumpReLU."""
    aim_per_layer: list[float]
    """Mean L0 of the selection by rank: what the thresholds were fitted to."""
    before: TranscoderMetrics
    """The original, as it is at inference, on the tokens of the second half."""
    after: TranscoderMetrics
    """The converted one, on the same tokens."""

    @property
    def l0_error(self) -> float:
        """The largest relative difference of a layer's L0 from its aim."""
        pairs = zip(self.after.l0_per_layer, self.aim_per_layer, strict=True)
        return max(abs(l0 - aim) / max(aim, 1e-9) for l0, aim in pairs)

    def summary(self) -> str:
        """L0 and FVU before and after, for reading."""
        before, after = self.before, self.after
        reached = "within" if self.l0_error <= L0_TOLERANCE else "NOT within"
        return "\n".join([
            f"L0 a layer  {before.l0:.2f} -> {after.l0:.2f}, {reached} {L0_TOLERANCE:.0%} of its aim in every layer "
            f"(largest difference {self.l0_error:.2%})",
            f"FVU         {before.fvu:.4f} -> {after.fvu:.4f} ({after.fvu - before.fvu:+.4f}), "
            f"worst layer {before.worst_fvu:.4f} -> {after.worst_fvu:.4f}",
        ])  # fmt: skip


@torch.no_grad()
def convert_to_jumprelu(
    transcoder: Transcoder,
    inputs: Float[Tensor, "batch layer d_model"],
    targets: Float[Tensor, "batch layer d_model"],
) -> Conversion:
    """Fit a JumpReLU to what TopK or BatchTopK selects on some thousands of tokens; raises ConfigError for others.

    Where BatchTopK ranks across layers, each layer's L0 is what it wins on these tokens.
    """
    config = transcoder.config
    if not isinstance(config.nonlinearity, TopKConfig | BatchTopKConfig):
        raise ConfigError(f"The nonlinearity is {config.nonlinearity.kind!r}; only topk and batchtopk need conversion.")
    half = inputs.shape[0] // 2
    if half < 1:
        raise ConfigError(f"{inputs.shape[0]} tokens are too few to fit thresholds to; give some thousands.")
    inputs = inputs.to(transcoder.device, transcoder.dtype)
    converted = make_transcoder(replace(config, nonlinearity=JumpReLUConfig()), own=own_architecture(transcoder))
    converted = converted.to(transcoder.device, transcoder.dtype)
    shared = {name: tensor for name, tensor in transcoder.state_dict().items() if not name.startswith("nonlinearity.")}
    converted.load_state_dict(shared, strict=False)
    assert isinstance(converted.nonlinearity, JumpReLU)
    aim = selected_counts(transcoder, inputs[half:]).sum(1) / inputs[half:].shape[0]
    fires = selected_counts(transcoder, inputs[:half])
    for layer in range(config.n_layers):
        theta = _thresholds(_preactivations(transcoder, inputs[:half], layer), fires[layer])
        theta *= _scale(_preactivations(transcoder, inputs[half:], layer) / theta, float(aim[layer]))
        converted.nonlinearity.log_threshold[layer] = theta.clamp(min=_SMALLEST_THRESHOLD).log()
    before, after = (_metrics(either, inputs[half:], targets[half:]) for either in (transcoder, converted))
    return Conversion(converted.eval(), aim.tolist(), before, after)


@torch.no_grad()
def selected_counts(
    transcoder: Transcoder, inputs: Float[Tensor, "batch layer d_model"]
) -> Int[Tensor, "layer feature"]:
    """On how many tokens ranks select each feature, batch by batch as in training; the transcoder stays as it is."""
    ranking = copy.deepcopy(transcoder).train()
    ranking.nonlinearity.progress(1.0)
    counts = torch.zeros_like(transcoder.b_enc, dtype=torch.long)
    for some in inputs.split(_CHUNK):
        counts += torch.stack([active_counts(layer) for layer in ranking(some).features])
    return counts


def _preactivations(transcoder: Transcoder, inputs: Tensor, layer: int) -> Float[Tensor, "batch feature"]:
    every = torch.arange(transcoder.config.n_features, device=inputs.device)
    return transcoder.preactivations_of(inputs[:, layer], layer, every)


def _thresholds(
    preactivations: Float[Tensor, "batch feature"], fires: Int[Tensor, "feature"]
) -> Float[Tensor, "feature"]:
    """For each feature the threshold that it passes on ``fires`` tokens: half way to the next lower pre-activation.

    A feature that never fires gets one above all of its pre-activations.
    """
    falling = preactivations.sort(dim=0, descending=True).values.clamp(min=0)
    last = falling.shape[0] - 1
    lowest_in = falling.gather(0, (fires - 1).clamp(min=0)[None])[0]
    highest_out = falling.gather(0, fires.clamp(max=last)[None])[0]
    never = falling[0] * 1.01 + _SMALLEST_THRESHOLD
    return torch.where(fires > 0, (lowest_in + highest_out) / 2, never).clamp(min=_SMALLEST_THRESHOLD)


def _scale(ratios: Float[Tensor, "batch feature"], aim: float) -> float:
    """The factor on thresholds at which a token passes ``aim`` of them; ratios are pre-activations / thresholds."""
    low, high = 0.0, max(1.0, float(ratios.max()))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2 if low > 0 else min(1.0, high / 2)  # 1 first: it should be near
        l0 = float((ratios > middle).sum()) / ratios.shape[0]
        low, high = (middle, high) if l0 > aim else (low, middle)
    return high


def _metrics(transcoder: Transcoder, inputs: Tensor, targets: Tensor) -> TranscoderMetrics:
    metrics = MetricsAccumulator(transcoder)
    for chunk in zip(inputs.split(_CHUNK), targets.split(_CHUNK), strict=True):
        metrics.update(*chunk)
    return metrics.result()
