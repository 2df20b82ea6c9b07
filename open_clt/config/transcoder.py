"""Settings of transcoders: shape, hooks that are read and reconstructed, and nonlinearity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, TypeAlias

from open_clt.config.checks import check_above_zero, check_counts, check_shares
from open_clt.config.json import IF_GIVEN, CheckedConfig
from open_clt.errors import ConfigError

InputHook: TypeAlias = str
"""Name, within a block, of the hook that encoders read: any hook of width ``d_model``."""
MLP_INPUT_HOOKS = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
"""Hooks at the input of an MLP: the residual stream before the norm, the normalised stream before the weight and bias
of the norm, and the output of the norm, which the MLP reads."""
PARALLEL_INPUT_HOOK = "hook_resid_pre"
"""Hook at the input of an MLP that runs in parallel with attention: the residual stream before the block."""
MLP_OUTPUT_HOOK = "hook_mlp_out"
"""Hook at the output of an MLP."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ReLUConfig(CheckedConfig):
    """ReLU: ``a = max(pre, 0)``."""

    kind: Literal["relu"] = "relu"


@dataclass(frozen=True, kw_only=True, repr=False)
class JumpReLUConfig(CheckedConfig):
    """JumpReLU: ``a = pre * 1[pre > threshold]``, one learned threshold per feature (Rajamanoharan et al., 2024)."""

    kind: Literal["jumprelu"] = "jumprelu"
    initial_threshold: float = 0.03
    """Threshold of every JumpReLU feature at the start of training, in units of the pre-activation."""
    bandwidth: float = 1.0
    """Width of the rectangle kernel of JumpReLU's straight-through estimator."""
    gradient_to_preactivation: bool = True
    """Let JumpReLU's kernel also pass a gradient to the pre-activation, as in Ameisen et al. (2025)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "initial_threshold", "bandwidth")


@dataclass(frozen=True, kw_only=True, repr=False)
class FixedJumpReLUConfig(CheckedConfig):
    """JumpReLU with thresholds of any sign that training does not change: ``a = pre * 1[pre > threshold]``.

    A transcoder of another program has it if a threshold is negative. A feature may then be active with a negative
    value.
    """

    kind: Literal["fixed_jumprelu"] = "fixed_jumprelu"


@dataclass(frozen=True, kw_only=True, repr=False)
class TopKConfig(CheckedConfig):
    """TopK: the ``k`` largest positive pre-activations of each token and layer (Gao et al., 2024).

    With ``across_layers``, the layers of a token compete for ``k`` times the number of layers, or ``k_total``, places.
    """

    kind: Literal["topk"] = "topk"
    k: int = 16
    """Number of active features per token and layer; with ``across_layers``, its mean over the layers."""
    across_layers: bool = False
    """Rank the features of all layers of a token together, instead of each layer alone."""
    weighted: bool = True
    """Rank by activation times decoder norm, instead of activation alone; it matters only with ``across_layers``."""
    k_total: int | None = None
    """Number of active features per token in all layers together; None is ``k`` times the number of layers.

    It matters only with ``across_layers``, for numbers that are not a multiple of the layers; ``k`` is then unused."""
    keep_negative: bool = False
    """Keep negative pre-activations among the ``k`` largest, as circuit-tracer does; otherwise they become zero."""
    offsets: bool = False
    """Rank features by their pre-activations less an offset of each feature; they keep their whole pre-activations.

    Transcoders of other programs have it that add a number to a feature after the ranking. Training does not change the
    offsets, which start at zero."""
    k_share: float | None = None
    """Share of the features that are active, in place of ``k``; the config of a transcoder turns it into ``k``."""
    initial_k: int | None = None
    """Number of active features at the first training step, which then moves linearly to ``k``; None is ``k``."""
    anneal_share: float = 0.2
    """Share of the training steps after which ``k`` is reached; it matters only with ``initial_k``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "k", "k_total", "initial_k")
        _check_anneal_share(self)
        _check_k_share(self)
        if self.keep_negative and self.across_layers:
            raise ConfigError(
                "keep_negative and across_layers are both true; TopK across layers keeps no negative values."
            )
        if self.offsets and (self.across_layers or self.keep_negative):
            other = "across_layers" if self.across_layers else "keep_negative"
            raise ConfigError(f"offsets and {other} are both true; TopK can have only one of them.")
        if self.k_total is not None and (not self.across_layers or self.initial_k is not None):
            raise ConfigError(
                f"k_total is {self.k_total}, with across_layers {self.across_layers} and initial_k {self.initial_k}; "
                "k_total needs across_layers, and excludes initial_k."
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchTopKConfig(CheckedConfig):
    """BatchTopK: a batch's ``k * tokens`` largest pre-activations; thresholds at inference (Bussmann et al., 2024)."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: int = 16
    """Mean number of active features per token and layer."""
    across_layers: bool = False
    """Rank the features of all layers together, by activation times decoder norm, instead of each layer alone."""
    k_share: float | None = None
    """Share of the features that are active, in place of ``k``; the config of a transcoder turns it into ``k``."""
    threshold_momentum: float = 0.99
    """Momentum of the running estimate of the threshold that BatchTopK uses at inference."""
    initial_k: int | None = None
    """Mean number of active features at the first training step, which then moves linearly to ``k``; None is ``k``."""
    anneal_share: float = 0.2
    """Share of the training steps after which ``k`` is reached; it matters only with ``initial_k``."""
    layer_weights: tuple[float, ...] | None = field(default=None, metadata=IF_GIVEN)
    """Relative number of active features of each layer, such as 4, 2, 1; their mean stays ``k``. None: all the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "k", "initial_k")
        check_shares(self, "threshold_momentum")
        _check_anneal_share(self)
        _check_k_share(self)
        if not all(0 < weight < math.inf for weight in self.layer_weights or ()):
            raise ConfigError(f"layer_weights is {list(self.layer_weights or ())}; each must be a number above 0.")
        if self.layer_weights is not None and self.across_layers:
            raise ConfigError("across_layers ranks the features of all layers together; leave out layer_weights.")

    def share_of(self, layer: int) -> float:
        """The number of active features of a layer, as a multiple of ``k``."""
        if self.layer_weights is None:
            return 1.0
        return self.layer_weights[layer] * len(self.layer_weights) / sum(self.layer_weights)


