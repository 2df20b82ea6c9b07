"""Conversion of TopK and BatchTopK to JumpReLU, which selects features by thresholds instead of ranks.

A selection by rank depends on the other features of a token, or on the other tokens of a batch. A selection by
thresholds depends on each feature's pre-activation only, and is the form that other programs read. The thresholds are
fitted to data, in two steps on two halves of the tokens:

    1. The first half gives a threshold per feature, which the feature passes on as many tokens as its rank selects it.
    2. The second half gives a factor per layer on all its thresholds, by bisection, such that the layer's mean L0
       equals that of the selection by rank.

The second step is needed because thresholds that fit one set of tokens select too many or too few features on another,
above all among features that fire rarely. A ``ThresholdConfig`` replaces the factors by one for all layers, and gives
one threshold to the features that are selected on no token of the first half.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import BatchTopKConfig, JumpReLUConfig, ThresholdConfig, TopKConfig
from open_clt.errors import ConfigError
from open_clt.short_repr import short_repr
from open_clt.transcoders.make import make_transcoder, own_architecture
from open_clt.transcoders.metrics import TranscoderMetrics, metrics_of
from open_clt.transcoders.nonlinearities import JumpReLU
from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.transcoder import Transcoder

L0_TOLERANCE = 0.01
"""Largest relative difference between a layer's L0 and its aim at which the aim counts as reached."""
_BISECTIONS = 40
_CHUNK = 4096
_SMALLEST_THRESHOLD = 1e-6
THRESHOLD_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Quantiles of a layer's thresholds that a conversion states."""


class LayerThresholds(NamedTuple):
    """The thresholds of one layer, in units of the pre-activation."""

    factor: float
    """Factor on the thresholds that the first half of the tokens gave."""
    never_active: int
    """Number of features that the selection by rank selects on no token of the first half."""
    quantiles: tuple[float, ...]
    """``THRESHOLD_QUANTILES`` of the thresholds."""

    __repr__ = short_repr


