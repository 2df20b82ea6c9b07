"""Cost of a training step on several processes: formulas for memory, traffic and time, which docs/scaling.md explains.

Symbols: ``F`` features per layer, ``L`` layers, ``d`` d_model, ``S`` the sum of all reaches (``L (L + 1) / 2`` for a
full CLT), ``k`` active features per token and layer, ``N`` shards, ``R`` replicas, ``b = batch_size / R`` tokens per
process. All costs are those of one process and one step, with numbers of 4 bytes. Small terms are left out: scalars,
masks, sparse codes.
"""

from __future__ import annotations

from typing import NamedTuple

from open_clt.config import BatchTopKConfig, CrossLayerConfig, JumpReLUConfig, TopKConfig

_NUMBER = 4
_COUNT = 8
_HISTOGRAMS = 3 * 2048 * _COUNT
"""Bytes of the three histograms that BatchTopK exchanges to find its threshold."""
_PASSES = 11
"""Times that each parameter's 4 bytes cross the memory bus in an update: gradient 1 + 3, weight and moments 7."""


class Layout(NamedTuple):
    """The numbers of shards and replicas among which processes share the work."""

    shards: int = 1
    """Processes that share the features."""
    replicas: int = 1
    """Groups of ``shards`` processes that share the batch."""


class Parameters(NamedTuple):
    """Numbers of learned parameters."""

    of_features: int
    """Parameters of encoders, decoders and thresholds; each process has a slice of them."""
    copied: int
    """Parameters of decoder biases and skip paths; each process has all of them."""

    def here(self, layout: Layout) -> int:
        """Number of parameters that one process holds."""
        return self.of_features // layout.shards + self.copied


class Memory(NamedTuple):
    """Peak memory of one process during a step, in bytes."""

    weights: int
    """Bytes of weights, gradients, and Adam's two moments."""
    activations: int
    """Bytes of inputs, targets and reconstructions with their gradients, and of the pre-activations of a layer."""

    @property
    def total(self) -> int:
        """Bytes of weights and activations together."""
        return self.weights + self.activations


class Traffic(NamedTuple):
    """Bytes that one process puts into collectives.

    A ring of ``n`` processes sends ``2 (n - 1) / n`` times the all-reduced bytes, and ``n - 1`` times the gathered.
    """

    reconstructions: int
    """Bytes of reconstructions, all-reduced over the shards."""
    candidates: int
    """Bytes of TopK's candidates, all-gathered over the shards."""
    counts: int
    """Bytes of the counts by which BatchTopK finds its threshold, all-reduced over shards and replicas."""
    gradients: int
    """Bytes of gradients and of the counts of active features, all-reduced over the replicas."""

    def sent(self, layout: Layout) -> tuple[float, float]:
        """Bytes that one process sends on rings: among its shards, and among its replicas."""
        among_shards = (self.reconstructions + self.counts) * 2 * (layout.shards - 1) / layout.shards
        gathered = self.candidates * (layout.shards - 1)
        among_replicas = (self.gradients + self.counts) * 2 * (layout.replicas - 1) / layout.replicas
        return among_shards + gathered, among_replicas


class Hardware(NamedTuple):
    """Rates that one device sustains, which are below those of its data sheet."""

    flops: float
    """Floating-point operations per second of dense products."""
    memory: float
    """Bytes per second between the device and its memory."""
    shard_link: float
    """Bytes per second that the device sends to other shards."""
    replica_link: float
    """Bytes per second that the device sends to other replicas."""


class StepTime(NamedTuple):
    """Seconds of one step, under the assumption that its parts do not overlap."""

    encode: float
    """Seconds of the encoder's dense product."""
    decode: float
    """Seconds to read the rows of active features forward, and to read and write them backward."""
    update: float
    """Seconds to write, measure and clip gradients, and for Adam's reads and writes."""
    shards: float
    """Seconds of communication among the shards."""
    replicas: float
    """Seconds of communication among the replicas."""

    @property
    def total(self) -> float:
        """Seconds of all parts together."""
        return sum(self)


