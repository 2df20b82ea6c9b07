"""Metrics: the record of a transcoder's reconstruction and sparsity, and the accumulator that computes it over batches.

Training, conversion and evaluation all use this accumulator, and every report reads this record. The FVU (fraction of
variance unexplained) of a layer is ``sum |y_hat - y|^2 / sum |y - mean(y)|^2`` over the tokens and dimensions of that
layer. It is reported per layer, because in GPT-2 the variance of one layer is larger than that of all others together.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.finite import check_finite
from open_clt.html_repr import html_repr
from open_clt.processes import Processes
from open_clt.short_repr import short_repr
from open_clt.transcoders.sparse.codes import active_counts
from open_clt.transcoders.transcoder import Transcoder

DENSE_FEATURE_DENSITY = 0.1
"""A feature that fires on more than this share of the tokens counts as dense."""
DENSITY_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 1))
"""Edges of the histogram of densities: four bins per decade, from one token in a million to every token."""

_CHUNK = 4096


class LayerMetrics(NamedTuple):
    """Reconstruction and sparsity of one layer."""

    fvu: float
    """Fraction of variance unexplained."""
    l0: float
    """Mean number of active features per token."""
    dead_share: float
    """Share of the features that fire on no token."""
    dense_share: float
    """Share of the features that fire on more than ``DENSE_FEATURE_DENSITY`` of the tokens."""


class TranscoderMetrics(NamedTuple):
    """Reconstruction and sparsity of a transcoder on a number of tokens."""

    tokens: int
    layers: tuple[LayerMetrics, ...]
    density_histogram: tuple[int, ...]
    """Number of features in each bin of ``DENSITY_EDGES``. Features that fire on no token are in no bin."""
    chosen_layers: tuple[int, ...] | None = None
    """The language model's layers that ``layers`` describes, if the transcoder has some layers only; None is all."""

    __repr__ = short_repr
    _repr_html_ = html_repr

    @property
    def model_layers(self) -> tuple[int, ...]:
        """The language model's layer that each entry of ``layers`` describes."""
        return tuple(range(len(self.layers))) if self.chosen_layers is None else self.chosen_layers

    @property
    def fvu_per_layer(self) -> list[float]:
        """FVU of each layer."""
        return [layer.fvu for layer in self.layers]

    @property
    def l0_per_layer(self) -> list[float]:
        """L0 of each layer."""
        return [layer.l0 for layer in self.layers]

    @property
    def fvu(self) -> float:
        """Mean FVU of the layers."""
        return sum(self.fvu_per_layer) / len(self.layers)

    @property
    def worst_fvu(self) -> float:
        """FVU of the layer with the largest FVU."""
        return max(self.fvu_per_layer)

    @property
    def worst_layer(self) -> int:
        """The layer with the largest FVU."""
        return self.model_layers[self.fvu_per_layer.index(self.worst_fvu)]

    @property
    def l0(self) -> float:
        """Mean L0 of the layers."""
        return self.l0_total / len(self.layers)

    @property
    def l0_total(self) -> float:
        """Mean number of active features per token in all layers together."""
        return sum(self.l0_per_layer)

    @property
    def dead_share(self) -> float:
        """Share of all features that fire on no token."""
        return sum(layer.dead_share for layer in self.layers) / len(self.layers)

    @property
    def dense_share(self) -> float:
        """Share of all features that are dense."""
        return sum(layer.dense_share for layer in self.layers) / len(self.layers)

    def totals(self) -> dict[str, Any]:
        """The numbers of the whole transcoder, by the names that they have in files and tables."""
        names = ("tokens", "fvu", "worst_fvu", "worst_layer", "l0", "l0_total", "dead_share", "dense_share")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """The numbers of ``totals``, and each number of the layers as a list, in plain values that JSON can hold.

        If the transcoder has some layers only, ``layers`` says which.
        """
        per_layer = {
            f"{name}_per_layer": [getattr(layer, name) for layer in self.layers] for name in LayerMetrics._fields
        }
        chosen = {} if self.chosen_layers is None else {"layers": list(self.chosen_layers)}
        return {**self.totals(), **chosen, **per_layer}