NonlinearityConfig: TypeAlias = ReLUConfig | JumpReLUConfig | FixedJumpReLUConfig | TopKConfig | BatchTopKConfig
"""The config of any nonlinearity; ``make_nonlinearity`` builds one from each."""


class OnLayers:
    """Base class of the configs of transcoders: which layer of the language model each place of a layer axis is.

    A transcoder has one encoder for each of its layers, and its tensors have one entry for each. The language model's
    own numbers of these layers are ``model_layers``. Features, graphs, records and tables use these numbers; the
    methods of a transcoder, and the axes ``layer``, ``source`` and ``target``, use places. Without ``layers``, both are
    the same.
    """

    n_layers: int
    layers: tuple[int, ...] | None

    @property
    def model_layers(self) -> tuple[int, ...]:
        """The language model's layer at each place, in rising order."""
        return tuple(range(self.n_layers)) if self.layers is None else self.layers

    def place_of(self, layer: int) -> int:
        """The place of a layer of the language model; raises ConfigError if the transcoder has no features there."""
        if layer not in self.model_layers:
            raise ConfigError(f"The transcoder has no features at layer {layer}; its layers are {self.layer_words}.")
        return self.model_layers.index(layer)

    @property
    def layer_words(self) -> str:
        """The transcoder's layers, in words: ``0 to 11``, or ``2, 5 and 8``."""
        return words_of_layers(self.model_layers)


def words_of_layers(layers: Sequence[int]) -> str:
    """Layers in rising order, in words: ``0 to 11`` without gaps, or else ``2, 5 and 8``."""
    if len(layers) > 2 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]} to {layers[-1]}"
    *others, last = map(str, layers)
    return f"{', '.join(others)} and {last}" if others else last