class Conversion(NamedTuple):
    """A converted transcoder, and its numbers before and after the conversion."""

    transcoder: Transcoder
    """The converted transcoder: the same weights, with JumpReLU."""
    aim_per_layer: list[float]
    """Mean L0 of each layer under the selection by rank, to which the thresholds are fitted."""
    before: TranscoderMetrics
    """Metrics of the original transcoder at inference, on the tokens of the second half."""
    after: TranscoderMetrics
    """Metrics of the converted transcoder, on the same tokens."""
    thresholds: tuple[LayerThresholds, ...]
    """The thresholds of each layer."""

    @property
    def l0_error(self) -> float:
        """The largest relative difference between a layer's L0 and its aim."""
        pairs = zip(self.after.l0_per_layer, self.aim_per_layer, strict=True)
        return max(abs(l0 - aim) / max(aim, 1e-9) for l0, aim in pairs)

    def summary(self) -> str:
        """Two lines of text: L0 and FVU before and after the conversion."""
        before, after = self.before, self.after
        within = "within" if self.l0_error <= L0_TOLERANCE else "NOT within"
        return "\n".join([
            f"mean L0     {before.l0:.2f} -> {after.l0:.2f}, {within} {L0_TOLERANCE:.0%} of its aim in every layer "
            f"(largest difference {self.l0_error:.2%})",
            f"FVU         {before.fvu:.4f} -> {after.fvu:.4f} ({after.fvu - before.fvu:+.4f}), "
            f"worst layer {before.worst_fvu:.4f} -> {after.worst_fvu:.4f}",
        ])  # fmt: skip

    def threshold_table(self) -> str:
        """A table of the thresholds as text: factor, features that are never active, and quantiles of each layer."""
        heads = ("layer", "factor", "never active", *(f"{share:.0%}" for share in THRESHOLD_QUANTILES))
        rows = [
            (
                f"{layer}",
                f"{row.factor:.3f}",
                f"{row.never_active}",
                *(f"{threshold:.3g}" for threshold in row.quantiles),
            )
            for layer, row in zip(self.after.model_layers, self.thresholds, strict=True)
        ]
        widths = [max(8, len(head)) + 2 for head in heads]
        lines = ["".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
        return "\n".join(["thresholds and their quantiles, in units of the pre-activation", *lines])

    __repr__ = short_repr


@torch.no_grad()
def convert_to_jumprelu(
    transcoder: Transcoder,
    inputs: Float[Tensor, "batch layer d_model"],
    targets: Float[Tensor, "batch layer d_model"],
    *,
    thresholds: ThresholdConfig | None = None,
) -> Conversion:
    """Convert a TopK or BatchTopK transcoder to JumpReLU, with thresholds fitted to some thousands of tokens.

    If features of all layers compete, the aim of a layer is the mean number of its features that are selected on these
    tokens. Raises ConfigError for another nonlinearity, and for fewer than two tokens.
    """
    config = transcoder.config
    if not isinstance(config.nonlinearity, TopKConfig | BatchTopKConfig):
        raise ConfigError(f"The nonlinearity is {config.nonlinearity.kind!r}; only topk and batchtopk need conversion.")
    if isinstance(config.nonlinearity, TopKConfig) and config.nonlinearity.offsets:
        raise ConfigError(
            "The nonlinearity is topk with offsets, so a feature may be active below 0, where JumpReLU has no learned "
            "thresholds; it cannot be converted."
        )
    half = inputs.shape[0] // 2
    if half < 1:
        raise ConfigError(f"The number of tokens is {inputs.shape[0]}; give some thousands to fit thresholds to.")
    inputs = inputs.to(transcoder.device, transcoder.dtype)
    converted = make_transcoder(replace(config, nonlinearity=JumpReLUConfig()), own=own_architecture(transcoder))
    converted = converted.to(transcoder.device, transcoder.dtype)
    shared = {name: tensor for name, tensor in transcoder.state_dict().items() if not name.startswith("nonlinearity.")}
    converted.load_state_dict(shared, strict=False)
    assert isinstance(converted.nonlinearity, JumpReLU)
    aim = selected_counts(transcoder, inputs[half:]).sum(1) / inputs[half:].shape[0]
    counts = selected_counts(transcoder, inputs[:half])
    described: list[LayerThresholds] = []
    for layer in range(config.n_layers):
        first, second = (_preactivations(transcoder, part, layer) for part in (inputs[:half], inputs[half:]))
        theta, factor = _fit(first, second, counts[layer], float(aim[layer]), thresholds or ThresholdConfig())
        converted.nonlinearity.log_threshold[layer] = theta.log()
        quantiles = tuple(_quantiles(theta))
        described.append(LayerThresholds(factor, int((counts[layer] == 0).sum()), quantiles))
    before = metrics_of(transcoder, inputs[half:], targets[half:])
    after = metrics_of(converted, inputs[half:], targets[half:])
    return Conversion(converted.eval(), aim.tolist(), before, after, tuple(described))


@torch.no_grad()
def selected_counts(
    transcoder: Transcoder, inputs: Float[Tensor, "batch layer d_model"]
) -> Int[Tensor, "layer feature"]:
    """Number of tokens on which the selection by rank selects each feature, as at the end of training.

    The tokens are ranked in batches of 4,096. The transcoder itself does not change.
    """
    # At inference BatchTopK has thresholds, and TopK ranks as at the end of training.
    ranking = copy.deepcopy(transcoder).train(isinstance(transcoder.config.nonlinearity, BatchTopKConfig))
    ranking.nonlinearity.progress(1.0)
    counts = torch.zeros_like(transcoder.b_enc, dtype=torch.long)
    for batch in inputs.split(_CHUNK):
        counts += torch.stack([active_counts(layer) for layer in ranking(batch).features])
    return counts


def _preactivations(transcoder: Transcoder, inputs: Tensor, layer: int) -> Float[Tensor, "batch feature"]:
    all_features = torch.arange(transcoder.config.n_features, device=inputs.device)
    return transcoder.preactivations_of(inputs[:, layer], layer, all_features)


def _fit(
    first: Float[Tensor, "fitted feature"],
    second: Float[Tensor, "checked feature"],
    counts: Int[Tensor, "feature"],
    aim: float,
    config: ThresholdConfig,
) -> tuple[Float[Tensor, "feature"], float]:
    """The thresholds of a layer and the factor on them, from the pre-activations of both halves of the tokens.

    A default threshold is not scaled, so the other features reach what is left of the aim.
    """
    theta, scaled = _thresholds(first, counts), torch.ones_like(counts, dtype=torch.bool)
    if config.default_threshold is not None:
        scaled = counts > 0
        theta[~scaled] = config.default_threshold
    factor = config.scale_factor
    if factor is None:
        fixed = float((second > theta)[:, ~scaled].sum()) / second.shape[0]
        factor = _scale(second[:, scaled] / theta[scaled], aim - fixed) if bool(scaled.any()) else 1.0
    theta[scaled] *= factor
    return theta.clamp(min=_SMALLEST_THRESHOLD), factor


def _quantiles(thresholds: Float[Tensor, "feature"]) -> list[float]:
    """Quantiles by sorting, because torch.quantile limits the number of elements."""
    ranks = torch.tensor(THRESHOLD_QUANTILES) * (thresholds.shape[0] - 1)
    return thresholds.sort().values[ranks.round().long().to(thresholds.device)].tolist()


def _thresholds(
    preactivations: Float[Tensor, "batch feature"], counts: Int[Tensor, "feature"]
) -> Float[Tensor, "feature"]:
    """The threshold that each feature passes on ``counts`` tokens, midway between two adjacent pre-activations.

    A feature with a count of zero gets a threshold above all of its pre-activations.
    """
    falling = preactivations.sort(dim=0, descending=True).values.clamp(min=0)
    last = falling.shape[0] - 1
    lowest_in = falling.gather(0, (counts - 1).clamp(min=0)[None])[0]
    highest_out = falling.gather(0, counts.clamp(max=last)[None])[0]
    never_passed = falling[0] * 1.01 + _SMALLEST_THRESHOLD
    return torch.where(counts > 0, (lowest_in + highest_out) / 2, never_passed).clamp(min=_SMALLEST_THRESHOLD)


def _scale(ratios: Float[Tensor, "batch feature"], aim: float) -> float:
    """The factor on a layer's thresholds that gives a mean L0 of ``aim``; ratios are pre-activations / thresholds."""
    low, high = 0.0, max(1.0, float(ratios.max()))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2 if low > 0 else min(1.0, high / 2)  # starts at 1, which should be near the result
        l0 = float((ratios > middle).sum()) / ratios.shape[0]
        low, high = (middle, high) if l0 > aim else (low, middle)
    return high