def reaches(config: CrossLayerConfig) -> int:
    """``S``: the number of pairs of a source layer and a target layer that it writes to."""
    return sum(config.reach_of(source) for source in range(config.n_layers))


def parameters(config: CrossLayerConfig) -> Parameters:
    """Numbers of parameters: ``F (L (d + 1) + S d)`` of features, and ``L d`` that are copied.

    JumpReLU adds ``F L`` thresholds, and skip paths add ``L d^2`` copied parameters.
    """
    L, d = config.n_layers, config.d_model
    biases = 2 * L if isinstance(config.nonlinearity, JumpReLUConfig) else L
    of_features = config.n_features * (L * d + biases + reaches(config) * d)
    return Parameters(of_features, L * d + (L * d * d if config.skip else 0))


def memory(config: CrossLayerConfig, batch_size: int, layout: Layout) -> Memory:
    """Peak memory: ``16 P`` bytes for P parameters, and ``4 b (12 L d + 2 F / N)`` bytes for activations."""
    tokens, L, d = batch_size // layout.replicas, config.n_layers, config.d_model
    # About 12 tensors of the size of a batch: inputs and targets, raw and standardised, sums, errors, their gradients.
    batches, dense = 12 * L * d, 2 * config.n_features // layout.shards
    return Memory(4 * _NUMBER * parameters(config).here(layout), _NUMBER * tokens * (batches + dense))


def traffic(config: CrossLayerConfig, batch_size: int, layout: Layout) -> Traffic:
    """Bytes that one process puts into collectives; 0 for a collective of a single process.

    They are ``4 b L d (prefixes + 1)`` of reconstructions, ``4 b L k`` of TopK's candidates, and ``4 P`` of gradients.
    """
    tokens, L = batch_size // layout.replicas, config.n_layers
    reconstructions = _NUMBER * tokens * L * config.d_model * (len(config.prefixes) + 1) if layout.shards > 1 else 0
    fired = _COUNT * L * config.n_features // layout.shards
    gradients = _NUMBER * parameters(config).here(layout) + fired if layout.replicas > 1 else 0
    return Traffic(reconstructions, _candidates(config, tokens, layout), _counts(config, layout), gradients)


def step_time(config: CrossLayerConfig, active: float, batch_size: int, layout: Layout, hardware: Hardware) -> StepTime:
    """Time of a step with ``active`` features per token and layer, from the slowest resource in each part of it."""
    tokens, L, d = batch_size // layout.replicas, config.n_layers, config.d_model
    flops = 2 * tokens * L * d * config.n_features / layout.shards
    rows = tokens * active / layout.shards * d * (3 * reaches(config) + L)
    among_shards, among_replicas = traffic(config, batch_size, layout).sent(layout)
    return StepTime(
        encode=flops / hardware.flops,
        decode=_NUMBER * rows / hardware.memory,
        update=_PASSES * _NUMBER * parameters(config).here(layout) / hardware.memory,
        shards=among_shards / hardware.shard_link,
        replicas=among_replicas / hardware.replica_link,
    )


def _candidates(config: CrossLayerConfig, tokens: int, layout: Layout) -> int:
    """Bytes of TopK's candidates that one process contributes."""
    if not isinstance(config.nonlinearity, TopKConfig) or layout.shards == 1:
        return 0
    return _NUMBER * tokens * (config.nonlinearity.k_total or config.n_layers * config.nonlinearity.k)


def _counts(config: CrossLayerConfig, layout: Layout) -> int:
    """Bytes of BatchTopK's counts that one process contributes to each all-reduce over shards or replicas."""
    if not isinstance(config.nonlinearity, BatchTopKConfig) or layout == Layout():
        return 0
    return _HISTOGRAMS * (1 if config.nonlinearity.across_layers else config.n_layers)