@dataclass(frozen=True, kw_only=True, repr=False)
class CrossLayerConfig(OnLayers, CheckedConfig):
    """Config of a cross-layer transcoder, whose features have decoders: everything that its tensors do not hold.

    The default is a CLT. ``reach=1`` is one transcoder per layer. If that reconstructs the hook which it reads, it is
    one sparse autoencoder per layer:
    ``CrossLayerConfig(reach=1, input_hook="hook_resid_post", target_hook="hook_resid_post", ...)``.
    """

    kind: Literal["cross_layer"] = "cross_layer"
    n_layers: int
    """Number of layers with features: all layers of the language model, or as many as ``layers`` names."""
    layers: tuple[int, ...] | None = field(default=None, metadata=IF_GIVEN)
    """Layers of the language model that have features, in rising order, such as [2, 5, 8]; None is all of them.

    Nothing is replaced, reconstructed or standardised at the other layers, and reach does not count them."""
    n_features: int
    """Number of features per layer."""
    d_model: int
    """Width of the language model's residual stream."""
    reach: int | None = None
    """Number of the transcoder's layers a feature writes to, from its own on; None is all (a CLT), 1 only its own."""
    skip: bool = False
    """Add a linear path from each layer's input to its output."""
    nonlinearity: NonlinearityConfig = field(default_factory=TopKConfig)
    """Nonlinearity that turns pre-activations into features."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: for each of these sizes, a layer's first features must reconstruct the target without the others.

    Sizes must rise and lie below the number of features. The loss is the sum of the reconstruction losses of each
    prefix and of all features (Bussmann et al., 2025)."""
    input_hook: InputHook = "hook_resid_mid"
    """Hook that encoders read: any hook of the model's blocks that carries ``d_model`` numbers per token."""
    target_hook: str = MLP_OUTPUT_HOOK
    """Hook that is reconstructed: any hook of the model's blocks that carries ``d_model`` numbers per token."""
    language_model: str | None = None
    """Name of the language model that the transcoder is trained for; None if unknown."""
    use_first_position: bool = False
    """Train and use features at the first position too, where activations are massive and independent of the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_layers(self)
        if self.reach is not None and not 1 <= self.reach <= self.n_layers:
            raise ConfigError(f"reach is {self.reach}; it must lie between 1 and n_layers = {self.n_layers}.")
        _check_shape(self)
        bounds = (0, *self.prefixes, self.n_features)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ConfigError(
                f"prefixes is {self.prefixes}; its numbers must rise, be at least 1, and be below n_features = "
                f"{self.n_features}."
            )

    def reach_of(self, source: int) -> int:
        """Number of target layers to which features of the layer at place ``source`` write."""
        return min(self.reach or self.n_layers, self.n_layers - source)


@dataclass(frozen=True, kw_only=True, repr=False)
class MoltConfig(OnLayers, CheckedConfig):
    """Config of a sparse mixture of linear transforms per layer: ``y_hat = sum_t phi(e_t . x - b_t) U_t V_t x``.

    All transforms of a group have the same rank. A transform is a feature, whose value is its gate ``phi(...)``.
    """

    kind: Literal["molt"] = "molt"
    n_layers: int
    """Number of layers with transforms: all layers of the language model, or as many as ``layers`` names."""
    layers: tuple[int, ...] | None = field(default=None, metadata=IF_GIVEN)
    """Layers of the language model that have transforms, in rising order, such as [2, 5, 8]; None is all of them."""
    d_model: int
    """Width of the language model's residual stream."""
    ranks: tuple[int, ...]
    """Rank of the transforms in each group."""
    counts: tuple[int, ...]
    """Number of transforms in each group, per layer."""
    skip: bool = False
    """Add a linear path from each layer's input to its output."""
    nonlinearity: NonlinearityConfig = field(default_factory=TopKConfig)
    """Nonlinearity of the gates of the transforms."""
    input_hook: InputHook = "hook_resid_mid"
    """Hook that gates and transforms read: any hook of the model's blocks with ``d_model`` numbers per token."""
    target_hook: str = MLP_OUTPUT_HOOK
    """Hook that is reconstructed: any hook of the model's blocks that carries ``d_model`` numbers per token."""
    language_model: str | None = None
    """Name of the language model that the transcoder is trained for; None if unknown."""
    use_first_position: bool = False
    """Train and use features at the first position too, where activations are massive and independent of the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_layers(self)
        if not self.ranks or len(self.ranks) != len(self.counts) or min(*self.ranks, *self.counts) < 1:
            raise ConfigError(
                f"ranks is {self.ranks} and counts is {self.counts}; each group needs one rank and one count, both at "
                "least 1."
            )
        _check_shape(self)

    @property
    def n_features(self) -> int:
        """Number of transforms per layer."""
        return sum(self.counts)

    def reach_of(self, source: int) -> int:
        """Number of target layers to which transforms of layer ``source`` write: 1, their own layer."""
        return 1


TranscoderConfig: TypeAlias = CrossLayerConfig | MoltConfig
"""The config of any kind of transcoder; ``make_transcoder`` builds a transcoder from each."""


@dataclass(frozen=True, kw_only=True, repr=False)
class NeuronConfig(OnLayers, CheckedConfig):
    """Config of a language model's own MLP neurons as features, which are neither trained nor stored."""

    kind: Literal["neurons"] = "neurons"
    n_layers: int
    """Number of layers of the language model."""
    n_features: int
    """Number of neurons per layer."""
    d_model: int
    """Width of the language model's residual stream."""
    gated: bool = False
    """Whether a neuron is a product of two factors, one of which is a gate."""
    input_hook: InputHook = "mlp.hook_in"
    """Hook that the MLPs read."""
    target_hook: str = MLP_OUTPUT_HOOK
    """Hook that carries what the MLPs add to the residual stream."""
    language_model: str | None = None
    """Name of the language model."""
    use_first_position: bool = True
    """Neurons are used at every position."""

    layers = None
    reach = 1
    skip = False

    def reach_of(self, source: int) -> int:
        """Number of target layers to which neurons of layer ``source`` write: 1, their own layer."""
        return 1