@final
class MetricsAccumulator:
    """Computes the metrics of a transcoder over batches of tokens, with sums in float64.

    The transcoder is measured in inference mode, even during training. If other processes hold some of its features,
    the numbers are those of all features.
    """

    def __init__(self, transcoder: Transcoder) -> None:
        config = transcoder.config
        self._transcoder = transcoder
        self._tokens = torch.zeros(1, dtype=torch.long)
        self._error = torch.zeros(config.n_layers, dtype=torch.float64)
        self._squares = torch.zeros(config.n_layers, dtype=torch.float64)
        self._sum = torch.zeros(config.n_layers, config.d_model, dtype=torch.float64)
        self._active = torch.zeros(config.n_layers, config.n_features, dtype=torch.long)

    @torch.no_grad()
    def update(
        self, inputs: Float[Tensor, "batch layer d_model"], targets: Float[Tensor, "batch layer d_model"]
    ) -> None:
        """Add one batch of tokens: compute their features and reconstruction, and compare with ``targets``."""
        transcoder = self._transcoder
        was_training = transcoder.training
        features, reconstruction = transcoder.eval()(inputs.to(transcoder.device, transcoder.dtype))
        transcoder.train(was_training)
        targets = targets.to("cpu", torch.float64)
        self._tokens += targets.shape[0]
        self._error += (reconstruction.to("cpu", torch.float64) - targets).square().sum((0, 2))
        self._squares += targets.square().sum((0, 2))
        self._sum += targets.sum(0)
        for layer, active in enumerate(features):
            self._active[layer] += active_counts(active).cpu()

    @property
    def tokens(self) -> int:
        """Number of tokens added so far."""
        return int(self._tokens)

    def add_up(self, processes: Processes) -> None:
        """Add the tokens of all processes that share a text."""
        processes.add_up(self._tokens, self._error, self._squares, self._sum, self._active)

    def target_means(self) -> Float[Tensor, "layer d_model"]:
        """Mean of each layer's targets over the tokens added so far."""
        return self._sum / self.tokens

    def result(self) -> TranscoderMetrics:
        """The metrics of all tokens added so far.

        Raises ValueError before the first token, and NotFiniteError if the reconstruction of a layer is not finite.
        """
        if self.tokens == 0:
            raise ValueError("The metrics have no tokens; call update with at least one.")
        variance = self._squares - self._sum.square().sum(1) / self.tokens
        fvu = self._error / variance.clamp(min=1e-12)
        density, peers = self._active.double() / self.tokens, self._transcoder.peers
        shares = [mask.double().mean(1) / peers.shards for mask in (density == 0, density > DENSE_FEATURE_DENSITY)]
        l0, dead, dense = peers.sum_features(torch.stack([density.sum(1), *shares]))
        layers = self._transcoder.config.layers
        check_finite(fvu, "The FVU (fraction of variance unexplained)", axes=("layer",), layers=layers)
        edges = torch.tensor([0.0, *DENSITY_EDGES[1:]], dtype=torch.float64)  # the first bin also holds lower densities
        histogram = peers.sum_features(torch.histogram(density[density > 0], edges).hist)
        rows = zip(*(column.tolist() for column in (fvu, l0, dead, dense)), strict=True)
        return TranscoderMetrics(
            tokens=self.tokens,
            layers=tuple(LayerMetrics(*row) for row in rows),
            density_histogram=tuple(histogram.int().tolist()),
            chosen_layers=None if layers == tuple(range(len(fvu))) else layers,
        )


def metrics_of(
    transcoder: Transcoder, inputs: Float[Tensor, "batch layer d_model"], targets: Float[Tensor, "batch layer d_model"]
) -> TranscoderMetrics:
    """The metrics of a transcoder on activations in memory, in chunks of 4,096 tokens."""
    metrics = MetricsAccumulator(transcoder)
    for chunk in zip(inputs.split(_CHUNK), targets.split(_CHUNK), strict=True):
        metrics.update(*chunk)
    return metrics.result()
