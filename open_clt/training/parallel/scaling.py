"""What a training costs on several processes: memory, traffic and time, by formula. docs/scaling.md explains them.

``F`` features a layer, ``L`` layers, ``d`` d_model, ``S`` the sum of all reaches (``L (L + 1) / 2`` of a full CLT),
``k`` active features a token and layer; ``N`` shards, ``R`` replicas, ``b`` tokens a process (batch size / R). All of
it is of one process and one step, in numbers of 4 bytes. What is small is left out: scalars, masks, codes.
"""

from __future__ import annotations

from typing import NamedTuple

from open_clt.config import BatchTopKConfig, CrossLayerConfig, JumpReLUConfig, TopKConfig

_NUMBER = 4
_COUNT = 8
_HISTOGRAMS = 3 * 2048 * _COUNT
"""Bytes of the counts that BatchTopK's search for a threshold takes, in three rounds."""
_PASSES = 11
"""Times that a parameter's 4 bytes cross the memory bus to be updated: gradient 1 + 3, weight and moments 7."""


class Layout(NamedTuple):
    """How processes share the work."""

    shards: int = 1
    """Processes that the features are spread over."""
    replicas: int = 1
    """Groups of so many processes that the batch is spread over."""


class Parameters(NamedTuple):
    """How many numbers are learned."""

    of_features: int
    """Encoder and decoder rows, biases and thresholds: each process has its slice."""
    copied: int
    """Decoder biases and skip paths: each process has all of them."""

    def here(self, layout: Layout) -> int:
        """Those of one process."""
        return self.of_features // layout.shards + self.copied


class Memory(NamedTuple):
    """Bytes that one process needs at the worst moment of a step."""

    weights: int
    """Weights, gradients, and Adam's two moments."""
    activations: int
    """Inputs, targets and reconstructions with their gradients, and the pre-activations of a layer."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations


class Traffic(NamedTuple):
    """Bytes that one process puts into collectives; a ring sends ``2 (n - 1) / n`` times that among ``n``."""

    reconstructions: int
    """All-reduced over the shards."""
    candidates: int
    """Of TopK, gathered over the shards."""
    counts: int
    """By which BatchTopK finds its threshold, all-reduced over shards and replicas."""
    gradients: int
    """All-reduced over the replicas, and which features fired with them."""

    def sent(self, layout: Layout) -> tuple[float, float]:
        """Bytes that go out of one process on rings: among its shards, and among its replicas."""
        among_shards = (self.reconstructions + self.counts) * 2 * (layout.shards - 1) / layout.shards
        gathered = self.candidates * (layout.shards - 1)
        among_replicas = (self.gradients + self.counts) * 2 * (layout.replicas - 1) / layout.replicas
        return among_shards + gathered, among_replicas


class Hardware(NamedTuple):
    """Sustained rates of one device, not those of its data sheet."""

    flops: float
    """Of dense products, per second."""
    memory: float
    """Bytes per second from and to its memory."""
    shard_link: float
    """Bytes per second that it sends to the other shards."""
    replica_link: float
    """Bytes per second that it sends to other replicas."""


class StepTime(NamedTuple):
    """Seconds of one step; nothing is taken to overlap."""

    encode: float
    """The one dense product."""
    decode: float
    """Rows of active features: read forward, read and written going back."""
    update: float
    """Gradients written, measured and clipped; Adam's reads and writes."""
    shards: float
    """Communication among the shards."""
    replicas: float
    """Communication among the replicas."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def reaches(config: CrossLayerConfig) -> int:
    """``S``: source-target pairs of layers."""
    return sum(config.reach_of(source) for source in range(config.n_layers))


def parameters(config: CrossLayerConfig) -> Parameters:
    """``F (L (d + 1) + S d)``, and L more for the thresholds of JumpReLU; ``L d`` (and ``L d^2``) are copied."""
    L, d = config.n_layers, config.d_model
    biases = 2 * L if isinstance(config.nonlinearity, JumpReLUConfig) else L
    of_features = config.n_features * (L * d + biases + reaches(config) * d)
    return Parameters(of_features, L * d + (L * d * d if config.skip else 0))


def memory(config: CrossLayerConfig, batch_size: int, layout: Layout) -> Memory:
    """``16 P`` for P parameters; ``4 b (12 L d + 2 F / N)`` for activations."""
    tokens, L, d = batch_size // layout.replicas, config.n_layers, config.d_model
    # A dozen tensors of the size of a batch: inputs and targets, raw and standardised, sums, errors, their gradients.
    batches, dense = 12 * L * d, 2 * config.n_features // layout.shards
    return Memory(4 * _NUMBER * parameters(config).here(layout), _NUMBER * tokens * (batches + dense))


def traffic(config: CrossLayerConfig, batch_size: int, layout: Layout) -> Traffic:
    """``4 b L d`` (prefixes + 1), ``4 b L k`` or some counts, and ``4 P``; nothing where there is nobody to talk to."""
    tokens, L = batch_size // layout.replicas, config.n_layers
    reconstructions = _NUMBER * tokens * L * config.d_model * (len(config.prefixes) + 1) if layout.shards > 1 else 0
    fired = _COUNT * L * config.n_features // layout.shards
    gradients = _NUMBER * parameters(config).here(layout) + fired if layout.replicas > 1 else 0
    return Traffic(reconstructions, _candidates(config, tokens, layout), _counts(config, layout), gradients)


def step_time(config: CrossLayerConfig, active: float, batch_size: int, layout: Layout, hardware: Hardware) -> StepTime:
    """Time of a step with ``active`` features a token and layer, by what is slowest at each part of it."""
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
    if not isinstance(config.nonlinearity, TopKConfig) or layout.shards == 1:
        return 0
    return _NUMBER * tokens * config.n_layers * config.nonlinearity.k


def _counts(config: CrossLayerConfig, layout: Layout) -> int:
    """Bytes on one line of processes."""
    if not isinstance(config.nonlinearity, BatchTopKConfig) or layout == Layout():
        return 0
    return _HISTOGRAMS * (1 if config.nonlinearity.across_layers else config.n_layers)