def _check_layers(config: TranscoderConfig) -> None:
    """Raise ConfigError unless the chosen layers rise, begin at 0 or later, and are as many as ``n_layers`` says."""
    layers = config.layers
    if layers is None:
        return
    if not layers:
        raise ConfigError("layers is empty; name at least one layer of the language model, or leave it out for all.")
    if layers[0] < 0 or any(low >= high for low, high in pairwise(layers)):
        raise ConfigError(
            f"layers is {list(layers)}; name each layer of the language model once, in rising order, from 0 on."
        )
    if len(layers) != config.n_layers:
        raise ConfigError(
            f"n_layers is {config.n_layers} and layers is {list(layers)}; n_layers is the number of layers with "
            f"features, so it must be {len(layers)}."
        )


def _check_shape(config: TranscoderConfig) -> None:
    """Turn a share of features into their number, and raise ConfigError for numbers that are too small or too large."""
    for name in ("n_layers", "n_features", "d_model"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    nonlinearity = config.nonlinearity
    if not isinstance(nonlinearity, TopKConfig | BatchTopKConfig):
        return
    if nonlinearity.k_share is not None:
        k = max(1, round(nonlinearity.k_share * config.n_features))
        nonlinearity = replace(nonlinearity, k=k, k_share=None)
        object.__setattr__(config, "nonlinearity", nonlinearity)
    for name, k in (("k", nonlinearity.k), ("initial_k", nonlinearity.initial_k)):
        if k is not None and not 1 <= k <= config.n_features:
            raise ConfigError(f"{name} is {k}; it must lie between 1 and n_features = {config.n_features}.")
    if isinstance(nonlinearity, BatchTopKConfig):
        _check_weights_of(nonlinearity, config.n_layers, config.n_features)
    total, most = getattr(nonlinearity, "k_total", None), config.n_layers * config.n_features
    if total is not None and total > most:
        raise ConfigError(f"k_total is {total}; it must be at most n_layers times n_features = {most}.")


def _check_k_share(config: TopKConfig | BatchTopKConfig) -> None:
    if config.k_share is None:
        return
    if not 0 < config.k_share <= 1:
        raise ConfigError(f"k_share is {config.k_share}; it is a share of the features, above 0 and at most 1.")
    for name in ("k", "k_total"):
        value = getattr(config, name, None)
        if value != getattr(type(config), name, None):
            raise ConfigError(f"k_share is {config.k_share} and {name} is {value}; give one of the two settings.")


def _check_weights_of(config: BatchTopKConfig, n_layers: int, n_features: int) -> None:
    """Raise ConfigError if the weights do not fit the layers, or give a layer more active features than it has."""
    weights = config.layer_weights
    if weights is None:
        return
    if len(weights) != n_layers:
        raise ConfigError(f"layer_weights has {len(weights)} numbers; it needs one for each of {n_layers} layers.")
    most = max(map(config.share_of, range(n_layers))) * config.k
    if most > n_features:
        raise ConfigError(f"layer_weights activates {most:.0f} features of a layer; n_features is {n_features}.")


def _check_anneal_share(config: TopKConfig | BatchTopKConfig) -> None:
    if not 0 < config.anneal_share <= 1:
        raise ConfigError(f"anneal_share is {config.anneal_share}; it must lie above 0 and be at most 1.")
